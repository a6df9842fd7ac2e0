"""Recorded actions on a virtual clock: the arm goes where they lead, and no further."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from motion_episodes import SPEC, angle_deg, composed, octo_actions, turned

from openvla_ros.config.motion import GripperConfig, MotionConfig
from openvla_ros.control.pose import Pose
from openvla_ros.control.safety import Intervention
from openvla_ros.control.states import Drop
from openvla_ros.errors import MotionError
from openvla_ros.evaluation.motion.motion_replay import (
    StreamedMotion,
    commanded_steps,
    pose_of_state,
    stream_actions,
    without_unknown_box,
)

EXACT = MotionConfig(speed_scale=1.0, twist_mode="exact")
TOO_FAST = 13  # turns by 0.26 rad in one step: over 1 rad/s, and over the clip of 0.25 rad
FORWARD = np.array([0.02, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])


def streamed(actions, motion: MotionConfig = EXACT, spec=SPEC, **options) -> StreamedMotion:
    return stream_actions(np.asarray(actions), spec, motion, GripperConfig(), **options)


def test_a_recording_within_the_limits_ends_where_its_deltas_lead() -> None:
    for number, actions in enumerate(octo_actions()[::4]):
        end, expected = streamed(actions).end, composed(actions)
        distance_mm = np.linalg.norm(end.position - expected.position) * 1e3
        assert distance_mm < 1e-6, f"episode {4 * number}: {distance_mm} mm"
        assert angle_deg(end.rotation, expected.rotation) < 0.05, f"episode {4 * number}"


def test_the_twists_add_up_to_what_the_limits_allow_within_2_percent() -> None:
    actions = octo_actions()[TOO_FAST]
    moved = streamed(actions)
    fastest = EXACT.angular_speed * 0.2
    turns = np.clip(commanded_steps(actions, SPEC, EXACT)[:, 3:], -0.25, 0.25)
    feasible = turns / np.maximum(np.linalg.norm(turns, axis=1, keepdims=True) / fastest, 1.0)
    lost = np.linalg.norm(moved.reached[3:] - feasible.sum(axis=0))
    assert lost <= 0.02 * np.abs(feasible).sum(), f"{lost} rad"
    assert np.linalg.norm(moved.asked[3:] - moved.reached[3:]) > 0.02, "it is the episode too fast"


@settings(max_examples=12, deadline=None)
@given(
    actions=arrays(np.float64, (3, 7), elements=st.floats(-0.1, 0.1)),
    mode=st.sampled_from(["exact", "stretch"]),
)
def test_no_axis_goes_further_than_its_steps(actions: np.ndarray, mode: str) -> None:
    moved = streamed(actions, dataclasses.replace(EXACT, twist_mode=mode))
    steps = np.array([plan.steps[0] for plan in moved.plans])
    slack = 0.02 * np.abs(steps).sum(axis=0) + 1e-9  # what the acceleration limit may move
    assert (moved.reached <= np.maximum(steps, 0.0).sum(axis=0) + slack).all()
    assert (moved.reached >= np.minimum(steps, 0.0).sum(axis=0) - slack).all()
    np.testing.assert_allclose(moved.asked, steps.sum(axis=0), atol=1e-12)


def test_the_path_is_the_integral_of_the_twists() -> None:
    moved = streamed(octo_actions()[3])
    tick_s = 1.0 / EXACT.stream_rate
    ways = np.cumsum(moved.twists[:, :3] * tick_s, axis=0)
    np.testing.assert_allclose([pose.position for pose in moved.poses[1:]], ways, atol=1e-12)
    np.testing.assert_allclose(np.diff(moved.times_s), tick_s)
    assert len(moved.poses) == len(moved.times_s) + 1 and not moved.twists[-1].any()


def test_steps_that_are_too_large_are_counted_axis_by_axis() -> None:
    actions = octo_actions()[0] * [5, 5, 5, 5, 5, 5, 1]
    moved = streamed(actions)
    limits = np.repeat([EXACT.delta_position, EXACT.delta_rotation], 3)
    np.testing.assert_array_equal(moved.clipped, np.abs(actions[:, :6]) > limits)
    assert moved.clipped.any()
    assert moved.report.counts[Intervention.STEP_CLIP] == moved.clipped.any(axis=1).sum()


def test_a_step_without_recording_stops_the_arm_and_the_next_one_starts_it_again() -> None:
    actions = np.tile(FORWARD, (6, 1))
    actions[2:4] = np.nan
    moved = streamed(actions)
    assert [plan.refusal for plan in moved.plans[2:4]] == [Drop.NON_FINITE] * 2
    assert moved.is_executed.tolist() == [True, True, False, False, True, True]
    speed = np.linalg.norm(moved.twists[:, :3], axis=1)
    stopped = speed[(moved.times_s > 0.55) & (moved.times_s < 0.79)]
    assert stopped.max() == 0.0 and speed[moved.times_s > 0.81].max() > 0.09
    assert moved.end.position[0] == pytest.approx(4 * 0.02, rel=1e-6)


def test_an_answer_with_an_invalid_id_is_not_executed() -> None:
    moved = streamed(np.tile(FORWARD, (3, 1)), is_valid=np.array([True, False, True]))
    assert moved.plans[1].refusal is Drop.INVALID_TOKEN
    assert moved.is_executed.tolist() == [True, False, True]


def test_the_speed_scale_is_the_callers() -> None:
    moved = streamed(np.tile(FORWARD, (4, 1)), dataclasses.replace(EXACT, speed_scale=0.5))
    assert moved.end.position[0] == pytest.approx(0.04, rel=1e-6)


def test_actions_that_come_twice_as_fast_lose_half_of_every_step_but_the_last() -> None:
    moved = streamed(np.tile(FORWARD, (5, 1)), rate_hz=10.0)
    assert moved.end.position[0] == pytest.approx(0.02 * (4 * 0.5 + 1), rel=0.03)


def test_actions_can_be_due_at_times_of_their_own() -> None:
    moved = streamed(np.tile(FORWARD, (3, 1)), due_s=np.array([0.0, 0.2, 1.0]))
    speed = np.linalg.norm(moved.twists[:, :3], axis=1)
    assert speed[(moved.times_s > 0.5) & (moved.times_s < 0.99)].max() == 0.0
    assert speed[(moved.times_s > 1.01) & (moved.times_s < 1.15)].min() > 0.05
    assert moved.end.position[0] == pytest.approx(0.06, rel=1e-6)


def test_tool_axes_follow_the_integrated_pose() -> None:
    """Forward, a quarter turn about z, and forward again.

    The turn is not quite done when the step after it is planned: acceleration takes 20 ms.
    """
    tool = dataclasses.replace(SPEC, translation_frame="ee", rotation_frame="ee")
    turn = np.zeros((10, 7))
    turn[:, 5] = np.pi / 20
    ahead = np.tile(FORWARD, (2, 1))
    moved = streamed(np.vstack([ahead, turn, ahead]), spec=tool)
    np.testing.assert_allclose(moved.end.position, [0.04, 0.04, 0.0], atol=1e-3)
    started = streamed(ahead, spec=tool, start=Pose(np.ones(3), turned(np.array([0, 0, np.pi]))))
    np.testing.assert_allclose(started.end.position, [0.96, 1.0, 1.0], atol=1e-9)


def test_a_workspace_ends_the_path_at_its_face() -> None:
    box = dataclasses.replace(EXACT, workspace_min=(-0.1, -0.1, -0.1), workspace_max=(0.1,) * 3)
    moved = streamed(np.tile(FORWARD, (8, 1)), box, start=Pose())
    assert 0.07 < moved.end.position[0] <= 0.1
    assert moved.report.counts[Intervention.WORKSPACE] > 0
    assert without_unknown_box(box, Pose()) is box
    assert not without_unknown_box(box, None).has_workspace


def test_an_unknown_spec_says_which_parameters_to_give() -> None:
    spec = dataclasses.replace(SPEC, action_hz=None, rotation_form=None)
    with pytest.raises(MotionError, match=r"action_spec.rotation_form, action_hz"):
        streamed([FORWARD], spec=spec)


@pytest.mark.parametrize("shape", [(3, 6), (0, 7), (7,)])
def test_actions_without_seven_numbers_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MotionError, match="roll pitch yaw gripper"):
        streamed(np.zeros(shape))


def test_the_gripper_decides_after_its_votes() -> None:
    actions = np.tile(FORWARD, (6, 1))
    actions[3:, 6] = 0.0
    assert streamed(actions).gripper_is_open == (None, True, True, True, False, False)


def test_commanded_steps_have_no_limits_and_leave_out_what_was_not_recorded() -> None:
    actions = octo_actions()[0] * [9, 9, 9, 1, 1, 1, 1]
    actions[4, 2] = np.nan
    steps = commanded_steps(actions, SPEC, EXACT)
    assert np.isnan(steps[4]).all() and np.isfinite(np.delete(steps, 4, axis=0)).all()
    np.testing.assert_allclose(np.delete(steps, 4, 0)[:, :3], np.delete(actions, 4, 0)[:, :3])


def test_steps_and_states_are_turned_into_the_axes_of_this_robot() -> None:
    motion = dataclasses.replace(EXACT, action_rotation_rpy=(0.0, 0.0, np.pi / 2))
    np.testing.assert_allclose(
        commanded_steps(FORWARD[None], SPEC, motion)[0], [0, 0.02, 0, 0, 0, 0], atol=1e-12
    )
    pose = pose_of_state(np.array([0.3, 0.0, 0.2, 0.0, 0.0, 0.0, 1.0]), motion)
    assert pose is not None
    np.testing.assert_allclose(pose.position, [0.0, 0.3, 0.2], atol=1e-12)
    np.testing.assert_allclose(pose.rotation, turned(np.array([0, 0, np.pi / 2])), atol=1e-12)
    assert pose_of_state(np.full(7, np.nan), motion) is None
    assert pose_of_state(np.zeros(3), motion) is None
