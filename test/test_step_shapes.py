"""Shapes for rviz against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from openvla_ros.control.pose import Pose, exponential_map
from openvla_ros.evaluation.pictures.step_shapes import DeltaPath, arc_points, box_edges


@pytest.mark.parametrize("axis", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, -2, 3], [0, 0, -1]])
@pytest.mark.parametrize("angle", [0.01, 0.5, 3.0])
def test_an_arc_turns_as_the_rotation_does(axis: list[float], angle: float) -> None:
    axis = np.array(axis) / np.linalg.norm(axis)
    points = arc_points(angle * axis, 0.08)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 0.08)
    np.testing.assert_allclose(points @ axis, 0.0, atol=1e-12)
    np.testing.assert_allclose(points[-1], exponential_map(angle * axis) @ points[0], atol=1e-12)
    assert len(points) >= 2


def test_no_rotation_has_no_arc() -> None:
    assert arc_points(np.zeros(3), 0.08).shape == (0, 3)


def test_a_box_has_twelve_edges_along_the_axes() -> None:
    low, high = np.array([0.1, -0.2, 0.0]), np.array([0.5, 0.2, 0.3])
    edges = box_edges(low, high).reshape(12, 2, 3)
    lengths = np.abs(edges[:, 1] - edges[:, 0])
    assert (np.count_nonzero(lengths, axis=1) == 1).all()
    np.testing.assert_allclose(sorted(lengths.max(axis=1)), sorted([0.4, 0.4, 0.3] * 4))
    assert len({tuple(map(tuple, edge)) for edge in edges}) == 12


def test_a_path_adds_steps_in_base_axes_to_where_it_began() -> None:
    path = DeltaPath()
    path.begin(Pose(np.array([0.3, 0.0, 0.2]), exponential_map(np.array([0, 0, np.pi / 2]))))
    path.add(np.array([[0.01, 0, 0, 0, 0, np.pi / 2], [0, 0.02, 0, 0, 0, 0]]))
    np.testing.assert_allclose(path.poses[-1].position, [0.31, 0.02, 0.2])
    turned = path.poses[-1].rotation @ np.array([1.0, 0, 0])
    np.testing.assert_allclose(turned, [-1, 0, 0], atol=1e-12)
    assert len(path.poses) == 3


def test_a_path_begins_anew_and_forgets_its_oldest_poses() -> None:
    path = DeltaPath(longest=3)
    path.begin(Pose())
    path.add(np.full((9, 6), 0.001))
    assert len(path.poses) == 3
    path.begin(Pose())
    assert len(path.poses) == 1
