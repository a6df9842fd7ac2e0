"""Parameters of what is published for people to look at.

This file knows no ROS.
"""

from __future__ import annotations

from dataclasses import dataclass

from openvla_ros.config.parameter import parameter_field


@dataclass(frozen=True)
class ViewConfig:
    """Pictures and markers; without a subscriber they cost nothing."""

    debug_image: bool = parameter_field(
        "publish_debug_image",
        True,
        "draw ~/debug/image while somebody subscribes to it: what the model saw, and its answer",
    )
    debug_markers: bool = parameter_field(
        "publish_debug_markers",
        True,
        "publish ~/debug/markers and ~/debug/path while somebody subscribes to them",
    )
