"""Where the shapes of an arm come from: other people's wheels, never this repository."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from openvla_ros.errors import DependencyError

VIPERX_PACKAGE = "gym_aloha"
VIPERX_REQUIREMENT = "gym-aloha==0.1.5"  # Apache-2.0
PANDA_PACKAGE = "robosuite"
PANDA_REQUIREMENT = "robosuite==1.5.2"  # MIT


def viperx_folder() -> Path:
    """Return the folder with the ViperX 300 of gym-aloha: MJCF and meshes.

    Only files are read; the package is not imported, so what it depends on may be absent.

    Raises:
        DependencyError: It is not installed.
    """
    folder = _folder(VIPERX_PACKAGE, "assets")
    if folder is not None and (folder / "vx300s_dependencies.xml").is_file():
        return folder
    raise DependencyError(
        "the simulated ViperX 300 needs the meshes of gym-aloha, which are not installed: "
        f"pip install --no-deps '{VIPERX_REQUIREMENT}' (0.4 MB; without --no-deps it brings "
        "dm_control and gymnasium, which are not used here), or run `make setup`."
    )


def panda_folder() -> Path:
    """Return the folder with robosuite's arms and grippers.

    Only files are read; the package is not imported, so what it depends on may be absent.

    Raises:
        DependencyError: It is not installed.
    """
    folder = _folder(PANDA_PACKAGE, "models/assets")
    if folder is not None and (folder / "robots" / "panda" / "robot.xml").is_file():
        return folder
    raise DependencyError(
        "the simulated Franka Panda needs the meshes of robosuite, which are not installed: "
        f"pip install --no-deps '{PANDA_REQUIREMENT}' (150 MB; --no-deps keeps your OpenCV and "
        "MuJoCo as they are)."
    )


def _folder(package: str, inside: str) -> Path | None:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / inside
