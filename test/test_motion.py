"""From prediction to plan: what is refused, what is scaled, what stays unknown."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from openvla_ros.config.motion import GripperConfig, MotionConfig
from openvla_ros.control.motion import MotionStage, complete_spec
from openvla_ros.control.pose import EndEffectorPose
from openvla_ros.control.safety import Intervention
from openvla_ros.control.states import Drop
from openvla_ros.errors import ConfigurationError, MotionError
from openvla_ros.mock_policy import ACTION_SPEC
from openvla_ros.types import ActionSpec, Prediction

ACTION = np.array([[0.02, 0.0, -0.01, 0.0, 0.0, 0.1, 1.0]])


def prediction(actions: np.ndarray, invalid_dims: tuple[int, ...] = ()) -> Prediction:
    return Prediction(actions, actions, [], "mock", invalid_dims=invalid_dims)


def stage(spec: ActionSpec = ACTION_SPEC, **motion: object) -> MotionStage:
    return MotionStage(spec, MotionConfig(**{"speed_scale": 1.0, **motion}), GripperConfig())


def turned(yaw_rad: float) -> EndEffectorPose:
    """The end effector at the origin, turned about the vertical axis."""
    half = yaw_rad / 2.0
    return EndEffectorPose(np.zeros(3), np.array([0.0, 0.0, np.sin(half), np.cos(half)]), 0.0)


def test_a_good_answer_becomes_a_plan_and_a_twist() -> None:
    motion = stage()
    plan = motion.plan(prediction(ACTION))
    assert plan.refusal is Drop.NONE
    np.testing.assert_allclose(plan.steps, ACTION[:, :6], atol=1e-15)
    assert plan.gripper_opening == 1.0
    motion.execute(plan, now_s=5.0)
    # 0.5 rad/s takes three ticks at 10 rad/s²; translation waits for it, and the path stays.
    speeds = [motion.sample(5.0 + 0.02 * k) for k in range(3)]
    np.testing.assert_allclose(speeds[0], ACTION[0, :6] / 0.2 * 0.4, rtol=1e-9)
    np.testing.assert_allclose(speeds[2], ACTION[0, :6] / 0.2, rtol=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("axis", range(7))
def test_an_answer_that_is_not_finite_is_refused(bad: float, axis: int) -> None:
    action = ACTION.copy()
    action[0, axis] = bad
    plan = stage().plan(prediction(action))
    assert plan.refusal is Drop.NON_FINITE
    assert plan.steps is None


@pytest.mark.parametrize("shape", [(1, 6), (1, 8), (0, 7), (7,)])
def test_an_answer_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    plan = stage().plan(prediction(np.zeros(shape)))
    assert plan.refusal is Drop.NON_FINITE
    assert "7" in plan.detail


def test_an_invalid_token_is_refused_although_its_numbers_look_fine() -> None:
    """The reference decodes any text token as an extreme bin: a full-speed command."""
    plan = stage().plan(prediction(ACTION, invalid_dims=(2, 5)))
    assert plan.refusal is Drop.INVALID_TOKEN
    assert "2, 5" in plan.detail
    assert plan.steps is not None, "VLAAction still shows what it would have been"


def test_speed_scale_multiplies_the_displacement() -> None:
    plan = stage(speed_scale=0.5, linear_scale=0.5, angular_scale=2.0).plan(prediction(ACTION))
    np.testing.assert_allclose(plan.steps, [[0.005, 0, -0.0025, 0, 0, 0.1]], atol=1e-12)


def test_an_unpublished_rate_refuses_motion_but_not_the_description() -> None:
    motion = stage(dataclasses.replace(ACTION_SPEC, action_hz=None))
    plan = motion.plan(prediction(ACTION))
    assert plan.refusal is Drop.MOTION_UNKNOWN
    assert "action_hz" in plan.detail and "action_hz" in motion.obstacle()
    np.testing.assert_allclose(plan.steps, ACTION[:, :6], atol=1e-15)


def test_an_unpublished_unit_leaves_the_displacement_unknown() -> None:
    motion = stage(ActionSpec("my_robot", gripper_open=1.0, gripper_closed=0.0))
    plan = motion.plan(prediction(ACTION))
    assert plan.refusal is Drop.MOTION_UNKNOWN
    assert plan.steps is None
    assert plan.gripper_opening == 1.0
    assert "action_spec.translation_unit_m" in motion.obstacle()


def test_actions_in_tool_axes_follow_the_orientation_of_the_tool() -> None:
    """Turned by 90° about z, the tool's x is the base's y."""
    spec = dataclasses.replace(ACTION_SPEC, translation_frame="ee", rotation_frame="ee")
    action = np.array([[0.02, 0.0, 0.0, 0.1, 0.0, 0.0, 1.0]])
    plan = stage(spec).plan(prediction(action), turned(np.pi / 2))
    assert plan.refusal is Drop.NONE
    np.testing.assert_allclose(plan.steps, [[0.0, 0.02, 0.0, 0.0, 0.1, 0.0]], atol=1e-12)


@pytest.mark.parametrize("pose", [None, "old"])
def test_actions_in_tool_axes_without_a_fresh_pose_hold_the_arm(pose: object) -> None:
    motion = stage(dataclasses.replace(ACTION_SPEC, rotation_frame="ee"))
    given = dataclasses.replace(turned(0.0), age_s=0.31) if pose == "old" else None
    plan = motion.plan(prediction(ACTION), given)
    assert plan.refusal is Drop.HOLD and plan.steps is None
    assert "tool axes" in plan.detail and "tool axes" in motion.pose_obstacle(given)
    assert motion.obstacle() == "" and motion.pose_obstacle(turned(0.0)) == ""


def test_an_action_in_tool_axes_ends_when_the_pose_is_lost() -> None:
    motion = stage(dataclasses.replace(ACTION_SPEC, rotation_frame="ee"))
    motion.execute(motion.plan(prediction(ACTION), turned(0.0)), 0.0)
    assert motion.sample(0.0, turned(0.0)).any()
    for k in range(1, 7):
        last = motion.sample(0.02 * k, None)
    assert not last.any()
    assert not motion.sample(0.14, turned(0.0)).any(), "a pose that is back starts nothing"
    assert not motion.is_moving


def test_a_workspace_without_a_pose_refuses_new_actions_and_stops_the_arm() -> None:
    motion = stage(workspace_min=(-1.0, -1.0, -1.0), workspace_max=(1.0, 1.0, 1.0))
    plan = motion.plan(prediction(ACTION), turned(0.0))
    motion.execute(plan, 0.0)
    assert motion.sample(0.0, turned(0.0)).any()
    speeds = [float(np.linalg.norm(motion.sample(0.02 * k, None))) for k in range(1, 8)]
    assert speeds == sorted(speeds, reverse=True) and speeds[-1] == 0.0
    refused = motion.plan(prediction(ACTION), None)
    assert refused.refusal is Drop.HOLD and "workspace_min" in refused.detail
    assert refused.steps is not None, "VLAAction still shows what it would have been"
    assert motion.report(0.2).counts[Intervention.NO_POSE] > 0


def test_a_pose_that_nobody_needs_is_not_asked_for() -> None:
    assert stage().pose_obstacle(None) == ""


def test_a_small_step_is_ignored_and_counted() -> None:
    motion = stage(deadband_position=0.001, deadband_rotation=0.005)
    small = np.array([[0.0005, 0.0, 0.0, 0.0, 0.0, 0.01, 1.0]])
    plan = motion.plan(prediction(small))
    np.testing.assert_allclose(plan.steps, [[0.0, 0.0, 0.0, 0.0, 0.0, 0.01]], atol=1e-12)
    motion.execute(plan, 0.0)
    assert motion.report(0.0).counts[Intervention.DEAD_BAND] == 1
    motion.execute(motion.plan(prediction(small * 0.0)), 0.2)
    assert motion.report(0.2).counts[Intervention.DEAD_BAND] == 1, "nothing to ignore"


def test_the_dead_band_comes_before_the_scale() -> None:
    motion = stage(deadband_position=0.001, speed_scale=0.1)
    plan = motion.plan(prediction(np.array([[0.002, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]])))
    np.testing.assert_allclose(plan.steps[0, 0], 0.0002)


def test_every_intervention_of_an_action_is_counted_by_its_reason() -> None:
    motion = stage()
    huge = np.array([[0.06, 0.05, 0.05, 0.0, 0.0, 0.0, 1.0]])
    motion.execute(motion.plan(prediction(huge)), 0.0)
    motion.observe(motion.plan(prediction(huge * np.nan)))
    motion.sample(0.0)
    counts = motion.report(0.0).counts
    reasons = (Intervention.STEP_CLIP, Intervention.SPEED, Intervention.NON_FINITE)
    assert [counts[reason] for reason in reasons] == [1, 1, 1]
    assert counts[Intervention.ACCELERATION] == 1
    motion.reset()
    assert not any(motion.report(0.0).counts.values())


def test_the_target_pose_follows_the_published_twist() -> None:
    motion = stage(leash_position=0.01)
    motion.execute(motion.plan(prediction(ACTION)), 0.0)
    for k in range(20):
        motion.sample(0.02 * k)
        target = motion.target(0.02 * k, turned(0.0))
    assert np.linalg.norm(target.position) == pytest.approx(0.01)
    assert motion.report(0.4).counts[Intervention.LEASH] > 0
    motion.reset()
    np.testing.assert_array_equal(motion.target(0.4, turned(0.0)).position, np.zeros(3))
    with pytest.raises(MotionError, match="old"):
        motion.target(0.4, dataclasses.replace(turned(0.0), age_s=1.0))


def test_a_profile_that_contradicts_the_spec_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="rotation_frame"):
        complete_spec(ACTION_SPEC, {}, {"rotation_frame": "ee"})
    spec = complete_spec(ACTION_SPEC, {"rotation_frame": "ee"}, {"rotation_frame": "ee"})
    assert spec.rotation_frame == "ee"


def test_the_user_completes_a_spec_and_sources_say_so() -> None:
    spec = complete_spec(ActionSpec("my_robot"), {"action_hz": 10.0})
    assert spec.action_hz == 10.0
    assert "user" in spec.sources["action_hz"]


def test_no_twist_exceeds_the_limits_even_for_a_huge_action() -> None:
    motion = stage(delta_position=0.5, delta_rotation=1.5)
    motion.execute(motion.plan(prediction(np.full((1, 7), 100.0))), 0.0)
    twist = motion.sample(0.0)
    assert np.linalg.norm(twist[:3]) <= 0.25 + 1e-9
    assert np.linalg.norm(twist[3:]) <= 1.0 + 1e-9


def test_new_limits_hold_from_the_next_sample_on() -> None:
    motion = stage()
    motion.execute(motion.plan(prediction(ACTION)), 0.0)
    motion.configure(MotionConfig(speed_scale=1.0, linear_speed=0.01), GripperConfig())
    assert np.linalg.norm(motion.sample(0.0)[:3]) <= 0.01 + 1e-12


def test_votes_of_the_gripper_count_per_answer() -> None:
    motion = stage()
    for _ in range(2):
        motion.observe(motion.plan(prediction(ACTION)))
    assert motion.gripper_is_open is True
    motion.reset()
    assert motion.gripper_is_open is None


@pytest.mark.parametrize(("number", "opening"), [(1.0, 0.0), (0.25, 0.75), (0.0, 1.0)])
def test_an_inverted_gripper_opens_for_what_the_dataset_calls_closed(
    number: float, opening: float
) -> None:
    motion = stage()
    action = prediction(np.array([[*ACTION[0, :6], number]]))
    motion.configure(MotionConfig(), GripperConfig(invert=True, sticky_steps=1))
    plan = motion.plan(action)
    assert plan.gripper_opening == pytest.approx(opening)
    motion.observe(plan)
    assert motion.gripper_is_open is (opening > 0.5), "before the threshold"
    begun = MotionStage(ACTION_SPEC, MotionConfig(), GripperConfig(invert=True))
    assert begun.plan(action).gripper_opening == pytest.approx(opening)


# Teleoperation ---------------------------------------------------------------------------------

STEERED = np.array([0.0, 0.1, 0.0, 0.0, 0.0, 0.0])


def test_a_steered_twist_drops_the_action_and_passes() -> None:
    motion = stage()
    motion.execute(motion.plan(prediction(ACTION)), 0.0)
    for k in range(3):
        motion.sample(0.02 * k)
    twists = [motion.follow(STEERED, 0.06 + 0.02 * k) for k in range(6)]
    np.testing.assert_array_equal(twists[-1], STEERED)
    assert np.linalg.norm((twists[0] - twists[1])[3:6]) <= 10.0 * 0.02 + 1e-9
    after = [motion.sample(0.18 + 0.02 * k) for k in range(30)]
    assert not after[-1].any() and not motion.is_moving
    assert np.abs(np.array(after)[:, [0, 2, 5]]).max() == 0.0, "nothing is left of the action"


def test_a_steered_twist_is_within_speed_and_acceleration_and_keeps_its_direction() -> None:
    motion = stage()
    wild = np.array([3.0, -4.0, 0.0, 0.0, 0.0, 1.0])
    twists = np.array([np.zeros(6), *(motion.follow(wild, 0.02 * k) for k in range(10))])
    speeds = np.linalg.norm(twists[:, 0:3], axis=1)
    np.testing.assert_allclose(speeds[:5], [0.0, 0.1, 0.2, 0.25, 0.25], atol=1e-12)
    np.testing.assert_allclose(twists[5], wild * 0.05, atol=1e-12)


def test_whoever_lets_go_sees_the_arm_brake_and_stay() -> None:
    """Made good like an action, 6 mm of braking would be driven back."""
    motion = stage()
    for k in range(20):
        motion.follow(STEERED * 2.5, 0.02 * k)
    speeds = [motion.sample(0.4 + 0.02 * k)[1] for k in range(20)]
    np.testing.assert_allclose(speeds[:4], [0.15, 0.05, 0.0, 0.0], atol=1e-12)
    assert not any(speeds[4:])


def test_a_steered_arm_that_was_stopped_by_fade_moves_again_and_a_nan_cuts_it() -> None:
    motion = stage()
    motion.follow(STEERED, 0.0)
    motion.fade(0.02)
    for k in range(1, 10):
        motion.sample(0.02 * k)
    assert motion.follow(STEERED, 0.2).any()
    assert not motion.follow(STEERED * np.nan, 0.22).any()
    counts = motion.report(0.22).counts
    reasons = (Intervention.RAMP, Intervention.NON_FINITE, Intervention.CUT)
    assert [counts[reason] for reason in reasons] == [1, 1, 1]


def test_a_steered_arm_stays_in_its_box_and_stops_without_a_pose() -> None:
    motion = stage(workspace_min=(-1.0, -1.0, -1.0), workspace_max=(1.0, 1.0, 1.0))
    edge = dataclasses.replace(turned(0.0), position=np.array([0.0, 0.99, 0.0]))
    assert not motion.follow(STEERED, 0.0, edge).any()
    assert motion.follow(-STEERED, 0.02, edge)[1] == pytest.approx(-0.1)
    speeds = [-motion.follow(-STEERED, 0.04 + 0.02 * k, None)[1] for k in range(8)]
    assert speeds == sorted(speeds, reverse=True) and speeds[-1] == 0.0
    assert motion.report(0.2).counts[Intervention.RAMP] == 1


def test_the_next_action_starts_where_the_person_let_go_and_loses_nothing() -> None:
    """Nor is a tick lost that comes late while the arm speeds up: only steering forgets it."""
    motion = stage()
    for k in range(10):
        motion.follow(STEERED, 0.02 * k)
    for k in range(10, 20):
        motion.sample(0.02 * k)
    motion.execute(motion.plan(prediction(ACTION)), 0.4)
    total, now_s = np.zeros(6), 0.4
    for interval_s in [0.02, 0.05] + [0.02] * 30:
        total += motion.sample(now_s) * interval_s
        now_s += interval_s
    np.testing.assert_allclose(total, ACTION[0, :6], atol=1e-9)


def test_a_steered_arm_without_a_pose_brakes_along_one_ramp() -> None:
    """It ends after decay_time, although the person goes on to steer."""
    motion = stage(workspace_min=(-1.0, -1.0, -1.0), workspace_max=(1.0, 1.0, 1.0), decay_time=0.3)
    for k in range(5):
        motion.follow(STEERED * 2.5, 0.02 * k, turned(0.0))
    speeds = [motion.follow(STEERED * 2.5, 0.1 + 0.02 * k)[1] for k in range(16)]
    assert speeds == sorted(speeds, reverse=True) and speeds[-1] == 0.0
    assert motion.report(0.42).counts[Intervention.RAMP] == 1


# Parameters ------------------------------------------------------------------------------------


def test_every_parameter_of_motion_can_change_while_the_node_runs() -> None:
    motion = stage()
    changed = MotionConfig(
        speed_scale=1.0, leash_position=0.001, leash_rotation=0.01, linear_accel=1.0
    )
    motion.configure(changed, GripperConfig(sticky_steps=1, threshold=0.9, hysteresis=0.0))
    motion.execute(motion.plan(prediction(ACTION)), 0.0)
    assert np.linalg.norm(motion.sample(0.0)[:3]) <= 1.0 * 0.02 + 1e-12
    for k in range(8):
        motion.sample(0.02 * k)
        target = motion.target(0.02 * k, turned(0.0))
    assert np.linalg.norm(target.position) <= 0.001 + 1e-12
    assert np.arccos((np.trace(target.rotation) - 1.0) / 2.0) <= 0.01 + 1e-6
    motion.observe(motion.plan(prediction(ACTION)))
    assert motion.gripper_is_open is True
    motion.observe(motion.plan(prediction(ACTION * [1, 1, 1, 1, 1, 1, 0.8])))
    assert motion.gripper_is_open is False


def test_a_slowed_step_is_counted_once() -> None:
    motion = stage(linear_speed=0.05)
    motion.execute(motion.plan(prediction(ACTION)), 0.0)
    for k in range(10):
        motion.sample(0.02 * k)
    assert motion.report(0.2).counts[Intervention.SPEED] == 1


def test_the_base_of_this_robot_may_be_turned_against_that_of_the_data() -> None:
    motion = stage(action_rotation_rpy=(0.0, 0.0, np.pi / 2))
    plan = motion.plan(prediction(ACTION))
    np.testing.assert_allclose(plan.steps, [[0.0, 0.02, -0.01, 0.0, 0.0, 0.1]], atol=1e-12)
