"""Parameters of what moves: the twist, its limits, the gripper.

This file knows no ROS.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from openvla_ros.config.parameter import fixed_field, parameter_field

GRIPPER_BACKENDS = (
    "none",
    "gripper_command",
    "parallel_gripper_command",
    "franka",
    "interbotix",
)


@dataclass(frozen=True)
class MotionConfig:
    """How an action becomes a Cartesian twist."""

    motion_enabled: bool = parameter_field(
        "motion_enabled", False, "false = dry run: the twist is zero, ~/action shows the rest"
    )
    base_frame: str = fixed_field(
        "base_frame", "", "frame of the twist, e.g. fr3_link0; motion needs it"
    )
    action_rotation_rpy: tuple[float, ...] = parameter_field(
        "action_rotation_rpy",
        (0.0, 0.0, 0.0),
        "turns the base axes of the dataset into those of this robot (roll, pitch, yaw)",
        unit="rad",
        minimum=-6.2832,
        maximum=6.2832,
    )
    twist_mode: str = parameter_field(
        "twist_mode",
        "stretch",
        "a step lasts until the next answer (stretch), its own time (exact), or a bit more (hold)",
        choices=("stretch", "exact", "hold"),
    )
    stream_rate: float = fixed_field(
        "stream_rate", 50.0, "rate of the twist", unit="Hz", minimum=20.0, maximum=200.0
    )
    hold_max: float = parameter_field(
        "hold_max",
        0.1,
        "twist_mode hold: longest time the last velocity is kept after its step",
        unit="s",
        minimum=0.0,
        maximum=0.5,
    )
    decay_time: float = parameter_field(
        "decay_time",
        0.1,
        "the twist ramps to zero in this time when the arm stops by itself",
        unit="s",
        minimum=0.0,
        maximum=0.5,
    )
    linear_scale: float = parameter_field(
        "linear_scale", 1.0, "multiplies every translation", minimum=0.0, maximum=2.0
    )
    angular_scale: float = parameter_field(
        "angular_scale", 1.0, "multiplies every rotation", minimum=0.0, maximum=2.0
    )
    speed_scale: float = parameter_field(
        "speed_scale", 0.5, "multiplies translation and rotation", minimum=0.0, maximum=1.0
    )
    linear_speed: float = parameter_field(
        "limits.linear_speed",
        0.25,
        "fastest translation (norm; the direction is kept)",
        unit="m/s",
        minimum=0.001,
        maximum=1.0,
    )
    angular_speed: float = parameter_field(
        "limits.angular_speed",
        1.0,
        "fastest rotation (norm; the axis is kept)",
        unit="rad/s",
        minimum=0.001,
        maximum=2.0,
    )
    delta_position: float = parameter_field(
        "limits.delta_position",
        0.05,
        "largest translation of one step, per axis",
        unit="m",
        minimum=0.0,
        maximum=0.5,
    )
    delta_rotation: float = parameter_field(
        "limits.delta_rotation",
        0.25,
        "largest rotation of one step, per axis",
        unit="rad",
        minimum=0.0,
        maximum=1.5,
    )
    linear_accel: float = parameter_field(
        "limits.linear_accel",
        5.0,
        "fastest change of the translation (norm); stops may exceed it",
        unit="m/s^2",
        minimum=0.5,
        maximum=20.0,
    )
    angular_accel: float = parameter_field(
        "limits.angular_accel",
        10.0,
        "fastest change of the rotation (norm); stops may exceed it",
        unit="rad/s^2",
        minimum=1.0,
        maximum=50.0,
    )
    workspace_min: tuple[float, ...] = parameter_field(
        "limits.workspace_min",
        (0.0, 0.0, 0.0),
        "corner of the box that the end effector does not leave; equal to workspace_max = no box",
        unit="m",
        minimum=-10.0,
        maximum=10.0,
    )
    workspace_max: tuple[float, ...] = parameter_field(
        "limits.workspace_max",
        (0.0, 0.0, 0.0),
        "opposite corner, base_frame; a box needs the end-effector pose",
        unit="m",
        minimum=-10.0,
        maximum=10.0,
    )
    workspace_margin: float = parameter_field(
        "workspace_margin",
        0.02,
        "so far from a face of the box the twist loses what points out of it",
        unit="m",
        minimum=0.0,
        maximum=0.5,
    )
    deadband_position: float = parameter_field(
        "deadband.position",
        0.0,
        "a step with a shorter translation does not translate (before the scales)",
        unit="m",
        minimum=0.0,
        maximum=0.05,
    )
    deadband_rotation: float = parameter_field(
        "deadband.rotation",
        0.0,
        "a step with a smaller rotation does not rotate (before the scales)",
        unit="rad",
        minimum=0.0,
        maximum=0.25,
    )
    leash_position: float = parameter_field(
        "leash.position",
        0.1,
        "pose output: longest distance of the target from the measured pose",
        unit="m",
        minimum=0.001,
        maximum=0.5,
    )
    leash_rotation: float = parameter_field(
        "leash.rotation",
        0.5,
        "pose output: largest rotation of the target from the measured pose",
        unit="rad",
        minimum=0.01,
        maximum=1.5,
    )

    @property
    def has_workspace(self) -> bool:
        """True when the end effector is kept in a box."""
        return self.workspace_min != self.workspace_max


@dataclass(frozen=True)
class ProfileConfig:
    """What the data of this robot means; a checkpoint that says otherwise is refused at configure.

    Nothing here changes the motion, and nothing here fills a gap: that is `action_spec.*`.
    """

    translation_frame: str = fixed_field(
        "delta_frame.translation",
        "",
        "this robot expects translations in these axes; empty = any",
        choices=("", "base", "ee"),
    )
    rotation_frame: str = fixed_field(
        "delta_frame.rotation",
        "",
        "this robot expects rotations in these axes; empty = any",
        choices=("", "base", "ee"),
    )
    kind: str = fixed_field(
        "expected.kind",
        "",
        "this robot expects steps of this kind; empty = any",
        choices=("", "eef_delta", "eef_velocity"),
    )
    rotation_form: str = fixed_field(
        "expected.rotation_form",
        "",
        "this robot expects rotations of this form; empty = any",
        choices=("", "euler_xyz", "rotvec"),
    )
    translation_unit_m: float = fixed_field(
        "expected.translation_unit_m",
        0.0,
        "this robot expects so many metres per unit and step; 0 = any",
        unit="m",
        minimum=0.0,
        maximum=10.0,
    )
    rotation_unit_rad: float = fixed_field(
        "expected.rotation_unit_rad",
        0.0,
        "this robot expects so many radians per unit and step; 0 = any",
        unit="rad",
        minimum=0.0,
        maximum=10.0,
    )
    action_hz: float = fixed_field(
        "expected.action_hz",
        0.0,
        "this robot expects so many steps per second; 0 = any",
        unit="Hz",
        minimum=0.0,
        maximum=50.0,
    )
    gripper_open: float = fixed_field(
        "expected.gripper_open",
        0.0,
        "this robot expects this number for open; equal to expected.gripper_closed = any",
        minimum=-1000.0,
        maximum=1000.0,
    )
    gripper_closed: float = fixed_field(
        "expected.gripper_closed",
        0.0,
        "this robot expects this number for closed; equal to expected.gripper_open = any",
        minimum=-1000.0,
        maximum=1000.0,
    )

    def expected(self) -> dict[str, Any]:
        """Fields of `ActionSpec` on which this robot insists, by name."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.gripper_open == self.gripper_closed:
            del given["gripper_open"], given["gripper_closed"]
        return {
            name: value for name, value in given.items() if value or name.startswith("gripper_")
        }


@dataclass(frozen=True)
class GripperConfig:
    """How the last number of an action becomes a gripper command."""

    threshold: float = parameter_field(
        "gripper.threshold", 0.5, "open above, closed below", minimum=0.0, maximum=1.0
    )
    hysteresis: float = parameter_field(
        "gripper.hysteresis",
        0.1,
        "width of the band around the threshold in which nothing changes",
        minimum=0.0,
        maximum=1.0,
    )
    sticky_steps: int = parameter_field(
        "gripper.sticky_steps",
        2,
        "equal answers in a row before the gripper changes",
        minimum=1,
        maximum=20,
    )
    invert: bool = parameter_field(
        "gripper.invert",
        False,
        "turns the opening round (1 - opening) before the threshold: for statistics whose "
        "action_spec.gripper_open and gripper_closed are the wrong way round",
    )
    open_position: float = parameter_field(
        "gripper.open_position",
        0.08,
        "gap between the fingers when open",
        unit="m",
        minimum=0.0,
        maximum=0.5,
    )
    closed_position: float = parameter_field(
        "gripper.closed_position",
        0.0,
        "gap between the fingers when closed",
        unit="m",
        minimum=0.0,
        maximum=0.5,
    )
    max_effort: float = parameter_field(
        "gripper.max_effort", 30.0, "force of the grasp", unit="N", minimum=0.1, maximum=200.0
    )
    backend: str = fixed_field(
        "gripper.backend",
        "none",
        "who moves the fingers; ~/gripper_cmd is published with every one of them",
        choices=GRIPPER_BACKENDS,
    )
    name: str = fixed_field(
        "gripper.name", "", "action, node or topic of the gripper; empty = the backend's usual one"
    )
    joint: str = fixed_field(
        "gripper.joint",
        "",
        "joint to command; parallel_gripper_command needs it, interbotix takes `gripper` if empty",
    )
    half_width: bool = fixed_field(
        "gripper.half_width",
        False,
        "the server counts from the middle to one finger: Franka's ~/gripper_action does",
    )
    speed: float = fixed_field(
        "gripper.speed",
        0.1,
        "speed of the fingers (backend franka)",
        unit="m/s",
        minimum=0.001,
        maximum=0.5,
    )
    pwm: int = fixed_field(
        "gripper.pwm",
        0,
        "backend interbotix: motor command that opens, and negated closes; 0 = the motor is in "
        "linear position mode and gets the gap",
        minimum=0,
        maximum=885,
    )
