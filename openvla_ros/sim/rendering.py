"""Pictures of a MuJoCo scene without a display: OSMesa or EGL, whichever this machine has.

MuJoCo chooses by the variable MUJOCO_GL when it is imported; here the context is made directly, so
that neither the environment nor the order of imports decides.
"""

from __future__ import annotations

import importlib
import os
import weakref
from typing import Any

import numpy as np

from openvla_ros.errors import ConfigurationError, DependencyError

BACKENDS = ("osmesa", "egl")  # in software OSMesa is the faster one
VARIABLE = "MUJOCO_GL"
MAX_SIDE_PIXELS = 2048
WINDOW_PIXELS = (64, 64)  # nothing is drawn into it: pictures have a buffer of their own


def open_context() -> tuple[Any, str]:
    """Return a current OpenGL context and the name of its backend.

    The environment variable MUJOCO_GL decides when it is set to "osmesa" or "egl"; otherwise the
    first of `BACKENDS` that works on this machine.

    Raises:
        ConfigurationError: MUJOCO_GL names something that needs a display.
        DependencyError: No backend works; the text says why each one did not.
    """
    wanted = os.environ.get(VARIABLE, "").lower()
    if wanted and wanted not in BACKENDS:
        raise ConfigurationError(
            f"{VARIABLE} is '{wanted}'; the simulated cell renders without a display: "
            f"unset it, or use one of: {', '.join(BACKENDS)}."
        )
    reasons = []
    for backend in (wanted,) if wanted else BACKENDS:
        try:
            return _context(backend), backend
        except Exception as error:  # PyOpenGL raises whatever its loader met
            reasons.append(f"{backend}: {type(error).__name__} {error}".rstrip())
    raise DependencyError(
        "the simulated cell finds no OpenGL that renders without a display "
        f"({'; '.join(reasons)}). On Debian and Ubuntu: "
        "sudo apt-get install -y --no-install-recommends libosmesa6, or libegl1 libegl-mesa0."
    )


def _context(backend: str) -> Any:
    platform = os.environ.get("PYOPENGL_PLATFORM")
    os.environ["PYOPENGL_PLATFORM"] = backend  # PyOpenGL reads it once, at its import
    try:
        context = importlib.import_module(f"mujoco.{backend}").GLContext(*WINDOW_PIXELS)
        context.make_current()
        return context
    finally:
        if platform is None:
            del os.environ["PYOPENGL_PLATFORM"]
        else:
            os.environ["PYOPENGL_PLATFORM"] = platform


class SceneRenderer:
    """Renders one model; the context is made at the first picture, in the thread that asks.

    Attributes:
        backend: "osmesa" or "egl"; "" before the first picture.
    """

    def __init__(self, model: Any, *, has_shadows: bool = False) -> None:
        """Make nothing yet: a cell without pictures needs no OpenGL."""
        self._has_shadows = has_shadows
        self.backend = ""
        self._model = model
        self._gl: Any = None

    def render(self, data: Any, camera: str, width: int, height: int) -> np.ndarray:
        """Return what the named camera sees as (height, width, 3) uint8 RGB.

        Raises:
            ConfigurationError: The picture is larger than 2048 pixels on a side, or empty.
            DependencyError: This machine has no OpenGL that works without a display.
        """
        return self._draw(data, camera, width, height)

    def segment(self, data: Any, camera: str, width: int, height: int) -> np.ndarray:
        """Return (height, width) int32: which geom is seen at each pixel, -1 for none."""
        import mujoco

        scene = self._opened(width, height)
        scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 1
        scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        try:
            codes = self._draw(data, camera, width, height).astype(np.int32)
        finally:
            scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 0
            scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        numbers = codes[..., 0] + (codes[..., 1] << 8) + (codes[..., 2] << 16)
        geoms = np.full(scene.ngeom + 1, -1, np.int32)
        for geom in scene.geoms[: scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.segid >= 0:
                geoms[geom.segid + 1] = geom.objid
        return geoms[numbers]

    def close(self) -> None:
        """Give the context back."""
        if self._gl is not None:
            self._release()
            self._gl = None

    def _opened(self, width: int, height: int) -> Any:
        import mujoco

        for side in (width, height):
            if not 1 <= side <= MAX_SIDE_PIXELS:
                raise ConfigurationError(
                    f"a picture of {width} x {height} pixels; 1 to {MAX_SIDE_PIXELS} are allowed."
                )
        if self._gl is None:
            self._gl, self.backend = open_context()
            self._scene = mujoco.MjvScene(self._model, maxgeom=200)
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = self._has_shadows
            self._options = mujoco.MjvOption()
            self._camera = mujoco.MjvCamera()
            self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            self._render_context = mujoco.MjrContext(
                self._model, mujoco.mjtFontScale.mjFONTSCALE_100
            )
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._render_context)
            # At the end of the process too, before PyOpenGL is taken apart.
            self._release = weakref.finalize(self, _release, self._render_context, self._gl)
        self._gl.make_current()
        return self._scene

    def _draw(self, data: Any, camera: str, width: int, height: int) -> np.ndarray:
        import mujoco

        scene = self._opened(width, height)
        if (self._render_context.offWidth, self._render_context.offHeight) != (width, height):
            mujoco.mjr_resizeOffscreen(width, height, self._render_context)
        self._camera.fixedcamid = self._model.camera(camera).id
        visible = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._camera, visible, scene)
        rectangle = mujoco.MjrRect(0, 0, width, height)
        picture = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_render(rectangle, scene, self._render_context)
        mujoco.mjr_readPixels(picture, None, rectangle, self._render_context)
        return np.ascontiguousarray(picture[::-1])  # OpenGL counts rows from below


def _release(render_context: Any, gl: Any) -> None:
    gl.make_current()
    render_context.free()
    gl.free()
