"""Parameters of `action_to_twist`, the process that streams the twist beside the node.

This file knows no ROS.
"""

from __future__ import annotations

from dataclasses import dataclass

from openvla_ros.config.parameter import parameter_field


@dataclass(frozen=True)
class SplitConfig:
    """What the streaming process does about the node it follows."""

    node_timeout: float = parameter_field(
        "node_timeout",
        1.0,
        "action_to_twist only: the arm stops when openvla_node is silent for so long",
        unit="s",
        # The node speaks at 2 Hz at least.
        minimum=0.6,
        maximum=10.0,
    )
