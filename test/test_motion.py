"""From prediction to plan: what is refused, what is scaled, what stays unknown."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from openvla_ros.config.motion import GripperConfig, MotionConfig
from openvla_ros.control.motion import MotionStage, complete_spec
from openvla_ros.control.states import Drop
from openvla_ros.mock_policy import ACTION_SPEC
from openvla_ros.types import ActionSpec, Prediction

ACTION = np.array([[0.02, 0.0, -0.01, 0.0, 0.0, 0.1, 1.0]])


def prediction(actions: np.ndarray, invalid_dims: tuple[int, ...] = ()) -> Prediction:
    return Prediction(actions, actions, [], "mock", invalid_dims=invalid_dims)


def stage(spec: ActionSpec = ACTION_SPEC, **motion: object) -> MotionStage:
    return MotionStage(spec, MotionConfig(**{"speed_scale": 1.0, **motion}), GripperConfig())


def test_a_good_answer_becomes_a_plan_and_a_twist() -> None:
    motion = stage()
    plan = motion.plan(prediction(ACTION))
    assert plan.refusal is Drop.NONE
    np.testing.assert_allclose(plan.steps, ACTION[:, :6], atol=1e-15)
    assert plan.gripper_opening == 1.0
    motion.execute(plan, now_s=5.0)
    np.testing.assert_allclose(motion.sample(5.0), ACTION[0, :6] / 0.2, rtol=1e-9)


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


def test_actions_in_tool_axes_are_refused_in_words() -> None:
    motion = stage(dataclasses.replace(ACTION_SPEC, rotation_frame="ee"))
    assert "rotation_frame" in motion.obstacle()
    assert motion.plan(prediction(ACTION)).refusal is Drop.MOTION_UNKNOWN


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
