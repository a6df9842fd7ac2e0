"""Motion needs somebody who follows the command, and nobody else who gives one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

import rclpy
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped
from node_cell import MOVING, NAME, Cell
from openvla_ros.msg import VLAAction
from rclpy.context import Context
from rclpy.node import Node

from openvla_ros.control.states import Reason, State
from openvla_ros.ros import controller_watch

pytestmark = pytest.mark.ros

SLOW_STEP = {"limits.linear_speed": 0.005}
TWIST = f"{NAME}/twist_cmd"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no controller comes, there is no need to wait for it."""
    monkeypatch.setattr(controller_watch, "PATIENCE_S", 0.0)


class Controller:
    """A process that listens to a command topic; use as a context manager."""

    def __init__(self, name: str, kind: type = TwistStamped, topic: str = TWIST) -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        self._node = Node(name, context=self._context)
        self._node.create_subscription(kind, topic, lambda _: None, 1)

    def __enter__(self) -> Controller:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        if self._context.ok():
            self._node.destroy_node()
            rclpy.shutdown(context=self._context)


@pytest.fixture
def controlled() -> Iterator[tuple[Cell, Controller]]:
    """A cell whose arm moves; only `servo` counts as controller, the peer goes on listening."""
    with (
        Cell(**MOVING, **SLOW_STEP, controller_node="servo") as cell,
        Controller("servo") as controller,
    ):
        cell.start()
        assert cell.answer().executed
        cell.wait_moving()
        yield cell, controller


def test_a_lost_controller_stops_the_arm_until_it_is_back_and_started(
    controlled: tuple[Cell, Controller],
) -> None:
    cell, controller = controlled
    controller.leave()
    cell.wait_zero()
    assert "'servo'" in cell.wait_status(State.HOLD, Reason.NO_CONTROLLER).detail
    assert cell.answer().drop_reason == VLAAction.HOLD
    refused = cell.trigger("start")
    assert not refused.success and TWIST in refused.message
    with Controller("servo"):
        cell.wait(lambda: "is back" in cell.statuses[-1].detail, "the news that it is back")
        assert not cell.answer().executed, "nobody has said that the arm may move again"
        assert cell.trigger("start").success
        assert cell.answer().executed
        cell.wait_moving()


def test_a_second_publisher_is_a_fault_until_it_is_gone_and_reset() -> None:
    with Cell(**MOVING, **SLOW_STEP) as cell:
        cell.start()
        assert cell.answer().executed
        cell.wait_moving()
        rival = cell.peer.create_publisher(TwistStamped, TWIST, 1)
        cell.wait_zero()
        assert "/peer" in cell.wait_status(State.FAULT, Reason.MULTIPLE_PUBLISHERS).detail
        refused = cell.trigger("reset")
        assert not refused.success and "/peer" in refused.message
        cell.drop()  # a fault lets nothing through, and the reset has changed nothing
        cell.peer.destroy_publisher(rival)
        cell.wait(lambda: cell.peer.count_publishers(TWIST) == 1, "one publisher")
        cell.wait(lambda: cell.trigger("reset").success, "a reset")
        assert cell.answer().executed
        cell.wait_moving()


@pytest.mark.parametrize("name", ["rosbag2_recorder", "openvla_monitor", "_ros2cli_123"])
def test_who_only_listens_is_no_controller(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cell(**MOVING) as cell, Controller(name):
        assert cell.change("configure")
        cell.peer.destroy_subscription(cell.twist_ear)
        seen = cell.node.get_subscriptions_info_by_topic
        cell.wait(lambda: [i.node_name for i in seen(TWIST)] == [name], "only the listener")
        monkeypatch.setattr(controller_watch, "PATIENCE_S", 0.0)
        assert not cell.change("activate")
        monkeypatch.undo()
        status = cell.wait_status(State.READY, Reason.NO_CONTROLLER)
        assert name in status.detail and TWIST in status.detail
        with Controller("servo_node"):
            assert cell.change("activate")
            cell.wait_status(State.IDLE, Reason.NO_INSTRUCTION)
            assert cell.change("deactivate")
            cell.wait_status(State.READY, Reason.OK)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", ["_NODE_NAME_UNKNOWN_", "_CREATED_BY_BARE_DDS_APP_"])
def test_a_subscriber_without_a_name_is_a_controller(name: str) -> None:
    """ROS loses the name of a node that was created again while the old one still lingered."""
    with Cell(**MOVING) as cell, Controller("servo"):
        seen = cell.node.get_subscriptions_info_by_topic

        def nameless(topic: str) -> list:
            infos = seen(topic)
            for info in infos:
                info.node_name = name
            return infos

        cell.wait(lambda: "servo" in [i.node_name for i in seen(TWIST)], "the controller")
        cell.node.get_subscriptions_info_by_topic = nameless
        cell.start()
        assert cell.answer().executed
        cell.wait_moving()


@pytest.mark.usefixtures("impatient")
def test_who_listens_to_another_type_is_no_controller() -> None:
    """An unstamped Twist never arrives, and nothing else would say so."""
    with Cell(**MOVING) as cell, Controller("diff_drive", Twist):
        cell.peer.destroy_subscription(cell.twist_ear)
        assert cell.change("configure")
        seen = cell.node.get_subscriptions_info_by_topic
        cell.wait(lambda: [i.node_name for i in seen(TWIST)] == ["diff_drive"], "the other node")
        assert not cell.change("activate")
        detail = cell.wait_status(State.READY, Reason.NO_CONTROLLER).detail
        assert "TwistStamped" in detail and "diff_drive" in detail


def test_a_dry_run_needs_no_controller_and_motion_is_refused_without_one() -> None:
    with Cell(**{**MOVING, "motion_enabled": False}, controller_node="/servo") as cell:
        cell.start()
        assert cell.answer().drop_reason == VLAAction.DRY_RUN
        refused = cell.enable_motion(True)
        assert not refused.success and "/servo" in refused.message
        assert cell.node.get_parameter("motion_enabled").value is False
        with Controller("servo"):
            cell.wait(lambda: cell.enable_motion(True).success, "motion")
            assert cell.answer().executed
            cell.wait_moving()


def test_without_require_controller_nobody_looks() -> None:
    with Cell(**MOVING, require_controller=False, controller_node="nobody") as cell:
        rival = cell.peer.create_publisher(TwistStamped, TWIST, 1)
        cell.start()
        assert cell.answer().executed
        cell.wait_moving()
        cell.peer.destroy_publisher(rival)


def test_with_pose_output_the_controller_listens_to_the_pose() -> None:
    with Cell(**MOVING, output="pose", controller_node="crisp") as cell:
        assert cell.change("configure")
        with Controller("crisp"):
            assert not cell.change("activate")
        detail = cell.wait_status(State.READY, Reason.NO_CONTROLLER).detail
        assert f"{NAME}/pose_cmd" in detail and "PoseStamped" in detail
        with Controller("crisp", PoseStamped, f"{NAME}/pose_cmd"):
            assert cell.change("activate")


def test_with_output_none_another_process_may_stream_and_this_node_is_silent() -> None:
    with Cell(**MOVING, output="none") as cell:
        streamer = cell.peer.create_publisher(TwistStamped, TWIST, 1)
        cell.start()
        cell.wait(lambda: cell.node.count_publishers(TWIST) == 1, "only the other process")
        assert cell.answer().executed
        cell.wait_status(State.RUNNING, Reason.OK)
        second = cell.peer.create_publisher(TwistStamped, TWIST, 1)
        cell.wait_status(State.FAULT, Reason.MULTIPLE_PUBLISHERS)
        assert not cell.twists
        for publisher in (streamer, second):
            cell.peer.destroy_publisher(publisher)
