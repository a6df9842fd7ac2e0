"""The last look at a twist before it leaves: finite, and never faster than the limits.

Acceleration limits, the workspace box and the dead band are not here yet: a controller behind this
node must limit acceleration itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SpeedLimits:
    """Norms that the twist never exceeds, m/s and rad/s."""

    linear_m_s: float = 0.25
    angular_rad_s: float = 1.0

    def shortest_time_s(self, step: np.ndarray) -> float:
        """Return the time that a (6,) displacement needs at these speeds."""
        return float(
            max(
                np.linalg.norm(step[0:3]) / self.linear_m_s,
                np.linalg.norm(step[3:6]) / self.angular_rad_s,
            )
        )


class SafetyFilter:
    """Lets a twist pass, slowed down to the limits in its own direction, or stops it.

    Attributes:
        limits: May be replaced at any time.
        refused: Twists with NaN or infinity, replaced by zero.
        slowed: Twists that were too fast.
    """

    def __init__(self, limits: SpeedLimits) -> None:
        self.limits = limits
        self.refused = 0
        self.slowed = 0

    def apply(self, twist: np.ndarray) -> np.ndarray:
        """Return a (6,) twist (m/s, rad/s) that is finite and within the limits.

        Both halves are scaled by the same factor, so that the path of the end-effector is kept.
        """
        if twist.shape != (6,) or not np.isfinite(twist).all():
            self.refused += 1
            return np.zeros(6)
        excess = self.limits.shortest_time_s(twist)  # > 1: so many times too fast
        # Streamed twists sit exactly at the limit; rounding must not count as an intervention.
        if excess > 1.0 + 1e-9:
            self.slowed += 1
        return twist / max(excess, 1.0)
