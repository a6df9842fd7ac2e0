"""What the node does with the limits that need to know where the end effector is."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

from node_cell import MOVING, Cell, is_zero
from rclpy.parameter import Parameter

from openvla_ros.control.states import Drop, Reason, State

pytestmark = pytest.mark.ros

BOX = {"limits.workspace_min": [-1.0, -1.0, -1.0], "limits.workspace_max": [1.0, 1.0, 1.0]}


def test_a_profile_that_expects_other_actions_is_refused_at_configure() -> None:
    with Cell(**MOVING, **{"delta_frame.rotation": "ee", "expected.action_hz": 15.0}) as cell:
        assert not cell.change("configure")
        status = cell.wait_status(State.UNCONFIGURED, Reason.BAD_PARAMETER)
        assert "rotation_frame" in status.detail and "action_hz" in status.detail


def test_an_override_that_contradicts_the_profile_is_refused_while_running() -> None:
    with Cell(**MOVING, **{"expected.action_hz": 5.0}) as cell:
        cell.start()
        result = cell.node.set_parameters([Parameter("action_hz", value=15.0)])[0]
        assert not result.successful and "action_hz" in result.reason
        assert cell.answer().action_dt == pytest.approx(0.2)


def test_a_workspace_without_a_pose_holds_the_arm_and_a_pose_frees_it() -> None:
    with Cell(**MOVING, **BOX) as cell:
        cell.start()
        assert cell.answer().drop_reason == Drop.HOLD
        status = cell.wait_status(State.HOLD, Reason.TF_UNAVAILABLE)
        assert "workspace_min" in status.detail
        assert all(is_zero(t) for t in cell.twists)
        with cell.arm_at():
            cell.wait_status(State.RUNNING, Reason.OK)
            assert cell.answer().executed
            cell.wait_moving()
