"""Markers for rviz: what they show, in which frame, and that what is unknown disappears."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

from builtin_interfaces.msg import Time
from visualization_msgs.msg import Marker, MarkerArray

from openvla_ros.control.pose import Pose
from openvla_ros.ros.markers import MAGNIFICATION, path_message, step_markers

pytestmark = pytest.mark.ros

NOW = Time(sec=7)
TOOL = Pose(np.array([0.4, 0.1, 0.3]), np.eye(3))
STEP = np.array([0.01, 0.0, -0.02, 0.0, 0.0, 0.1])
BOX = (np.array([0.2, -0.3, 0.0]), np.array([0.6, 0.3, 0.5]))


def parts(array: MarkerArray) -> dict[int, Marker]:
    assert all(m.header.frame_id == "base_link" and m.header.stamp == NOW for m in array.markers)
    return {marker.type: marker for marker in array.markers}


def test_arrow_arc_text_and_box_are_at_the_end_effector() -> None:
    found = parts(step_markers(NOW, "base_link", TOOL, STEP, "RUNNING", BOX))
    tail, tip = found[Marker.ARROW].points
    np.testing.assert_allclose([tail.x, tail.y, tail.z], TOOL.position)
    moved = [tip.x - tail.x, tip.y - tail.y, tip.z - tail.z]
    np.testing.assert_allclose(moved, MAGNIFICATION * STEP[:3])
    assert len(found[Marker.LINE_STRIP].points) > 2
    assert found[Marker.TEXT_VIEW_FACING].text == "RUNNING"
    assert len(found[Marker.LINE_LIST].points) == 24
    assert {m.action for m in found.values()} == {Marker.ADD}


def test_what_is_not_known_is_deleted() -> None:
    found = parts(step_markers(NOW, "base_link", TOOL, None, "HOLD", None))
    for kind in (Marker.ARROW, Marker.LINE_STRIP, Marker.LINE_LIST):
        assert found[kind].action == Marker.DELETE
    assert found[Marker.TEXT_VIEW_FACING].action == Marker.ADD


def test_arrows_vanish_by_themselves_and_the_box_stays() -> None:
    found = parts(step_markers(NOW, "base_link", TOOL, STEP, "", BOX))
    assert found[Marker.ARROW].lifetime.sec == 2
    assert found[Marker.LINE_LIST].lifetime.sec == 0


def test_a_path_holds_every_pose_with_its_orientation() -> None:
    path = path_message(NOW, "base_link", [TOOL, TOOL])
    assert path.header.frame_id == "base_link" and len(path.poses) == 2
    assert path.poses[0].pose.position.x == 0.4
    assert path.poses[0].pose.orientation.w == 1.0
