"""The arms a cell can be built with: which joints move, where the tool point is, how stiff it is.

The tool frame is that of BridgeData's WidowX: x runs out of the gripper, and the fingers move
along y. With the gripper pointing down, x is base -z and z is base x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from openvla_ros.errors import ConfigurationError
from openvla_ros.sim.assets import viperx_folder

#: Gripper pointing down. Source: bridge_data_robot, widowx_controller.py, DEFAULT_ROTATION.
TOOL_DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
TOOL_SITE = "tool"


@dataclass(frozen=True)
class Finger:
    """A finger that slides; the pad is a box that is felt and not seen.

    Attributes:
        joint: Name of its slide joint.
        open_m: Joint position with the gripper open.
        closed_m: Joint position with the gripper closed.
        pad_centre_m: (3,) centre of the pad, in the frame of the finger's body.
        pad_half_m: (3,) half sizes of the pad.
    """

    joint: str
    open_m: float
    closed_m: float
    pad_centre_m: tuple[float, float, float]
    pad_half_m: tuple[float, float, float]


@dataclass(frozen=True)
class ArmModel:
    """One kind of arm.

    Attributes:
        name: What `SimCell(arm=...)` is given.
        read: Returns the arm alone as a MuJoCo spec, at the origin of its base frame.
        root: Name of the arm's first body.
        joints: Names of the joints from base to wrist.
        home_rad: Joint positions from which inverse kinematics starts.
        stiffness: Per joint, N m / rad, of the position servos.
        max_torque: Per joint, N m.
        max_speed_rad_s: Per joint.
        tool_body: Body that carries the tool point.
        tool_point_m: (3,) tool point in that body, between the finger tips.
        fingers: Left and right.
        hidden: Shapes that are not drawn: many triangles inside what is seen.
        gap_m: Between the pads when the gripper is open.
        finger_force_n: Largest force of one finger.
        finger_travel_s: From open to closed.
    """

    name: str
    read: Callable[[], Any]
    root: str
    joints: tuple[str, ...]
    home_rad: tuple[float, ...]
    stiffness: tuple[float, ...]
    max_torque: tuple[float, ...]
    max_speed_rad_s: tuple[float, ...]
    tool_body: str
    tool_point_m: tuple[float, float, float]
    fingers: tuple[Finger, Finger]
    gap_m: float
    hidden: tuple[str, ...] = ()
    finger_force_n: float = 10.0
    finger_travel_s: float = 0.5


def arm_model(name: str) -> ArmModel:
    """Return the arm of that name.

    Raises:
        ConfigurationError: There is none.
    """
    if name not in ARMS:
        raise ConfigurationError(f"arm '{name}' is not one of: {', '.join(ARMS)}.")
    return ARMS[name]


def _read_viperx() -> Any:
    import mujoco

    folder = viperx_folder()
    return mujoco.MjSpec.from_string(
        f"""<mujoco model="viperx">
              <compiler meshdir="{folder}"/>
              <include file="{folder}/vx300s_dependencies.xml"/>
              <worldbody><include file="{folder}/vx300s_left.xml"/></worldbody>
            </mujoco>"""
    )


_VIPERX = "vx300s_left/"  # one of ALOHA's two arms
_VIPERX_PAD = (0.024, 0.003, 0.008)
ARMS = {
    "viperx": ArmModel(
        name="viperx",
        read=_read_viperx,
        root="vx300s_left",
        joints=tuple(
            _VIPERX + joint
            for joint in "waist shoulder elbow forearm_roll wrist_angle wrist_rotate".split()
        ),
        home_rad=(0.0, -0.55, 0.85, 0.0, 1.27, 0.0),
        stiffness=(800.0, 1600.0, 800.0, 200.0, 200.0, 100.0),
        max_torque=(60.0, 120.0, 60.0, 20.0, 20.0, 10.0),
        max_speed_rad_s=(3.0, 3.0, 3.0, 3.0, 3.0, 3.0),  # about what Interbotix gives: pi rad/s
        tool_body=_VIPERX + "gripper_link",
        tool_point_m=(0.140, 0.0, 0.0),  # the tips are at 0.154
        # Measured on the meshes: with joints at +-0.057 m the inner faces are at +-0.0346 m.
        fingers=(
            Finger(_VIPERX + "left_finger", 0.057, 0.0226, (0.061, -0.0194, 0.0), _VIPERX_PAD),
            Finger(_VIPERX + "right_finger", -0.057, -0.0226, (0.061, 0.0194, 0.0), _VIPERX_PAD),
        ),
        gap_m=0.069,
        hidden=(_VIPERX + "7_gripper",),
    ),
}
