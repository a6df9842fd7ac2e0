"""The last number of an action → open or closed, without chatter."""

from __future__ import annotations

import math

from openvla_ros.errors import MotionError
from openvla_ros.types import ActionSpec


def opening(value: float, spec: ActionSpec) -> float:
    """Return how far the gripper shall open, 0 closed ... 1 open: the one place for polarity.

    Args:
        value: Gripper number in dataset units.
        spec: Says which number means open and which closed.

    Raises:
        MotionError: The spec does not say it, or `value` is not finite.
    """
    if spec.gripper_open is None or spec.gripper_closed is None:
        raise MotionError(
            f"nobody has published which gripper number means open for '{spec.unnorm_key}'."
        )
    if not math.isfinite(value):
        raise MotionError(f"the gripper number is {value}")
    span = spec.gripper_open - spec.gripper_closed
    return min(max((value - spec.gripper_closed) / span, 0.0), 1.0)


def gap_m(opening_0_1: float, *, open_m: float, closed_m: float) -> float:
    """Return the gap between the fingers, metres, for an opening of 0 (closed) ... 1 (open)."""
    return closed_m + opening_0_1 * (open_m - closed_m)


class GripperLogic:
    """Decides open or closed from a stream of openings.

    An answer above `threshold + hysteresis / 2` votes open, one below `threshold - hysteresis / 2`
    votes closed, one between votes for nothing. `sticky_steps` equal votes in a row decide.
    """

    def __init__(self, threshold: float, hysteresis: float, sticky_steps: int) -> None:
        self.threshold = threshold
        self.hysteresis = hysteresis
        self.sticky_steps = sticky_steps
        self._is_open: bool | None = None
        self._vote: bool | None = None
        self._votes = 0

    @property
    def is_open(self) -> bool | None:
        """What was decided last; None before the first decision."""
        return self._is_open

    def update(self, opening_0_1: float) -> bool | None:
        """Return what is decided after one more answer (0 closed ... 1 open)."""
        vote = self._voted(opening_0_1)
        if vote is None:
            self._vote, self._votes = None, 0
            return self._is_open
        self._votes = self._votes + 1 if vote == self._vote else 1
        self._vote = vote
        if self._votes >= self.sticky_steps:
            self._is_open = vote
        return self._is_open

    def reset(self) -> None:
        """Forget the decision and the votes."""
        self._is_open, self._vote, self._votes = None, None, 0

    def _voted(self, opening_0_1: float) -> bool | None:
        if opening_0_1 > self.threshold + self.hysteresis / 2:
            return True
        if opening_0_1 < self.threshold - self.hysteresis / 2:
            return False
        return None
