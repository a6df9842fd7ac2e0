"""The last number of an action → open or closed, without chatter."""

from __future__ import annotations

import math
from dataclasses import dataclass

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


@dataclass(frozen=True)
class GripperGoal:
    """A goal for an action server, of `control_msgs/GripperCommand` or Franka's Move and Grasp.

    Attributes:
        width_m: Gap between the fingers, or what the server takes for it (see the function).
        force_n: Newton; 0 when the server is not asked to grip.
        speed_m_s: Speed of the fingers relative to each other.
        epsilon_inner_m: How much narrower than `width_m` the grasped object may be.
        epsilon_outer_m: How much wider it may be.
    """

    width_m: float
    force_n: float = 0.0
    speed_m_s: float = 0.0
    epsilon_inner_m: float = 0.0
    epsilon_outer_m: float = 0.0


def gripper_command_goal(
    width_m: float, *, is_closing: bool, max_effort_n: float, takes_half_width: bool = False
) -> GripperGoal:
    """Return a `control_msgs/GripperCommand`: position = `width_m`, max_effort = `force_n`.

    Args:
        width_m: Gap between the fingers that is wanted.
        is_closing: True when the fingers shall hold something afterwards.
        max_effort_n: Force of the grip.
        takes_half_width: True for Franka's `~/gripper_action`, which doubles the position it gets.

    Raises:
        MotionError: Closing without a positive force: such a grip holds nothing.

    Source: franka_ros2, franka_gripper: the server of `~/gripper_action`.
    """
    _require_goal(width_m, max_effort_n, is_closing)
    position_m = width_m / 2.0 if takes_half_width else width_m
    return GripperGoal(position_m, max_effort_n)


def franka_move_goal(width_m: float, *, speed_m_s: float = 0.1) -> GripperGoal:
    """Return a goal of Franka's `~/move`, which opens and never grips: the whole width.

    Raises:
        MotionError: A width or speed that no hand has.
    """
    _require_goal(width_m, 0.0, is_closing=False)
    _require_speed(speed_m_s)
    return GripperGoal(width_m, speed_m_s=speed_m_s)


def franka_grasp_goal(
    *, closed_m: float, open_m: float, force_n: float, speed_m_s: float = 0.1
) -> GripperGoal:
    """Return a goal of Franka's `~/grasp` for an object of unknown width.

    The hand reports success only for a width within its tolerance, whose default of 5 mm fails for
    anything thicker than a card: here every width from closed to open is a grasp.

    Raises:
        MotionError: No positive force, or no room between closed and open.
    """
    _require_goal(closed_m, force_n, is_closing=True)
    _require_speed(speed_m_s)
    if not open_m > closed_m:
        raise MotionError(f"the open gap ({open_m} m) must exceed the closed gap ({closed_m} m)")
    return GripperGoal(closed_m, force_n, speed_m_s, 0.005, open_m - closed_m)


def _require_goal(width_m: float, force_n: float, is_closing: bool) -> None:
    if not (math.isfinite(width_m) and width_m >= 0.0):
        raise MotionError(f"the gap between the fingers is {width_m} m; it must be 0 or more")
    if not (math.isfinite(force_n) and force_n >= 0.0) or (is_closing and force_n == 0.0):
        raise MotionError(
            f"the grip force is {force_n} N; closing needs a positive one (gripper.max_effort), "
            "because a grip of 0 N holds nothing."
        )


def _require_speed(speed_m_s: float) -> None:
    if not (math.isfinite(speed_m_s) and speed_m_s > 0.0):
        raise MotionError(f"the speed of the fingers is {speed_m_s} m/s; it must be positive")


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
