"""Actions from twists, poses and numbers: each convention against motion that is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openvla_ros.control.displacement import euler_matrix, rotation_vector
from openvla_ros.control.pose import exponential_map, rotation_to_quaternion
from openvla_ros.data.bag_numbers import ANSWER, ARRAY, FLOAT, POSE, TWIST
from openvla_ros.data.bag_tracks import Track
from openvla_ros.data.recorded_actions import recorded_actions, recorded_states, roll_pitch_yaw
from openvla_ros.data.topics import ActionSource, GripperSource, TopicConfig
from openvla_ros.errors import ConfigurationError

PERIOD = 200_000_000
STEPS = np.arange(4, dtype=np.int64) * PERIOD
NO_GRIPPER = GripperSource(topic="none")


def track(kind: str, stamps: np.ndarray, values: np.ndarray) -> Track:
    stamps = np.asarray(stamps, np.int64)
    return Track("/it", kind, stamps, stamps, np.asarray(values, np.float64), has_header=True)


def actions_of(
    action: Track, source: ActionSource, finger: GripperSource = NO_GRIPPER, **others: Track
) -> np.ndarray:
    config = TopicConfig(rate_hz=5.0, action=source, gripper=finger)
    return recorded_actions({"action": action, **others}, config, STEPS, PERIOD)


@pytest.mark.parametrize("per_step", [1, 4, 10])
def test_a_velocity_integrates_to_the_displacement_of_the_step(per_step: int) -> None:
    """However fast the twist runs: constant within a step, so the integral is known exactly."""
    moves = np.random.default_rng(0).normal(scale=0.02, size=(4, 6))
    stamps = np.arange(4 * per_step) * (PERIOD // per_step)
    twist = track(TWIST, stamps, np.repeat(moves / 0.2, per_step, axis=0))
    got = actions_of(twist, ActionSource(rotation="euler_rate"))
    np.testing.assert_allclose(got, moves, rtol=1e-12)


def test_a_lost_image_makes_its_step_longer_and_its_motion_too() -> None:
    stamps = np.arange(40) * (PERIOD // 10)
    twist = track(TWIST, stamps, np.full((40, 6), 0.1))
    config = TopicConfig(5.0, action=ActionSource(rotation="euler_rate"), gripper=NO_GRIPPER)
    got = recorded_actions({"action": twist}, config, STEPS[[0, 1, 3]], PERIOD)
    np.testing.assert_allclose(got[:, 0], [0.02, 0.04, 0.02], rtol=1e-12)


def test_an_angular_velocity_turns_about_base_axes() -> None:
    """First about x, then about z: the later turn is multiplied from the left."""
    twist = track(TWIST, [0, PERIOD // 2], [[0, 0, 0, 5.0, 0, 0], [0, 0, 0, 0, 0, 8.0]])
    turn = exponential_map(np.array([0, 0, 0.8])) @ exponential_map(np.array([0.5, 0, 0]))
    as_euler = actions_of(twist, ActionSource(rotation="rotvec_rate"))[0, 3:]
    np.testing.assert_allclose(euler_matrix(as_euler), turn, atol=1e-12)
    np.testing.assert_allclose(as_euler, [0.5, 0.0, 0.8], atol=1e-12)
    source = ActionSource(rotation="rotvec_rate", rotation_form="rotvec")
    as_vector = actions_of(twist, source)[0, 3:]
    np.testing.assert_allclose(as_vector, rotation_vector(turn), atol=1e-12)
    assert np.abs(as_vector - as_euler).max() > 0.05, "the two forms differ, or this tests nothing"


def test_where_no_velocity_was_recorded_the_step_has_no_action() -> None:
    twist = track(TWIST, [0], [[0.1] * 6])
    got = actions_of(twist, ActionSource(rotation="euler_rate"))
    np.testing.assert_allclose(got[0], 0.02)
    np.testing.assert_allclose(got[1], 0.01, err_msg="held for one and a half steps")
    assert np.isnan(got[2:]).all()
    held = actions_of(twist, ActionSource(rotation="euler_rate", hold_s=10.0))
    np.testing.assert_allclose(held, 0.02)


def poses(eulers: np.ndarray, positions: np.ndarray) -> Track:
    quaternions = [rotation_to_quaternion(euler_matrix(euler)) for euler in eulers]
    return track(POSE, STEPS, np.concatenate([positions, quaternions], axis=1))


def test_poses_give_the_difference_under_each_convention() -> None:
    random = np.random.default_rng(1)
    eulers, positions = random.uniform(-0.8, 0.8, (4, 3)), random.normal(size=(4, 3))
    recorded = poses(eulers, positions)
    got = {
        rotation: actions_of(recorded, ActionSource(rotation=rotation))
        for rotation in ("euler_difference", "euler", "rotvec")
    }
    for actions in got.values():
        np.testing.assert_allclose(actions[:3, :3], np.diff(positions, axis=0), atol=1e-12)
        assert np.isnan(actions[3]).all(), "there is no pose after the last one"
    np.testing.assert_allclose(got["euler_difference"][:3, 3:], np.diff(eulers, axis=0), atol=1e-9)
    for step in range(3):
        turn = euler_matrix(eulers[step + 1]) @ euler_matrix(eulers[step]).T
        np.testing.assert_allclose(euler_matrix(got["euler"][step, 3:]), turn, atol=1e-9)
        np.testing.assert_allclose(exponential_map(got["rotvec"][step, 3:]), turn, atol=1e-9)


def test_a_difference_of_angles_goes_the_short_way_round() -> None:
    eulers = np.array([[0, 0, 3.1], [0, 0, -3.1], [0, 0, -3.0], [0, 0, -3.0]])
    got = actions_of(poses(eulers, np.zeros((4, 3))), ActionSource(rotation="euler_difference"))
    np.testing.assert_allclose(got[:3, 5], [2 * np.pi - 6.2, 0.1, 0.0], atol=1e-9)


def test_states_as_numbers_are_relabelled_as_openvla_does_it() -> None:
    states = np.random.default_rng(2).uniform(-1, 1, size=(4, 7))
    source = ActionSource(differences=True, rotation="euler_difference")
    got = actions_of(track(ARRAY, STEPS, states), source)
    np.testing.assert_array_equal(got[:3], states[1:, :6] - states[:-1, :6])
    assert got.shape == (4, 6)


def test_a_pose_that_does_not_come_is_no_standstill() -> None:
    recorded = track(POSE, STEPS[[0, 1, 3]], [[0.1 * i, 0, 0, 0, 0, 0, 1] for i in range(3)])
    got = actions_of(recorded, ActionSource(rotation="euler"))
    assert np.isnan(got[1]).all(), "at step 2 the pose is that of step 1"
    np.testing.assert_allclose(got[0, 0], 0.1)


def test_numbers_are_taken_as_they_are_and_a_lost_one_leaves_its_row_open() -> None:
    rows = np.random.default_rng(3).normal(size=(4, 7))
    got = actions_of(
        track(ARRAY, STEPS[[0, 1, 3]], rows[[0, 1, 3]]), ActionSource(), GripperSource()
    )
    np.testing.assert_array_equal(got[[0, 1, 3]], rows[[0, 1, 3]])
    assert np.isnan(got[2]).all()


def test_an_answer_belongs_to_the_image_with_its_stamp_only() -> None:
    rows = np.arange(14.0).reshape(2, 7)
    got = actions_of(track(ANSWER, STEPS[[1, 2]] + [0, 1], rows), ActionSource(), GripperSource())
    np.testing.assert_array_equal(got[1], rows[0])
    assert np.isnan(got[[0, 2, 3]]).all()


def test_the_gripper_comes_last_and_holds_until_its_next_command() -> None:
    moves = track(ARRAY, STEPS, np.ones((4, 6)))
    gripper = track(FLOAT, [PERIOD, 3 * PERIOD], [[1.0], [0.25]])
    got = actions_of(moves, ActionSource(), GripperSource(topic="/g"), gripper=gripper)
    assert np.isnan(got[0]).all(), "before its first command nobody knows where it is"
    np.testing.assert_array_equal(got[1:, 6], [1.0, 1.0, 0.25])
    constant = actions_of(moves, ActionSource(), GripperSource(constant=1.0))
    np.testing.assert_array_equal(constant[:, 6], 1.0)
    assert actions_of(moves, ActionSource(), NO_GRIPPER).shape == (4, 6)


def test_a_twist_without_a_word_about_its_gripper_is_refused() -> None:
    twist = track(TWIST, STEPS, np.zeros((4, 6)))
    with pytest.raises(ConfigurationError, match="gripper: none"):
        actions_of(twist, ActionSource(rotation="euler_rate"), GripperSource())
    answers = track(ANSWER, STEPS, np.zeros((4, 7)))
    with pytest.raises(ConfigurationError, match="Leave `gripper` out"):
        actions_of(answers, ActionSource(), GripperSource(constant=1.0))


def test_without_an_action_topic_nothing_was_recorded() -> None:
    got = recorded_actions({}, TopicConfig(5.0), STEPS, PERIOD)
    assert got.shape == (4, 7) and np.isnan(got).all()


def test_states_are_what_was_last_said_at_each_image() -> None:
    eulers = np.array([[0.1, -0.2, 0.3]] * 4)
    positions = np.arange(12.0).reshape(4, 3)
    states = recorded_states({"state": poses(eulers, positions)}, STEPS, PERIOD)
    np.testing.assert_allclose(states, np.concatenate([positions, eulers], axis=1), atol=1e-12)
    late = track(ARRAY, STEPS[:1], np.ones((1, 7)))
    states = recorded_states({"state": late}, STEPS, PERIOD)
    np.testing.assert_array_equal(states[:2], 1.0)
    assert np.isnan(states[2:]).all()
    assert recorded_states({}, STEPS, PERIOD) is None


angle = st.floats(-3.0, 3.0)


@settings(deadline=None)
@given(angle, st.floats(-1.55, 1.55), angle)
def test_roll_pitch_yaw_undoes_the_matrix(roll: float, pitch: float, yaw: float) -> None:
    euler = np.array([roll, pitch, yaw])
    np.testing.assert_allclose(roll_pitch_yaw(euler_matrix(euler)), euler, atol=1e-9)


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
def test_an_arm_that_points_straight_up_keeps_its_rotation(pitch: float) -> None:
    matrix = euler_matrix(np.array([0.4, pitch, 1.1]))
    got = roll_pitch_yaw(matrix)
    assert got[0] == 0.0
    np.testing.assert_allclose(euler_matrix(got), matrix, atol=1e-9)
