"""Gripper backends against servers that accept, reject, abort, vanish and come back."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="backends talk ROS; run `make setup`")
from action_msgs.msg import GoalStatus

from openvla_ros.config.motion import GripperConfig
from openvla_ros.ros.gripper_backends import (
    PWM_RELEASE_S,
    STOP_ANSWER_S,
    ActionGripper,
    FrankaGripper,
    InterbotixGripper,
    franka_grasp,
    franka_move,
    gripper_command,
    parallel_gripper_command,
)

pytestmark = pytest.mark.ros
OPEN, CLOSED = 1.0, 0.0
DONE, ABORTED = GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_ABORTED


class Log:
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.infos: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def info(self, text: str) -> None:
        self.infos.append(text)


class Pending:
    """A future that the test answers."""

    def __init__(self) -> None:
        self._callbacks: list[Any] = []
        self._value: Any = None

    def add_done_callback(self, callback: Any) -> None:
        self._callbacks.append(callback)

    def result(self) -> Any:
        return self._value

    def answer(self, value: Any) -> None:
        self._value = value
        for callback in self._callbacks:
            callback(self)


class FakeActionClient:
    """Records goals; the test decides what becomes of each."""

    def __init__(self, log: list[Any], *, name: str = "") -> None:
        self.is_ready = True
        self.goals: list[Any] = []
        self.accepts: list[Pending] = []
        self.results: list[Pending] = []
        self._log = log
        self._name = name

    def server_is_ready(self) -> bool:
        return self.is_ready

    def send_goal_async(self, goal: Any) -> Pending:
        self.goals.append(goal)
        self.accepts.append(Pending())
        self._log.append((self._name, goal))
        return self.accepts[-1]

    def accept(self) -> None:
        self.results.append(Pending())
        handle = SimpleNamespace(accepted=True, get_result_async=lambda: self.results[-1])
        self.accepts[-1].answer(handle)

    def reject(self) -> None:
        self.accepts[-1].answer(SimpleNamespace(accepted=False))

    def finish(self, status: int, error: str = "") -> None:
        self.results[-1].answer(SimpleNamespace(status=status, result=SimpleNamespace(error=error)))


class ActionCell:
    """An ActionGripper whose goals are the words "open" and "close"."""

    def __init__(self) -> None:
        self.log = Log()
        self.client = FakeActionClient([])
        self.gripper = ActionGripper(
            GripperConfig(),
            self.log,
            clients={"grip": self.client},
            order_of=lambda is_open: ("grip", "open" if is_open else "close"),
        )


def test_each_change_is_sent_once_however_often_it_is_repeated() -> None:
    cell = ActionCell()
    for opening in (OPEN, OPEN, OPEN, CLOSED, CLOSED, OPEN):
        cell.gripper.command(opening)
        cell.gripper.watch()
    assert cell.client.goals == ["open", "close", "open"]


def test_a_late_server_gets_the_wish_as_soon_as_it_is_there() -> None:
    cell = ActionCell()
    cell.client.is_ready = False
    cell.gripper.command(CLOSED)
    cell.gripper.command(CLOSED)
    assert cell.client.goals == []
    assert cell.log.warnings == ["gripper: no action server grip: the gripper does not move"]
    cell.client.is_ready = True
    cell.gripper.command(CLOSED)
    cell.client.accept()
    cell.client.finish(DONE)
    assert cell.client.goals == ["close"]
    assert cell.gripper.trouble == ""


def test_a_restarted_server_is_told_again() -> None:
    """Its memory is gone: a controller that starts open would let the object fall."""
    cell = ActionCell()
    cell.gripper.command(CLOSED)
    cell.client.is_ready = False
    cell.gripper.watch()
    cell.client.is_ready = True
    cell.gripper.watch()
    assert cell.client.goals == ["close"], "nothing moves before the arm may move"
    cell.gripper.command(CLOSED)
    assert cell.client.goals == ["close", "close"]


@pytest.mark.parametrize("how", ["rejected", "aborted"])
def test_a_refused_goal_is_one_warning_and_is_not_repeated(how: str) -> None:
    cell = ActionCell()
    cell.gripper.command(CLOSED)
    if how == "rejected":
        cell.client.reject()
    else:
        cell.client.accept()
        cell.client.finish(ABORTED, "too thick")
    for _ in range(5):
        cell.gripper.command(CLOSED)
        cell.gripper.watch()
    assert cell.client.goals == ["close"]
    assert len(cell.log.warnings) == 1 and how in cell.gripper.trouble
    assert how == "rejected" or "too thick" in cell.gripper.trouble
    cell.gripper.command(OPEN)
    cell.client.accept()
    cell.client.finish(DONE)
    assert cell.client.goals == ["close", "open"] and cell.gripper.trouble == ""


def test_the_end_of_a_goal_that_a_newer_one_replaced_is_no_trouble() -> None:
    cell = ActionCell()
    cell.gripper.command(CLOSED)
    cell.client.accept()
    cell.gripper.command(OPEN)
    cell.client.finish(ABORTED)  # preempted: what a gripper controller answers to the older goal
    assert cell.gripper.trouble == "" and cell.log.warnings == []


def test_a_closed_backend_is_silent() -> None:
    cell = ActionCell()
    cell.gripper.command(CLOSED)
    cell.gripper.close()
    cell.client.is_ready = False
    cell.gripper.command(OPEN)
    cell.gripper.watch()
    cell.client.reject()
    assert cell.client.goals == ["close"] and cell.log.warnings == []


# Franka ------------------------------------------------------------------------------------------


class FakeStop:
    def __init__(self, log: list[Any]) -> None:
        self.is_ready = True
        self.calls: list[Pending] = []
        self._log = log

    def service_is_ready(self) -> bool:
        return self.is_ready

    def call_async(self, request: Any) -> Pending:
        self._log.append(("stop", request))
        self.calls.append(Pending())
        return self.calls[-1]


class FrankaCell:
    def __init__(self) -> None:
        self.log = Log()
        self.wire: list[Any] = []
        self.now_s = 100.0
        self.stop = FakeStop(self.wire)
        self.clients = {n: FakeActionClient(self.wire, name=n) for n in ("move", "grasp")}
        self.gripper = FrankaGripper(
            GripperConfig(),
            self.log,
            clients=self.clients,
            order_of=lambda is_open: ("move", "open") if is_open else ("grasp", "close"),
            stop=self.stop,
            stop_request=None,
            clock=lambda: self.now_s,
        )


def test_franka_stops_the_hand_before_every_goal() -> None:
    cell = FrankaCell()
    cell.gripper.command(CLOSED)
    assert cell.wire == [("stop", None)], "the goal waits for the answer of stop"
    cell.stop.calls[0].answer(SimpleNamespace(success=False))  # nothing to stop is no obstacle
    cell.gripper.command(OPEN)
    cell.stop.calls[1].answer(SimpleNamespace(success=True))
    assert cell.wire == [("stop", None), ("grasp", "close"), ("stop", None), ("move", "open")]


def test_franka_changes_its_mind_while_stopping_and_sends_only_the_newest_goal() -> None:
    cell = FrankaCell()
    cell.gripper.command(CLOSED)
    cell.gripper.command(OPEN)
    for call in cell.stop.calls:
        call.answer(SimpleNamespace(success=True))
    assert cell.clients["grasp"].goals == [] and cell.clients["move"].goals == ["open"]


def test_franka_that_does_not_answer_stop_gets_no_goal_later() -> None:
    cell = FrankaCell()
    cell.gripper.command(CLOSED)
    cell.now_s += STOP_ANSWER_S + 0.1
    cell.gripper.watch()
    cell.gripper.watch()
    assert len(cell.log.warnings) == 1 and "stop" in cell.gripper.trouble
    cell.stop.calls[0].answer(SimpleNamespace(success=True))
    assert cell.clients["grasp"].goals == []


def test_franka_needs_both_actions_and_the_stop() -> None:
    cell = FrankaCell()
    cell.stop.is_ready = False
    cell.gripper.command(CLOSED)
    assert cell.wire == [] and "stop" in cell.gripper.trouble
    cell.stop.is_ready, cell.clients["move"].is_ready = True, False
    cell.gripper.command(CLOSED)
    assert cell.wire == [] and "move" in cell.gripper.trouble


# Interbotix --------------------------------------------------------------------------------------


class FakePublisher:
    topic_name = "/wx250s/commands/joint_single"

    def __init__(self) -> None:
        self.listeners = 1
        self.sent: list[tuple[str, float]] = []

    def get_subscription_count(self) -> int:
        return self.listeners

    def publish(self, message: Any) -> None:
        self.sent.append((message.name, message.cmd))


class InterbotixCell:
    def __init__(self, **config: Any) -> None:
        config = {"pwm": 250, **config}
        self.log = Log()
        self.now_s = 0.0
        self.publisher = FakePublisher()
        self.gripper = InterbotixGripper(
            GripperConfig(**config),
            self.log,
            publisher=self.publisher,
            message_type=SimpleNamespace,
            clock=lambda: self.now_s,
        )

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.gripper.watch()


def test_interbotix_opens_for_a_second_and_holds_when_closed() -> None:
    cell = InterbotixCell()
    cell.gripper.command(OPEN)
    cell.pass_time(PWM_RELEASE_S - 0.1)
    assert cell.publisher.sent == [("gripper", 250.0)]
    cell.pass_time(0.2)
    cell.pass_time(5.0)
    assert cell.publisher.sent == [("gripper", 250.0), ("gripper", 0.0)]
    cell.gripper.command(CLOSED)
    cell.pass_time(60.0)
    assert cell.publisher.sent[2:] == [("gripper", -250.0)]


def test_interbotix_in_linear_position_mode_gets_the_gap_and_nothing_else() -> None:
    """A PWM number would be taken for metres."""
    cell = InterbotixCell(pwm=0, open_position=0.074, closed_position=0.03)
    for opening in (OPEN, CLOSED, OPEN):
        cell.gripper.command(opening)
        cell.pass_time(5.0)
    assert [cmd for _, cmd in cell.publisher.sent] == pytest.approx([0.074, 0.03, 0.074])


def test_interbotix_that_closes_while_opening_does_not_let_go_a_moment_later() -> None:
    cell = InterbotixCell()
    cell.gripper.command(OPEN)
    cell.pass_time(0.5)
    cell.gripper.command(CLOSED)
    cell.pass_time(2.0)
    assert [cmd for _, cmd in cell.publisher.sent] == [250.0, -250.0]


def test_interbotix_ends_an_opening_when_the_node_is_cleaned_up_and_drops_nothing() -> None:
    opening, holding = InterbotixCell(joint="left_gripper"), InterbotixCell()
    opening.gripper.command(OPEN)
    opening.gripper.close()
    assert opening.publisher.sent == [("left_gripper", 250.0), ("left_gripper", 0.0)]
    holding.gripper.command(CLOSED)
    holding.gripper.close()
    assert holding.publisher.sent == [("gripper", -250.0)]


def test_interbotix_tells_a_restarted_driver_again() -> None:
    cell = InterbotixCell()
    cell.gripper.command(CLOSED)
    cell.publisher.listeners = 0
    cell.gripper.watch()
    assert "/wx250s/commands/joint_single" in cell.gripper.trouble
    cell.publisher.listeners = 1
    cell.gripper.command(CLOSED)
    assert [cmd for _, cmd in cell.publisher.sent] == [-250.0, -250.0]
    assert cell.gripper.trouble == ""


# Goals -------------------------------------------------------------------------------------------


def nested(*names: str) -> Callable[[], Any]:
    """A goal type whose attributes of these names have attributes themselves."""
    return lambda: SimpleNamespace(**{name: SimpleNamespace() for name in names})


def test_a_gripper_command_carries_the_gap_and_the_force() -> None:
    config = GripperConfig(open_position=0.08, closed_position=0.01, max_effort=20.0)
    opened = gripper_command(nested("command"), config, True).command
    closed = gripper_command(nested("command"), config, False).command
    assert (opened.position, closed.position) == (0.08, 0.01)
    assert closed.max_effort == 20.0


def test_a_server_that_counts_from_the_middle_gets_half_the_gap() -> None:
    """Franka's ~/gripper_action doubles what it gets: the whole gap would be out of range."""
    config = GripperConfig(half_width=True, open_position=0.08)
    assert gripper_command(nested("command"), config, True).command.position == 0.04


def test_a_parallel_gripper_command_names_its_joint() -> None:
    config = GripperConfig(joint="knuckle", max_effort=15.0)
    command = parallel_gripper_command(nested("command"), config, True).command
    assert (command.name, command.position, command.effort) == (["knuckle"], [0.08], [15.0])


def test_franka_opens_by_move_and_closes_by_a_grasp_of_any_width() -> None:
    config = GripperConfig(max_effort=25.0, speed=0.05)
    move = franka_move(nested(), config)
    assert (move.width, move.speed) == (0.08, 0.05)
    grasp = franka_grasp(nested("epsilon"), config)
    assert (grasp.width, grasp.speed, grasp.force) == (0.0, 0.05, 25.0)
    assert grasp.epsilon.outer == 0.08, "a thick object is a success, not an abort"
