"""The node with a measured pose of the end effector: its source, the workspace, pose output."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, TransformStamped, TwistStamped
from node_cell import MOVING, NAME, Cell, is_zero
from openvla_ros.msg import VLAAction
from rclpy.parameter import Parameter

from openvla_ros.control.states import Reason, State

pytestmark = pytest.mark.ros

SLOW_STEP = {"limits.linear_speed": 0.005}
BOX = {"limits.workspace_min": [-0.5, -0.5, -0.5], "limits.workspace_max": [0.5, 0.5, 0.5]}
POSE = f"{NAME}/pose_cmd"


# Where the pose comes from ------------------------------------------------------------------------


def test_a_pose_that_stops_holds_the_arm_and_frees_it_when_it_comes_back() -> None:
    with Cell(**MOVING, **SLOW_STEP, **BOX) as cell:
        cell.start()
        assert cell.answer().drop_reason == VLAAction.HOLD
        detail = cell.wait_status(State.HOLD, Reason.TF_UNAVAILABLE).detail
        assert "/ee_pose" in detail and "workspace_min" in detail
        with cell.arm_at():
            cell.wait_status(State.RUNNING, Reason.OK)
            assert cell.answer().executed
            cell.wait_moving()
        cell.steady.jump(0.4)
        cell.wait_zero()
        assert "s old" in cell.wait_status(State.HOLD, Reason.TF_UNAVAILABLE).detail
        with cell.arm_at():
            cell.wait_status(State.RUNNING, Reason.OK)
            assert cell.answer().executed
            cell.wait_moving()


def test_a_pose_in_another_frame_is_not_used_and_the_status_says_so() -> None:
    with Cell(**MOVING, **BOX) as cell:
        cell.start()
        with cell.arm_at(frame="camera_link"):
            cell.answer()
            cell.wait(lambda: "'camera_link'" in cell.statuses[-1].detail, "the frame")
            assert cell.statuses[-1].reason == Reason.TF_UNAVAILABLE
            assert all(is_zero(t) for t in cell.twists)


def test_a_pose_without_a_stamp_is_not_used_and_the_status_says_so() -> None:
    with Cell(**MOVING, **BOX) as cell:
        cell.start()
        unset = PoseStamped()
        unset.header.frame_id = "base_link"
        with cell.repeated(PoseStamped, "ee_pose", lambda: unset):
            cell.answer()
            cell.wait(lambda: "no time stamp" in cell.statuses[-1].detail, "the stamp")
            assert all(is_zero(t) for t in cell.twists)


def test_tf_is_refused_at_configure_where_tf2_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    with Cell(**MOVING, ee_pose_source="tf", ee_frame="tool0") as cell:
        assert not cell.change("configure")
        detail = cell.wait_status(State.UNCONFIGURED, Reason.BAD_PARAMETER).detail
        assert "ros-<distro>-tf2-ros-py" in detail
        assert cell.node.set_parameters([Parameter("ee_pose_source", value="topic")])[0].successful
        assert cell.change("configure")


def test_tf_gives_the_pose_where_tf2_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the part of tf2_ros that is used: the wheels of the tests hold no tf2."""

    class Buffer:
        known: TransformStamped | None = None

        def lookup_transform(self, target: str, source: str, _: object) -> TransformStamped:
            if Buffer.known is None:
                raise TransformError(f"no {source}")
            assert (target, source) == ("base_link", "tool0")
            Buffer.known.header.stamp = clock().to_msg()
            return Buffer.known

    class TransformError(Exception):
        """Called TransformException there."""

    stand_in = types.ModuleType("tf2_ros")
    stand_in.Buffer, stand_in.TransformException = Buffer, TransformError
    stand_in.TransformListener = lambda buffer, node, spin_thread: (buffer, node, spin_thread)
    monkeypatch.setitem(sys.modules, "tf2_ros", stand_in)
    with Cell(**MOVING, **BOX, ee_pose_source="tf", ee_frame="tool0") as cell:
        clock = cell.node.get_clock().now
        cell.start()
        cell.answer()
        assert "'tool0'" in cell.wait_status(State.HOLD, Reason.TF_UNAVAILABLE).detail
        known = TransformStamped()
        known.transform.rotation.w = 1.0
        known.transform.translation.z = 0.25
        Buffer.known = known
        cell.wait_status(State.RUNNING, Reason.OK)
        assert cell.node.ee_pose.read().position[2] == 0.25
        assert cell.answer().executed
        cell.wait_moving()


# Workspace ----------------------------------------------------------------------------------------


def test_at_the_edge_the_arm_keeps_running_and_what_points_out_is_removed_and_counted() -> None:
    step = [0.01, 0.0, -0.01, 0.0, 0.0, 0.0, 1.0]
    with Cell(**MOVING, **SLOW_STEP, **BOX, mock_action=step) as cell:
        cell.start()
        with cell.arm_at(x=0.495):  # within the margin of the face at 0.5
            cell.wait(cell.node.ee_pose.read, "the pose")
            assert cell.answer().executed
            status = cell.wait_status(State.RUNNING, Reason.WORKSPACE)
            assert "workspace" in status.detail
            cell.wait_moving()
            moving = [t.twist.linear for t in cell.wait_twists(5)]
            assert all(v.x == 0.0 and v.z < 0.0 for v in moving)

            def counted() -> int:
                last = cell.statuses[-1]
                return dict(
                    zip(last.intervention_names, last.intervention_counts, strict=True)
                ).get("workspace", 0)

            cell.wait(lambda: counted() > 0, "a count of interventions")
            assert "workspace" in cell.statuses[-1].interventions


# Pose output --------------------------------------------------------------------------------------


@pytest.fixture
def posed() -> Iterator[tuple[Cell, list[PoseStamped]]]:
    """A cell whose output is a target pose, and the targets; the arm stands still at z = 0.3."""
    with Cell(**MOVING, **SLOW_STEP, output="pose") as cell:
        targets: list[PoseStamped] = []
        cell.hear(PoseStamped, POSE, targets, 100)
        cell.start()
        with cell.arm_at(z=0.3):
            cell.wait(lambda: targets, "a target")
            assert (targets[0].pose.position.x, targets[0].pose.position.z) == (0.0, 0.3)
            assert targets[0].header.frame_id == "base_link"
            assert cell.answer().executed
            cell.wait(lambda: targets[-1].pose.position.x > 0.001, "a target that moves")
            yield cell, targets


def test_the_target_moves_as_far_as_the_action_says_and_is_then_held(
    posed: tuple[Cell, list[PoseStamped]],
) -> None:
    cell, targets = posed
    cell.wait(lambda: targets[-1].pose.position.x > 0.0098, "the end of the step")
    cell.wait(lambda: len({t.pose.position.x for t in targets[-10:]}) == 1, "a target that is held")
    assert targets[-1].pose.position.x == pytest.approx(0.01, rel=0.1)
    assert not cell.twists, "one of the two topics is silent"


def test_what_is_cut_is_not_caught_up_on(posed: tuple[Cell, list[PoseStamped]]) -> None:
    """The target runs ahead of the arm; after ~/stop it is where the arm is."""
    cell, targets = posed
    assert cell.trigger("stop").success
    count = len(targets)
    cell.wait(lambda: len(targets) > count + 5, "more targets")
    assert {t.pose.position.x for t in targets[count + 1 :]} == {0.0}


def test_a_target_without_a_measured_pose_stays_where_it_is() -> None:
    with Cell(**MOVING, **SLOW_STEP, output="pose") as cell:
        targets: list[PoseStamped] = []
        cell.hear(PoseStamped, POSE, targets, 100)
        cell.start()
        cell.answer()
        assert "'pose'" in cell.wait_status(State.HOLD, Reason.TF_UNAVAILABLE).detail
        assert not targets, "nobody knows where the arm is"
        with cell.arm_at():
            cell.wait_status(State.RUNNING, Reason.OK)
            assert cell.answer().executed
            cell.wait(lambda: targets and targets[-1].pose.position.x > 0.001, "motion")
        cell.steady.jump(0.4)
        cell.wait_status(State.HOLD, Reason.TF_UNAVAILABLE)
        count = len(targets)
        cell.wait(lambda: len(targets) > count + 10, "targets that go on")
        assert len({t.pose.position.x for t in targets[count:]}) == 1


def test_the_last_target_is_where_the_arm_is(posed: tuple[Cell, list[PoseStamped]]) -> None:
    cell, targets = posed
    assert cell.change("deactivate")
    assert {t.pose.position.x for t in targets[-3:]} == {0.0}
    count = len(targets)
    cell.instruct("marker")  # in order behind whatever else the node had to say
    assert len(targets) == count


def test_a_dry_run_commands_no_pose_and_leaving_motion_ends_where_the_arm_is(
    posed: tuple[Cell, list[PoseStamped]],
) -> None:
    cell, targets = posed
    assert cell.enable_motion(False).success
    assert cell.answer().drop_reason == VLAAction.DRY_RUN
    count = len(targets)
    cell.answer()
    assert len(targets) == count
    assert targets[-1].pose.position.x == 0.0


def test_who_steers_moves_the_target(posed: tuple[Cell, list[PoseStamped]]) -> None:
    cell, targets = posed

    def up() -> TwistStamped:
        message = TwistStamped()
        message.header.frame_id = "base_link"
        message.header.stamp = cell.node.get_clock().now().to_msg()
        message.twist.linear.z = 0.004
        return message

    with cell.repeated(TwistStamped, f"{NAME}/teleop_twist", up):
        cell.wait(lambda: targets[-1].pose.position.z > 0.302, "a target that rises")
    cell.wait(lambda: len({t.pose.position.z for t in targets[-10:]}) == 1, "a target that is held")


def test_a_restarted_target_begins_where_the_arm_is() -> None:
    with Cell(**MOVING, output="pose") as cell:
        targets: list[PoseStamped] = []
        cell.hear(PoseStamped, POSE, targets, 100)
        assert cell.change("configure") and cell.change("activate")
        with cell.arm_at(x=0.1):
            cell.wait(lambda: targets, "a target")
        assert cell.change("deactivate")
        count = len(targets)
        with cell.arm_at(x=0.2):
            cell.wait(lambda: cell.node.ee_pose.read().position[0] == 0.2, "the new pose")
            assert cell.change("activate")
            cell.wait(lambda: len(targets) > count, "a target")
            assert targets[count].pose.position.x == 0.2


def test_a_pose_of_the_past_is_told_with_its_age() -> None:
    with Cell(base_frame="base_link") as cell:
        assert cell.change("configure")
        old = PoseStamped()
        old.header.frame_id = "base_link"
        old.header.stamp = Time(sec=100)
        with cell.repeated(PoseStamped, "ee_pose", lambda: old):
            pose = cell.wait(cell.node.ee_pose.read, "a pose")
        now_s = cell.node.get_clock().now().nanoseconds * 1e-9
        assert pose.age_s == pytest.approx(now_s - 100.0, abs=60.0)
        assert np.array_equal(pose.position, np.zeros(3))


def test_another_output_takes_the_topic_of_the_first_one_away() -> None:
    """A silent publisher on the topic of the twist would look like a rival to who streams there."""
    with Cell(base_frame="base_link") as cell:
        counted = cell.node.count_publishers
        for output, wanted in (
            ("twist", [1, 0]),
            ("pose", [0, 1]),
            ("none", [0, 0]),
            ("twist", [1, 0]),
        ):
            assert cell.node.set_parameters([Parameter("output", value=output)])[0].successful
            assert cell.change("configure") and cell.change("activate")
            offered = [counted(f"{NAME}/twist_cmd"), counted(POSE)]
            assert offered == wanted, output
            if output == "twist":
                cell.wait_twists(2)
            assert cell.change("deactivate") and cell.change("cleanup")
