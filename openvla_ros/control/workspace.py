"""The box that the end effector does not leave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openvla_ros.errors import MotionError


@dataclass(frozen=True)
class Workspace:
    """A box in the base frame.

    Inside nothing changes. Less than `margin_m` from a face the twist loses what points out of it,
    as fast as the acceleration limits allow; at the face itself it loses it at once.

    Attributes:
        minimum: (3,) metres.
        maximum: (3,) metres.
        margin_m: Should exceed the braking distance: v²/2a is 6.3 mm at the default limits.

    Raises:
        MotionError: The box, less its margin, is empty or not finite.
    """

    minimum: tuple[float, float, float]
    maximum: tuple[float, float, float]
    margin_m: float = 0.02

    def __post_init__(self) -> None:
        size = np.subtract(self.maximum, self.minimum)
        is_room = self.margin_m >= 0.0 and bool((size > 2.0 * self.margin_m).all())
        if not (np.isfinite(size).all() and is_room):
            raise MotionError(
                f"the workspace {list(self.minimum)} ... {list(self.maximum)} m with a margin of "
                f"{self.margin_m} m is empty: every maximum must exceed its minimum by more than "
                "two margins."
            )

    def outward(self, twist: np.ndarray, position: np.ndarray, margin_m: float) -> np.ndarray:
        """Return (6,) bool: axes along which the twist leaves the box less `margin_m`.

        Args:
            twist: (6,) m/s and rad/s, base axes.
            position: (3,) metres, base frame.
            margin_m: Distance from the face at which it starts.
        """
        velocity = twist[0:3]
        leaves = (position >= np.subtract(self.maximum, margin_m)) & (velocity > 0.0)
        leaves |= (position <= np.add(self.minimum, margin_m)) & (velocity < 0.0)
        return np.concatenate([leaves, np.zeros(3, dtype=bool)])

    def clamped(self, position: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Return (3,) `position` cut where the way from `before` leaves the box less its margin.

        What is outside already may come back or stay, and never leaps inside.
        """
        low, high = np.add(self.minimum, self.margin_m), np.subtract(self.maximum, self.margin_m)
        return np.clip(position, np.minimum(low, before), np.maximum(high, before))
