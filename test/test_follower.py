"""The split process without ROS: what it streams of what the node says, under a fake clock."""

from __future__ import annotations

import numpy as np
import pytest
from follower_rig import SLOW, STEP, TICK_S, Rig, armed, moving
from hypothesis import given, settings
from hypothesis import strategies as st

from openvla_ros.control.states import Drop, Reason, State
from openvla_ros.ros.streaming import LATE_TICK_S


def test_an_executed_action_is_streamed_to_its_displacement_and_then_zeros() -> None:
    rig = armed()
    rig.acts()
    rig.tick(20)
    assert np.allclose(rig.moved, STEP, atol=1e-9), rig.moved - STEP
    assert not np.any(rig.tick(5))


def test_every_step_of_a_chunk_is_streamed() -> None:
    rig = armed()
    steps = np.array([STEP, 2 * STEP, -STEP])
    rig.acts(steps)
    rig.tick(45)
    assert np.allclose(rig.moved, steps.sum(0), rtol=0.02, atol=1e-6), rig.moved


def test_limits_are_those_of_the_parameter_file() -> None:
    rig = armed(**{"limits.linear_speed": 0.02})
    rig.acts()
    speeds = [np.linalg.norm(t[:3]) for t in rig.tick(60)]
    assert max(speeds) == pytest.approx(0.02)
    assert np.allclose(rig.moved, STEP, atol=1e-9)


@pytest.mark.parametrize("drop", [d for d in Drop if d is not Drop.NONE])
def test_an_action_that_the_node_does_not_execute_moves_nothing(drop: Drop) -> None:
    rig = armed()
    rig.acts(drop=drop)
    assert not np.any(rig.tick(20))


@pytest.mark.parametrize("drop", [Drop.DRY_RUN, Drop.HOLD, Drop.FAULT])
def test_an_action_dropped_because_the_node_stands_ends_the_one_before(drop: Drop) -> None:
    rig = moving()
    rig.acts(drop=drop)
    rig.tick(6)
    assert not rig.is_moving


def test_nothing_moves_before_the_node_was_heard() -> None:
    rig = Rig()
    rig.acts()
    assert not np.any(rig.tick(10))
    assert rig.follower.verdict().state is State.IDLE


def test_a_dry_run_of_the_node_is_a_dry_run_here() -> None:
    rig = Rig()
    rig.says(motion_enabled=False)
    rig.acts(drop=Drop.DRY_RUN)
    assert not np.any(rig.tick(10))
    assert "dry run" in rig.follower.verdict().detail


def test_the_first_action_counts_although_its_status_is_still_on_the_way() -> None:
    rig = Rig()
    rig.says(State.IDLE, Reason.NO_IMAGE)
    rig.follower.release()
    rig.tick()
    rig.acts()
    assert np.any(rig.tick(5))


def test_a_status_that_an_action_has_overtaken_stops_nothing() -> None:
    rig = armed(**SLOW)
    rig.tick(5)
    rig.acts()
    rig.says(motion_enabled=False, age_s=0.05)
    assert np.any(rig.tick(5))


def test_a_status_counts_although_the_clock_was_set_back() -> None:
    rig = moving()
    rig.now_s += 0.5
    rig.says()
    rig.now_s -= 0.5
    rig.says(State.FAULT, Reason.MODEL_ERROR)
    assert not np.any(rig.tick(5))


def test_an_action_older_than_the_status_that_holds_moves_nothing() -> None:
    rig = armed()
    rig.says(State.HOLD, Reason.STALE_IMAGE)
    rig.acts(decided_ns=rig.stamp(0.1))
    assert not np.any(rig.tick(10))


# Stopping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "reason"),
    [(State.HOLD, Reason.STALE_IMAGE), (State.IDLE, Reason.NO_INSTRUCTION)],
)
def test_a_node_that_holds_ramps_the_twist_to_zero_in_decay_time(
    state: State, reason: Reason
) -> None:
    rig = moving()
    before = np.linalg.norm(rig.twists[-1])
    rig.says(state, reason)
    ramp = [float(np.linalg.norm(t)) for t in rig.tick(6)]
    assert ramp == sorted(ramp, reverse=True) and 0.0 < ramp[1] < before
    assert ramp[-1] == 0.0


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (State.HOLD, Reason.OPERATOR),
        (State.FAULT, Reason.MODEL_ERROR),
        (State.READY, Reason.OK),
        (State.UNCONFIGURED, Reason.OK),
    ],
)
def test_a_node_that_stops_at_once_cuts_the_twist_at_the_next_tick(
    state: State, reason: Reason
) -> None:
    rig = moving()
    rig.says(state, reason)
    assert not np.any(rig.tick(10))


def test_leaving_motion_enabled_cuts_the_twist_at_the_next_tick() -> None:
    rig = moving()
    rig.says(motion_enabled=False)
    assert not np.any(rig.tick(10))


def test_a_new_instruction_drops_what_is_left() -> None:
    rig = moving()
    rig.says(instruction="put it back")
    rig.tick(6)
    assert not rig.is_moving


def test_a_new_instruction_drops_nothing_where_the_node_goes_on() -> None:
    rig = moving(on_instruction_change="continue")
    rig.says(instruction="put it back")
    rig.tick(6)
    assert rig.is_moving


def test_a_silent_node_stops_the_arm_within_node_timeout_and_zeros_go_on() -> None:
    rig = moving(node_timeout=0.8)
    said = rig.now_s - 10 * TICK_S
    while rig.is_moving:
        rig.tick()
        assert rig.now_s - said <= 0.8 + 0.1 + 2 * TICK_S, "still moving"
    assert rig.now_s - said > 0.8, "it stopped for another reason than the silence"
    assert rig.follower.verdict().reason is Reason.MODEL_HANG
    assert not np.any(rig.tick(500))


def test_a_node_that_comes_back_with_motion_goes_on_with_its_next_action_only() -> None:
    rig = moving()
    rig.tick(80)
    assert not rig.is_moving
    rig.says()
    assert not np.any(rig.tick(20))
    rig.acts()
    assert np.any(rig.tick(5))


def test_a_respawned_node_in_dry_run_moves_nothing() -> None:
    rig = moving()
    rig.tick(80)
    for state in (State.UNCONFIGURED, State.READY, State.RUNNING):
        rig.says(state, motion_enabled=False)
        rig.acts(drop=Drop.DRY_RUN)
        assert not np.any(rig.tick(20))


def test_nothing_is_published_after_the_end() -> None:
    rig = moving()
    rig.follower.end()
    rig.acts()
    assert rig.tick(5) == []


# Time ---------------------------------------------------------------------------------------------


def test_a_process_that_was_stopped_does_not_go_on_with_the_old_action() -> None:
    rig = moving()
    rig.tick(period_s=LATE_TICK_S + TICK_S)
    assert not rig.is_moving
    assert not np.any(rig.tick(20))


def test_actions_that_waited_while_the_process_was_stopped_are_not_streamed() -> None:
    rig = moving()
    late = {"image_ns": rig.stamp(0.15), "decided_ns": rig.stamp()}
    rig.now_s += 0.9  # max_action_age is 0.6 s, node_timeout 1 s
    rig.acts(**late)
    assert not np.any(rig.tick(20))
    assert rig.follower.verdict().reason is Reason.STALE_IMAGE


@pytest.mark.parametrize("age_s", [-3.0, 3.0])
def test_a_node_with_another_clock_moves_nothing_and_is_told(age_s: float) -> None:
    rig = Rig()
    rig.follower.release()
    rig.says(age_s=age_s)
    rig.acts(decided_ns=rig.stamp(age_s))
    assert not np.any(rig.tick(10))
    verdict = rig.follower.verdict()
    assert verdict.reason is Reason.CLOCK_JUMP and "3.00 s" in verdict.detail


def test_a_clock_jump_stops_the_arm_until_the_node_speaks_again() -> None:
    rig = moving()
    rig.follower.clock_jumped()
    assert not np.any(rig.tick(5))
    rig.says()
    rig.acts()
    assert np.any(rig.tick(5))


def test_an_action_that_arrives_twice_is_streamed_once() -> None:
    rig = armed()
    stamps = {"image_ns": rig.stamp(0.1), "decided_ns": rig.stamp()}
    rig.acts(**stamps)
    rig.tick(5)
    rig.acts(**stamps)
    rig.tick(30)
    assert np.allclose(rig.moved, STEP, atol=1e-9), rig.moved


# What cannot be streamed --------------------------------------------------------------------------


def test_an_action_in_another_frame_is_refused_with_both_names() -> None:
    rig = armed()
    rig.acts(frame_id="world")
    assert not np.any(rig.tick(10))
    detail = rig.follower.verdict().detail
    assert "world" in detail and "base" in detail


@pytest.mark.parametrize(
    "change",
    [
        {"steps": np.full((1, 6), np.nan)},
        {"steps": np.zeros((0, 6))},
        {"step_s": float("nan")},
        {"step_s": 0.0},
        {"step_s": float("inf")},
    ],
)
def test_an_action_without_numbers_moves_nothing(change: dict) -> None:
    rig = armed()
    rig.acts(**change)
    assert not np.any(rig.tick(10))
    assert rig.follower.verdict().reason is Reason.NON_FINITE


def test_a_workspace_without_a_pose_holds() -> None:
    rig = armed(**{"limits.workspace_min": (-1.0,) * 3, "limits.workspace_max": (1.0,) * 3})
    rig.acts()
    assert not np.any(rig.tick(10))
    assert rig.follower.verdict().reason is Reason.TF_UNAVAILABLE


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-0.03, 0.03), st.integers(1, 30), st.integers(1, 3)),
        min_size=1,
        max_size=6,
    )
)
def test_the_arm_never_goes_further_than_the_actions_that_were_executed(
    answers: list[tuple[float, int, int]],
) -> None:
    """Whatever the time between the answers and the length of the chunks."""
    rig = armed()
    for size, ticks, length in answers:
        rig.says()
        rig.acts(np.tile([size, 0.0, 0.0, 0.0, 0.0, 0.0], (length, 1)))
        rig.tick(ticks)
    rig.tick(200)
    path = float(np.sum(np.abs(rig.twists))) * TICK_S
    assert path <= sum(abs(size) * length for size, _, length in answers) + 1e-9
