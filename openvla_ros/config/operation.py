"""Parameters of who moves the arm: where commands go, and what the node insists on.

This file knows no ROS.
"""

from __future__ import annotations

from dataclasses import dataclass

from openvla_ros.config.parameter import fixed_field, parameter_field


@dataclass(frozen=True)
class OperationConfig:
    """Output, the checks before and while the arm moves, and the pose they need."""

    output: str = fixed_field(
        "output",
        "twist",
        "what commands the arm: ~/twist_cmd, ~/pose_cmd, or none: another process streams ~/action",
        choices=("twist", "pose", "none"),
    )
    require_controller: bool = parameter_field(
        "require_controller",
        True,
        "motion needs a subscriber on the command topic, and nobody else who publishes there",
    )
    controller_node: str = parameter_field(
        "controller_node",
        "",
        "name of the node that counts as controller, e.g. /servo_node; empty = any but recorders, "
        "monitors and tools",
    )
    deadman_required: bool = parameter_field(
        "deadman_required", False, "motion needs true on ~/enable, again and again"
    )
    deadman_timeout: float = parameter_field(
        "deadman_timeout",
        0.3,
        "silence on ~/enable that counts as released",
        unit="s",
        minimum=0.05,
        maximum=2.0,
    )
    ee_pose_source: str = fixed_field(
        "ee_pose_source",
        "topic",
        "where the end-effector pose comes from: PoseStamped on `ee_pose`, or tf2",
        choices=("topic", "tf"),
    )
    ee_frame: str = fixed_field(
        "ee_frame", "", "frame of the end effector, e.g. fr3_hand_tcp; ee_pose_source tf needs it"
    )
    on_instruction_change: str = parameter_field(
        "on_instruction_change",
        "restart",
        "restart: the arm stops at a new instruction; continue: it goes on until the next answer",
        choices=("restart", "continue"),
    )
