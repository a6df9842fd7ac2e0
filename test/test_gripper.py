"""Gripper: polarity, hysteresis, votes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openvla_ros.control.gripper import (
    GripperLogic,
    franka_grasp_goal,
    franka_move_goal,
    gap_m,
    gripper_command_goal,
    opening,
)
from openvla_ros.errors import MotionError
from openvla_ros.mock_policy import ACTION_SPEC
from openvla_ros.types import ActionSpec


def spec(open_value: float | None, closed_value: float | None) -> ActionSpec:
    return ActionSpec(
        **{**ACTION_SPEC.__dict__, "gripper_open": open_value, "gripper_closed": closed_value}
    )


@pytest.mark.parametrize(
    ("open_value", "closed_value", "value", "expected"),
    [
        (1.0, 0.0, 0.996, 0.996),  # BridgeData
        (0.0, 1.0, 0.996, 0.004),  # inverted
        (-1.0, 1.0, -1.0, 1.0),  # robosuite and LIBERO: -1 opens
        (-1.0, 1.0, 0.0, 0.5),
        (1.0, 0.0, 1.7, 1.0),
        (1.0, 0.0, -0.2, 0.0),
    ],
)
def test_opening_follows_the_polarity_of_the_dataset(
    open_value: float, closed_value: float, value: float, expected: float
) -> None:
    assert opening(value, spec(open_value, closed_value)) == pytest.approx(expected)


def test_unpublished_polarity_is_refused() -> None:
    with pytest.raises(MotionError, match="open"):
        opening(1.0, spec(None, 0.0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gripper_number_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(MotionError):
        opening(value, spec(1.0, 0.0))


def test_the_gap_of_an_opening() -> None:
    assert gap_m(0.0, open_m=0.07, closed_m=0.02) == pytest.approx(0.02)
    assert gap_m(1.0, open_m=0.07, closed_m=0.02) == pytest.approx(0.07)


def test_two_equal_votes_decide() -> None:
    logic = GripperLogic(threshold=0.5, hysteresis=0.1, sticky_steps=2)
    assert logic.update(1.0) is None
    assert logic.update(1.0) is True
    assert logic.update(0.0) is True
    assert logic.update(1.0) is True
    assert logic.update(0.0) is True
    assert logic.update(0.0) is False


def test_nothing_changes_inside_the_band() -> None:
    logic = GripperLogic(threshold=0.5, hysteresis=0.2, sticky_steps=1)
    logic.update(1.0)
    for value in (0.41, 0.59, 0.45, 0.5):
        assert logic.update(value) is True
    assert logic.update(0.39) is False
    for value in (0.41, 0.59):
        assert logic.update(value) is False


def test_an_undecided_vote_interrupts_the_row() -> None:
    logic = GripperLogic(threshold=0.5, hysteresis=0.1, sticky_steps=2)
    logic.update(1.0)
    logic.update(0.5)
    assert logic.update(1.0) is None


def test_reset_forgets_the_decision() -> None:
    logic = GripperLogic(threshold=0.5, hysteresis=0.1, sticky_steps=1)
    logic.update(1.0)
    logic.reset()
    assert logic.is_open is None


@given(st.lists(st.floats(0.0, 1.0), max_size=60), st.integers(1, 5))
def test_a_change_is_always_backed_by_enough_votes(values: list[float], sticky: int) -> None:
    logic = GripperLogic(threshold=0.5, hysteresis=0.1, sticky_steps=sticky)
    before = None
    for k, value in enumerate(values):
        after = logic.update(value)
        if after != before:
            last = values[k + 1 - sticky : k + 1]
            assert len(last) == sticky
            assert all(v > 0.55 for v in last) if after else all(v < 0.45 for v in last)
        before = after


# Goals of gripper servers ------------------------------------------------------------------------


def test_franka_s_command_server_gets_half_the_width() -> None:
    """It doubles what it gets: 0.08 would ask a hand of 80 mm for 160 mm."""
    goal = gripper_command_goal(0.08, is_closing=False, max_effort_n=30.0, takes_half_width=True)
    assert goal.width_m == pytest.approx(0.04)
    plain = gripper_command_goal(0.08, is_closing=False, max_effort_n=30.0)
    assert plain.width_m == pytest.approx(0.08)


@pytest.mark.parametrize("force_n", [0.0, -1.0, math.nan, math.inf])
def test_closing_without_a_force_is_refused(force_n: float) -> None:
    """0 N is the default of the message, and grips nothing."""
    with pytest.raises(MotionError, match="force"):
        gripper_command_goal(0.0, is_closing=True, max_effort_n=force_n)
    with pytest.raises(MotionError, match="force"):
        franka_grasp_goal(closed_m=0.0, open_m=0.08, force_n=force_n)


def test_opening_needs_no_force() -> None:
    assert gripper_command_goal(0.08, is_closing=False, max_effort_n=0.0).force_n == 0.0
    goal = franka_move_goal(0.08, speed_m_s=0.05)
    assert (goal.width_m, goal.speed_m_s, goal.force_n) == (0.08, 0.05, 0.0)


def test_a_grasp_accepts_every_width_from_closed_to_open() -> None:
    """The server's default tolerance of 5 mm fails for everything thicker than a card."""
    goal = franka_grasp_goal(closed_m=0.01, open_m=0.08, force_n=30.0)
    assert (goal.width_m, goal.force_n) == (0.01, 30.0)
    assert goal.width_m + goal.epsilon_outer_m == pytest.approx(0.08)


@pytest.mark.parametrize(
    "call",
    [
        lambda: franka_move_goal(-0.01),
        lambda: franka_move_goal(0.08, speed_m_s=0.0),
        lambda: franka_grasp_goal(closed_m=0.08, open_m=0.08, force_n=30.0),
        lambda: gripper_command_goal(math.nan, is_closing=False, max_effort_n=1.0),
    ],
)
def test_a_goal_that_no_hand_can_reach_is_refused(call: object) -> None:
    with pytest.raises(MotionError):
        call()
