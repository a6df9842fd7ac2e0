"""Parameters of what moves: the twist, its limits, the gripper.

This file knows no ROS.
"""

from __future__ import annotations

from dataclasses import dataclass

from openvla_ros.config.parameter import fixed_field, parameter_field


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
