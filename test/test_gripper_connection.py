"""Gripper backends over DDS, with the real message packages where they are installed."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`")
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from node_cell import MOVING, Cell
from openvla_ros.msg import VLAStatus
from rclpy.action import ActionServer, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.context import Context
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from std_srvs.srv import Trigger

from openvla_ros.config.motion import GripperConfig
from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.gripper_connection import GripperConnection

pytestmark = pytest.mark.ros
PATIENCE_S = 30.0
OPEN, CLOSED = 1.0, 0.0


class Room:
    """Our node and the gripper's node, spun by one executor."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = Node("under_test", context=self.context)
        self.robot = Node("robot", context=self.context)
        self.group = ReentrantCallbackGroup()
        self.connection = GripperConnection(self.node)
        self.heard: list[Any] = []
        self._executor = MultiThreadedExecutor(4, context=self.context)
        self._executor.add_node(self.node)
        self._executor.add_node(self.robot)
        self._is_over = False
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._is_over:
            self._executor.spin_once(timeout_sec=0.05)

    def serve(self, action: type, name: str, *, is_accepting: bool = True) -> ActionServer:
        def run(handle: Any) -> Any:
            self.heard.append((name, handle.request))
            handle.succeed()
            return action.Result()

        return ActionServer(
            self.robot,
            action,
            name,
            execute_callback=run,
            goal_callback=lambda _: GoalResponse.ACCEPT if is_accepting else GoalResponse.REJECT,
            callback_group=self.group,
        )

    def until(self, is_true: Callable[[], bool], repeat: Callable[[], None] = lambda: None) -> None:
        """Wait for a fact, doing what the node does meanwhile."""
        end = time.monotonic() + PATIENCE_S
        while not is_true():
            assert time.monotonic() < end, f"not within {PATIENCE_S} s; heard {self.heard}"
            repeat()
            time.sleep(0.02)

    def close(self) -> None:
        self.connection.close()
        self._is_over = True
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        self.robot.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def room() -> Iterator[Room]:
    made = Room()
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(
    ("backend", "package", "debian"),
    [
        ("gripper_command", "control_msgs", "control-msgs"),
        ("parallel_gripper_command", "control_msgs", "control-msgs"),
        ("franka", "franka_msgs", "franka-msgs"),
        ("interbotix", "interbotix_xs_msgs", "interbotix-xs-msgs"),
    ],
)
def test_a_missing_message_package_is_named(
    room: Room, backend: str, package: str, debian: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("msg", "action"):
        monkeypatch.setitem(sys.modules, f"{package}.{kind}", None)
    monkeypatch.setenv("ROS_DISTRO", "humble")
    with pytest.raises(ConfigurationError, match=rf"{package}.*ros-humble-{debian}"):
        room.connection.connect(GripperConfig(backend=backend, joint="knuckle"))
    assert room.connection.backend is None


def test_a_parallel_gripper_without_a_joint_is_refused(room: Room) -> None:
    with pytest.raises(ConfigurationError, match=r"gripper\.joint"):
        room.connection.connect(GripperConfig(backend="parallel_gripper_command"))


def test_backend_none_does_nothing(room: Room) -> None:
    room.connection.connect(GripperConfig())
    room.connection.command(OPEN)
    assert room.connection.trouble == ""


def package(name: str) -> Any:
    return pytest.importorskip(
        name, reason=f"{name.split('.')[0]} comes with an apt ROS or a workspace, not with wheels"
    )


@pytest.mark.parametrize("backend", ["gripper_command", "parallel_gripper_command"])
def test_a_ros2_control_gripper_opens_and_closes(room: Room, backend: str) -> None:
    actions = package("control_msgs.action")
    is_parallel = backend.startswith("parallel")
    kind = actions.ParallelGripperCommand if is_parallel else actions.GripperCommand
    name = "gripper_controller/gripper_cmd"
    server = room.serve(kind, name)
    room.connection.connect(GripperConfig(backend=backend, joint="knuckle", max_effort=12.0))
    room.until(lambda: len(room.heard) == 1, lambda: room.connection.command(OPEN))
    room.until(lambda: len(room.heard) == 2, lambda: room.connection.command(CLOSED))
    commands = [request.command for _, request in room.heard]
    if is_parallel:
        assert [list(c.position) for c in commands] == [[0.08], [0.0]]
        assert list(commands[0].name) == ["knuckle"] and list(commands[1].effort) == [12.0]
    else:
        assert [c.position for c in commands] == [0.08, 0.0] and commands[1].max_effort == 12.0
    room.until(lambda: room.connection.trouble == "")

    server.destroy()  # the controller restarts: the fingers have forgotten
    room.until(lambda: "no action server" in room.connection.trouble)
    again = room.serve(kind, name)
    room.until(lambda: len(room.heard) == 3, lambda: room.connection.command(CLOSED))
    again.destroy()


def test_a_rejected_goal_is_said_and_not_repeated(room: Room) -> None:
    actions = package("control_msgs.action")
    server = room.serve(actions.GripperCommand, "hand/gripper_action", is_accepting=False)
    config = GripperConfig(backend="gripper_command", name="hand/gripper_action")
    room.connection.connect(config)
    room.until(
        lambda: "rejected" in room.connection.trouble, lambda: room.connection.command(CLOSED)
    )
    assert room.heard == []
    server.destroy()


def test_a_franka_hand_is_stopped_then_grasps_then_opens(room: Room) -> None:
    actions = package("franka_msgs.action")

    def stop(_: Any, response: Any) -> Any:
        room.heard.append(("stop", None))
        response.success = True
        return response

    room.robot.create_service(Trigger, "franka_gripper/stop", stop, callback_group=room.group)
    servers = [
        room.serve(actions.Move, "franka_gripper/move"),
        room.serve(actions.Grasp, "franka_gripper/grasp"),
    ]
    room.connection.connect(GripperConfig(backend="franka"))
    room.until(lambda: len(room.heard) == 2, lambda: room.connection.command(CLOSED))
    room.until(lambda: len(room.heard) == 4, lambda: room.connection.command(OPEN))
    names = [name for name, _ in room.heard]
    assert names == ["stop", "franka_gripper/grasp", "stop", "franka_gripper/move"]
    grasp, move = room.heard[1][1], room.heard[3][1]
    assert (grasp.width, grasp.force, grasp.epsilon.outer) == (0.0, 30.0, 0.08)
    assert (move.width, move.speed) == (0.08, 0.1)
    for server in servers:
        server.destroy()


def test_an_interbotix_gripper_gets_pwm_on_its_topic(room: Room) -> None:
    messages = package("interbotix_xs_msgs.msg")
    topic = "/wx250s/commands/joint_single"
    room.robot.create_subscription(
        messages.JointSingleCommand,
        topic,
        lambda m: room.heard.append((m.name, m.cmd)),
        10,
        callback_group=room.group,
    )
    room.connection.connect(GripperConfig(backend="interbotix", name=topic, pwm=250))
    room.until(lambda: len(room.heard) == 1, lambda: room.connection.command(CLOSED))
    room.until(lambda: len(room.heard) == 3, lambda: room.connection.command(OPEN))
    assert room.heard == [("gripper", -250.0), ("gripper", 250.0), ("gripper", 0.0)]


# In the node --------------------------------------------------------------------------------------


def test_a_node_without_the_package_of_its_gripper_is_not_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "franka_msgs.action", None)
    with Cell(**{"gripper.backend": "franka"}) as cell:
        assert not cell.change("configure")
        status = cell.wait_status(VLAStatus.UNCONFIGURED, VLAStatus.BAD_PARAMETER)
        assert "franka_msgs" in status.detail and "install" in status.detail


class Recording:
    """A backend that writes down what the node wants."""

    trouble = ""

    def __init__(self) -> None:
        self.wanted: list[float] = []
        self.is_closed = False

    def command(self, opening: float) -> None:
        self.wanted.append(opening)

    def close(self) -> None:
        self.is_closed = True


def test_the_node_moves_the_fingers_only_while_the_arm_may_move() -> None:
    opening_action = [0.001, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    dry = {"mock_action": opening_action, "gripper.sticky_steps": 1, "base_frame": "base_link"}
    with Cell(**dry) as cell:
        backend = Recording()
        cell.start()
        cell.node._gripper.backend = backend
        cell.answer()
        assert backend.wanted == [], "a dry run moves no finger"
        assert cell.enable_motion(True).success
        cell.wait(lambda: cell.answer() and backend.wanted, "a command")
        assert backend.wanted[0] == 1.0
        assert cell.trigger("stop").success
        count = len(backend.wanted)
        cell.wait_zero()
        assert len(backend.wanted) == count, "stopped, and still commanding the fingers"
        assert cell.change("deactivate") and cell.change("cleanup")
        assert backend.is_closed


def test_a_moving_node_publishes_its_own_topic_with_every_backend() -> None:
    with Cell(mock_action=[0.001, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], **MOVING) as cell:
        cell.start()
        cell.node._gripper.backend = backend = Recording()
        cell.wait(lambda: cell.answer() and cell.grippers, "~/gripper_cmd")
        assert backend.wanted[0] == cell.grippers[0].opening == 0.0


def test_a_gripper_in_trouble_is_a_warning_of_diagnostics_and_the_arm_goes_on() -> None:
    with Cell(mock_action=[0.001, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], **MOVING) as cell:
        heard: list[DiagnosticArray] = []
        cell.hear(DiagnosticArray, "/diagnostics", heard, 10)
        cell.start()
        backend = Recording()
        backend.trouble = "hand/grasp aborted the goal"
        cell.node._gripper.backend = backend

        def line() -> Any:
            lines = [s for s in heard[-1].status if s.name.endswith(": gripper")] if heard else []
            return next((s for s in lines if s.level == DiagnosticStatus.WARN), None)

        assert cell.wait(line, "a warning").message == "hand/grasp aborted the goal"
        cell.answer()
        cell.wait_moving()
