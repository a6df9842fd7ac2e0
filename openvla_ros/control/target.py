"""A twist → the pose that an impedance controller shall hold.

Such controllers (CRISP, FZI) follow a pose with a spring. Adding every step to the *measured* pose
would lose what the spring lags behind, so steps are added to the previous target; a leash keeps the
target near the arm, so that an arm that is held back does not store a leap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openvla_ros.control.displacement import rotation_vector
from openvla_ros.control.pose import Pose, exponential_map, integrate_twist
from openvla_ros.control.workspace import Workspace


@dataclass(frozen=True)
class Leash:
    """How far the target may be from the measured pose.

    The defaults are the largest errors that CRISP's controllers act on.
    """

    position_m: float = 0.1
    rotation_rad: float = 0.5


class TargetPose:
    """Integrates published twists from the pose at which it began.

    Attributes:
        leash: May be replaced at any time.
        was_pulled: True when the leash shortened the last step.
    """

    def __init__(self, leash: Leash) -> None:
        self.leash = leash
        self.was_pulled = False
        self._target: Pose | None = None
        self._twist = np.zeros(6)
        self._last_tick_s: float | None = None

    def follow(
        self, twist: np.ndarray, now_s: float, measured: Pose, box: Workspace | None = None
    ) -> Pose:
        """Return the target of this tick; the first one is the measured pose.

        Args:
            twist: (6,) m/s and rad/s, base axes, that holds from now until the next tick.
            now_s: Steady time, seconds.
            measured: Where the end effector is.
            box: The target does not leave it, less its margin; None = it may go anywhere.
        """
        last, last_s = self._twist, self._last_tick_s
        self._twist, self._last_tick_s = np.array(twist, dtype=np.float64), now_s
        if self._target is None or last_s is None:
            self._target, self.was_pulled = measured, False
            return measured
        moved = integrate_twist(self._target, last[0:3], last[3:6], max(now_s - last_s, 0.0))
        position, position_pulled = _pulled(
            moved.position - measured.position, self.leash.position_m
        )
        turn, turn_pulled = _pulled(
            rotation_vector(moved.rotation @ measured.rotation.T), self.leash.rotation_rad
        )
        self.was_pulled = position_pulled or turn_pulled
        position = measured.position + position if position_pulled else moved.position
        rotation = exponential_map(turn) @ measured.rotation if turn_pulled else moved.rotation
        if box is not None:
            position = box.clamped(position, self._target.position)
        self._target = Pose(position, rotation)
        return self._target

    def reset(self) -> None:
        """Begin again at the measured pose."""
        self._target, self._last_tick_s, self.was_pulled = None, None, False
        self._twist = np.zeros(6)


def _pulled(offset: np.ndarray, longest: float) -> tuple[np.ndarray, bool]:
    """A (3,) offset shortened to a length, and whether it was."""
    length = float(np.linalg.norm(offset))
    return (offset * (longest / length), True) if length > longest else (offset, False)
