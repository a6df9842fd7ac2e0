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
from openvla_ros.sim.assets import panda_folder, viperx_folder

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
        fingers: Left and right: along +y and -y of the tool.
        tool_axes: x, y and z of the tool, in the frame of `tool_body`.
        base_x_m: Where its first body stands: behind the origin of the cell, when negative.
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
    tool_axes: tuple[tuple[float, float, float], ...] = (
        (1.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (0.0, 0.0, 1.0),
    )
    base_x_m: float = 0.0
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


def _read_panda() -> Any:
    """The arm and its hand, drawn with the coarse meshes that robosuite uses for collisions."""
    import mujoco

    folder = panda_folder()
    arm = mujoco.MjSpec.from_file(str(folder / "robots" / "panda" / "robot.xml"))
    hand = mujoco.MjSpec.from_file(str(folder / "grippers" / "panda_gripper.xml"))
    for spec in (arm, hand):
        shown = {geom.meshname for geom in spec.geoms if geom.group == 0}
        unwanted = [geom for geom in spec.geoms if geom.group != 0]
        unwanted += [mesh for mesh in spec.meshes if mesh.name not in shown]
        for part in [*unwanted, *spec.actuators, *spec.sensors, *spec.sites, *spec.cameras]:
            spec.delete(part)
        for geom in spec.geoms:
            is_finger = "finger" in geom.name
            geom.rgba = [0.25, 0.25, 0.27, 1.0] if is_finger else [0.92, 0.92, 0.93, 1.0]
    frame = arm.body("right_hand").add_frame()
    frame.attach_body(hand.body("right_gripper"), "hand_", "")
    return arm


_VIPERX = "vx300s_left/"  # one of ALOHA's two arms
_PANDA_PAD = (0.008, 0.004, 0.012)
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
    "panda": ArmModel(
        name="panda",
        read=_read_panda,
        root="base",
        joints=tuple(f"joint{number}" for number in range(1, 8)),
        home_rad=(0.0, 0.20, 0.0, -2.30, 0.0, 2.50, np.pi / 4),
        stiffness=(6000.0, 6000.0, 4500.0, 4500.0, 2000.0, 2000.0, 1000.0),
        max_torque=(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),
        max_speed_rad_s=(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),  # Franka's data sheet
        tool_body="hand_right_gripper",
        tool_point_m=(0.0, 0.0, 0.097),  # robosuite's grip site
        # Of robosuite's pads the inner face is 0.5 mm inside of the joint's zero.
        fingers=(
            Finger("hand_finger_joint2", -0.04, 0.0, (0.0, -0.0035, 0.041), _PANDA_PAD),
            Finger("hand_finger_joint1", 0.04, 0.0, (0.0, 0.0035, 0.041), _PANDA_PAD),
        ),
        gap_m=0.079,
        tool_axes=((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
        base_x_m=-0.20,  # the table is too close to its shoulder otherwise
    ),
}
