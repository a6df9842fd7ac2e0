"""What an action means in metres and radians, in the axes of this robot's base."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openvla_ros.control.displacement import (
    StepLimits,
    displacement,
    euler_matrix,
    rotation_vector,
)
from openvla_ros.control.pose import exponential_map
from openvla_ros.errors import MotionError
from openvla_ros.mock_policy import ACTION_SPEC
from openvla_ros.types import ActionSpec

NO_CLIP = StepLimits(position_m=100.0, rotation_rad=3.0)
angles = st.floats(-3.1, 3.1, allow_nan=False)


def spec_with(**changes: object) -> ActionSpec:
    return ActionSpec(**{**ACTION_SPEC.__dict__, **changes})


def test_translation_is_in_base_axes_and_metres() -> None:
    moves = displacement(
        np.array([[0.01, -0.02, 0.03, 0, 0, 0, 1]]), ACTION_SPEC, limits=StepLimits()
    )
    np.testing.assert_array_equal(moves.steps, [[0.01, -0.02, 0.03, 0, 0, 0]])
    assert moves.clip_mask == 0


def test_unit_of_the_dataset_scales_translation_and_rotation() -> None:
    spec = spec_with(translation_unit_m=0.075, rotation_unit_rad=0.15, kind="eef_velocity")
    moves = displacement(np.array([[0.5, 0, 0, 0, 0, 1.0, 1]]), spec, limits=StepLimits())
    np.testing.assert_allclose(moves.steps, [[0.0375, 0, 0, 0, 0, 0.15]], rtol=1e-12)


@pytest.mark.parametrize(
    ("rpy", "expected"),
    [
        ([0.2, 0.0, 0.0], [0.2, 0.0, 0.0]),
        ([0.0, -0.3, 0.0], [0.0, -0.3, 0.0]),
        ([0.0, 0.0, 1.5], [0.0, 0.0, 1.5]),
        # By hand: Rz(90°) Rx(90°) maps x→y→z→x, a turn of 120° about (1, 1, 1).
        ([np.pi / 2, 0.0, np.pi / 2], np.full(3, 2 * np.pi / 3 / np.sqrt(3))),
    ],
)
def test_rotation_vector_equals_hand_computed_cases(rpy: list[float], expected: object) -> None:
    np.testing.assert_allclose(rotation_vector(euler_matrix(np.array(rpy))), expected, atol=1e-12)


@given(st.tuples(angles, angles, angles))
@settings(max_examples=500, deadline=None)
def test_rotation_vector_and_composition_agree(rpy: tuple[float, float, float]) -> None:
    roll, pitch, yaw = rpy
    about = [exponential_map(np.array(v)) for v in ([0, 0, yaw], [0, pitch, 0], [roll, 0, 0])]
    composed = about[0] @ about[1] @ about[2]
    np.testing.assert_allclose(euler_matrix(np.array(rpy)), composed, atol=1e-12)
    vector = rotation_vector(composed)
    assert np.linalg.norm(vector) <= np.pi + 1e-9
    error = np.abs(exponential_map(vector) - composed).max()
    assert error < 1e-9, f"rotation log is off by {error}"


@pytest.mark.parametrize("angle", [np.pi, np.pi - 1e-9, 1e-9, 0.0])
def test_rotation_vector_is_exact_at_half_turns_and_at_zero(angle: float) -> None:
    axis = np.array([1.0, -2.0, 0.5]) / np.linalg.norm([1.0, -2.0, 0.5])
    matrix = exponential_map(axis * angle)
    np.testing.assert_allclose(exponential_map(rotation_vector(matrix)), matrix, atol=1e-9)


def test_an_axis_beyond_its_limit_is_cut_and_flagged() -> None:
    action = np.array([[0.06, -0.06, 0.04, 0.0, -0.3, 0.3, 1.0]])
    moves = displacement(action, ACTION_SPEC, limits=StepLimits(0.05, 0.25))
    np.testing.assert_array_equal(moves.steps[0, 0:3], [0.05, -0.05, 0.04])
    expected = rotation_vector(euler_matrix(np.array([0.0, -0.25, 0.25])))
    np.testing.assert_allclose(moves.steps[0, 3:6], expected, atol=1e-15)
    assert moves.clip_mask == 0b110011


def test_scale_comes_after_the_clip() -> None:
    action = np.array([[1.0, 0, 0, 0, 0, 1.0, 1]])
    moves = displacement(
        action, ACTION_SPEC, limits=StepLimits(0.05, 0.25), linear_scale=0.5, angular_scale=0.2
    )
    np.testing.assert_allclose(moves.steps, [[0.025, 0, 0, 0, 0, 0.05]], rtol=1e-12)


def test_base_rotation_turns_translation_and_rotation_axes() -> None:
    turn = euler_matrix(np.array([0.0, 0.0, np.pi / 2]))  # dataset x is our y
    action = np.array([[0.01, 0, 0, 0.1, 0, 0, 1]])
    moves = displacement(action, ACTION_SPEC, limits=StepLimits(), base_rotation=turn)
    np.testing.assert_allclose(moves.steps, [[0, 0.01, 0, 0, 0.1, 0]], atol=1e-12)


@given(st.tuples(angles, angles, angles), st.tuples(angles, angles, angles))
@settings(max_examples=200, deadline=None)
def test_base_rotation_equals_a_change_of_basis(
    rpy: tuple[float, float, float], turn_rpy: tuple[float, float, float]
) -> None:
    turn, rotation = euler_matrix(np.array(turn_rpy)), euler_matrix(np.array(rpy) * 0.9)
    action = np.concatenate([[0.0, 0.0, 0.0], np.array(rpy) * 0.9, [1.0]])[None]
    moves = displacement(action, ACTION_SPEC, limits=NO_CLIP, base_rotation=turn)
    np.testing.assert_allclose(
        exponential_map(moves.steps[0, 3:6]), turn @ rotation @ turn.T, atol=1e-9
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"translation_unit_m": None},
        {"rotation_form": None},
        {"translation_frame": "camera"},
        {"rotation_frame": "camera"},
        {"rotation_form": "quaternion"},
    ],
)
def test_an_action_of_unknown_or_foreign_meaning_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(MotionError, match=next(iter(changes))):
        displacement(np.zeros((1, 7)), spec_with(**changes), limits=StepLimits())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(MotionError, match="finite"):
        displacement(np.array([[0, 0, bad, 0, 0, 0, 1.0]]), ACTION_SPEC, limits=StepLimits())
