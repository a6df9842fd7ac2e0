"""Shapes that show a step of the arm in space: arc of a rotation, edges of a box, path of deltas.

Metres and radians, base axes.
"""

from __future__ import annotations

import itertools
from collections import deque

import numpy as np

from openvla_ros.control.pose import Pose, exponential_map, integrate_twist

ARC_STEP_RAD = 0.1


def arc_points(rotation_vector: np.ndarray, radius_m: float) -> np.ndarray:
    """Return (n, 3) points of an arc about the origin that turns as a rotation vector does.

    Args:
        rotation_vector: (3,) rad; its direction is the axis, its length the angle.
        radius_m: Of the arc, which lies in the plane across the axis.

    Returns:
        n >= 2 points in the order of the turn; (0, 3) for no rotation.
    """
    angle = float(np.linalg.norm(rotation_vector))
    if angle == 0.0:
        return np.zeros((0, 3))
    axis = np.asarray(rotation_vector, float) / angle
    # Any direction across the axis: the base axis that is furthest from it is safe to project.
    across = np.eye(3)[int(np.argmin(np.abs(axis)))]
    start = across - axis * float(across @ axis)
    start *= radius_m / float(np.linalg.norm(start))
    count = max(2, int(np.ceil(angle / ARC_STEP_RAD)) + 1)
    return np.array([exponential_map(axis * a) @ start for a in np.linspace(0.0, angle, count)])


def box_edges(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the 12 edges of a box as (24, 3) points, two per edge.

    Args:
        low: (3,) smallest corner.
        high: (3,) largest corner.
    """
    corners = np.array(list(itertools.product(*zip(low, high, strict=True))))  # (8, 3)
    return np.array(
        [
            point
            for a, b in itertools.combinations(corners, 2)
            if np.count_nonzero(a != b) == 1
            for point in (a, b)
        ]
    )


class DeltaPath:
    """Where the predicted steps lead, one after the other: not where the arm has been."""

    def __init__(self, longest: int = 500) -> None:
        """Start at the base; `longest` poses are kept, the oldest go first."""
        self.poses: deque[Pose] = deque(maxlen=longest)

    def begin(self, start: Pose) -> None:
        """Forget the path, and begin at a pose."""
        self.poses.clear()
        self.poses.append(start)

    def add(self, steps: np.ndarray) -> None:
        """Append the (K, 6) steps of one answer, m and rad, base axes."""
        for step in steps:
            self.poses.append(integrate_twist(self.poses[-1], step[:3], step[3:], 1.0))
