"""Integration of twists in base axes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openvla_ros.control.pose import (
    Pose,
    exponential_map,
    integrate_twist,
    quaternion_to_rotation,
    rotation_to_quaternion,
)

vectors = st.tuples(*[st.floats(-3.0, 3.0)] * 3).map(np.array)


def test_a_quarter_turn_about_z_turns_x_into_y() -> None:
    rotation = exponential_map(np.array([0.0, 0.0, np.pi / 2]))
    np.testing.assert_allclose(rotation @ [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], atol=1e-15)


def test_rotation_is_about_base_axes_and_does_not_move_the_point() -> None:
    """A tool that points down still yaws about the base's z axis."""
    down = exponential_map(np.array([np.pi, 0.0, 0.0]))
    start = Pose(np.array([0.3, 0.1, 0.2]), down)
    end = integrate_twist(start, np.zeros(3), np.array([0.0, 0.0, 0.5]), 1.0)
    np.testing.assert_array_equal(end.position, start.position)
    np.testing.assert_allclose(
        end.rotation, exponential_map(np.array([0.0, 0.0, 0.5])) @ down, atol=1e-14
    )


def test_translation_is_along_base_axes_whatever_the_tool_points_at() -> None:
    tilted = Pose(rotation=exponential_map(np.array([0.4, -1.0, 0.7])))
    end = integrate_twist(tilted, np.array([0.1, 0.0, -0.2]), np.zeros(3), 0.5)
    np.testing.assert_allclose(end.position, [0.05, 0.0, -0.1], atol=1e-15)


@settings(max_examples=200, deadline=None)
@given(vectors)
def test_the_map_gives_rotations_and_its_inverse_is_the_negative_vector(vector) -> None:
    rotation = exponential_map(vector)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    np.testing.assert_allclose(rotation @ exponential_map(-vector), np.eye(3), atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(vectors, st.integers(1, 60))
def test_small_steps_add_up_to_the_large_one(angular, count) -> None:
    pose = Pose()
    for _ in range(count):
        pose = integrate_twist(pose, np.array([0.1, 0.0, 0.0]), angular, 1.0 / count)
    np.testing.assert_allclose(pose.rotation, exponential_map(angular), atol=1e-9)
    np.testing.assert_allclose(pose.position, [0.1, 0.0, 0.0], atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(vectors)
def test_quaternions_keep_the_rotation(vector) -> None:
    rotation = exponential_map(vector)
    quaternion = rotation_to_quaternion(rotation)
    assert quaternion[3] >= 0.0
    assert np.linalg.norm(quaternion) == pytest.approx(1.0)
    np.testing.assert_allclose(quaternion_to_rotation(quaternion), rotation, atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_half_turns_have_a_quaternion(axis: int) -> None:
    """Where w vanishes, dividing by it would give NaN."""
    rotation = exponential_map(np.pi * np.eye(3)[axis])
    expected = np.zeros(4)
    expected[axis] = 1.0
    np.testing.assert_allclose(np.abs(rotation_to_quaternion(rotation)), expected, atol=1e-9)


def test_the_series_joins_the_formula_smoothly() -> None:
    direction = np.array([1.0, -2.0, 2.0]) / 3.0
    below, above = exponential_map(0.99e-6 * direction), exponential_map(1.01e-6 * direction)
    np.testing.assert_allclose(below, above, atol=1e-7)
    np.testing.assert_array_equal(exponential_map(np.zeros(3)), np.eye(3))
