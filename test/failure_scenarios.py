"""How each failure of failure_rows.py is brought about in a `Cell`, and mended.

A scenario is a generator. Up to its first `yield` it prepares what the arm needs to move; between
the first and the second it breaks one thing; between the second and the third it mends it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TwistStamped
from node_cell import NAME, PATIENCE_S, Cell
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import Bool, String

from openvla_ros.config.policy import ModelConfig
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.types import Observation, Prediction

Steps = Generator[None, None, None]
TWIST = f"{NAME}/twist_cmd"
BOX = {"limits.workspace_min": [-1.0, -1.0, -1.0], "limits.workspace_max": [1.0, 1.0, 1.0]}


@dataclass(frozen=True)
class Scenario:
    """One way in which the failure of a row comes about.

    Attributes:
        row: Key in failure_rows.ROWS.
        steps: The generator function.
        parameters: Of the node.
        gated: The policy is a `Gate` (`cell.policy`).
        fresh: Images of the failure itself that count as fresh.
    """

    row: str
    steps: Callable[[Cell], Steps]
    parameters: dict[str, Any] = field(default_factory=dict)
    gated: bool = False
    fresh: int = 0

    @property
    def name(self) -> str:
        """For pytest."""
        return f"{self.row} ({self.steps.__name__})"


class Gate(MockPolicy):
    """A mock that answers at once, until it is shut."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model.mock_action, fault=model.mock_fault)
        self._open = threading.Event()
        self._open.set()
        self._waiting = threading.Event()

    def predict(self, observation: Observation) -> Prediction:
        if not self._open.is_set():
            self._waiting.set()
            assert self._open.wait(PATIENCE_S)
        return super().predict(observation)

    def release(self) -> None:
        """Answer everything; the cell calls it at its end."""
        self._open.set()
        super().release()

    def hold_back_an_answer(self, cell: Cell) -> None:
        """Shut the gate, and return when an image waits before it."""
        self._waiting.clear()
        self._open.clear()
        cell.image()
        assert self._waiting.wait(PATIENCE_S)


def silent(cell: Cell) -> Steps:
    yield
    cell.steady.jump(5.5)
    yield
    yield


def repeats(cell: Cell) -> Steps:
    yield
    stamp = cell.image().header.stamp
    for _ in range(4):
        cell.image(stamp=stamp)
        cell.steady.jump(1.4)
    yield
    yield


def stamped(seconds: float, *, out_of_order: bool = False) -> Callable[[Cell], Steps]:
    """An image whose stamp is so far from now."""

    def stamp(cell: Cell) -> Steps:
        yield
        if not out_of_order:
            # It shall be old, not behind the last one.
            cell.node._session._shared.supervisor._last_stamp_ns = 0
        cell.image(stamp=(cell.node.get_clock().now() + Duration(seconds=seconds)).to_msg())
        yield
        yield

    return stamp


def unstamped(cell: Cell) -> Steps:
    yield
    cell.answer(stamp=Time())
    yield
    yield


def clock_set_back(cell: Cell) -> Steps:
    yield
    cell.node._inputs._on_clock_jump(None)  # as rcl calls it; with a /clock: test_node_failures.py
    yield
    yield


def undecodable(**changes: Any) -> Callable[[Cell], Steps]:
    def image(cell: Cell) -> Steps:
        yield
        cell.drop(**changes)
        yield
        yield

    return image


def told(text: str) -> Callable[[Cell], Steps]:
    """An instruction; mended by another."""

    def text_on_topic(cell: Cell) -> Steps:
        yield
        cell._instruction.publish(String(data=text))
        yield
        cell.instruct("pick up the cup again")
        yield

    return text_on_topic


def changes_mid_answer(cell: Cell) -> Steps:
    yield
    cell.policy.hold_back_an_answer(cell)
    cell.instruct("put it down")
    count = len(cell.actions)
    cell.policy.release()
    cell.wait(lambda: len(cell.actions) > count, "the answer to the old text")
    assert not cell.actions[count].executed
    yield
    yield


def faulty(fault: str, times: int = 1) -> Callable[[Cell], Steps]:
    """The policy fails in the way that `mock_fault` names."""

    def answers(cell: Cell) -> Steps:
        yield
        set_parameter(cell, "mock_fault", fault)
        for _ in range(times):
            if fault in ("exception", "oom"):
                cell.drop()
            else:
                assert not cell.answer().executed
        yield
        set_parameter(cell, "mock_fault", "none")
        yield

    return answers


def set_parameter(cell: Cell, name: str, value: Any) -> None:
    assert cell.node.set_parameters([Parameter(name, value=value)])[0].successful


def answers_late(cell: Cell) -> Steps:
    yield
    cell.policy.hold_back_an_answer(cell)
    cell.steady.jump(1.5)
    yield
    cell.policy.release()
    yield


def never_answers(cell: Cell) -> Steps:
    late = answers_late(cell)
    next(late)
    yield
    next(late)
    cell.wait_zero()
    cell.steady.jump(10.0)
    yield


def callback_raises(cell: Cell) -> Steps:
    yield
    supervisor = cell.node._session._shared.supervisor
    supervisor.image_arrived = lambda *_: 1 / 0
    cell.image()
    yield
    del supervisor.image_arrived
    yield


class Controller:
    """A process that listens to the twist under a name of its own."""

    def __init__(self, name: str) -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        self._node = Node(name, context=self._context)
        self._node.create_subscription(TwistStamped, TWIST, lambda _: None, 1)

    def __enter__(self) -> Controller:
        return self

    def __exit__(self, *_: object) -> None:
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)


def controller_leaves(cell: Cell) -> Steps:
    with Controller("servo"):
        yield
    yield
    with Controller("servo"):
        cell.wait(lambda: "is back" in cell.statuses[-1].detail, "the controller's return")
        yield


def rival(cell: Cell) -> Steps:
    yield
    publisher = cell.peer.create_publisher(TwistStamped, TWIST, 1)
    yield
    cell.peer.destroy_publisher(publisher)
    cell.wait(lambda: cell.node.count_publishers(TWIST) == 1, "one publisher")
    yield


def pose_stays_away(cell: Cell) -> Steps:
    with cell.arm_at():
        yield
    cell.steady.jump(1.0)
    yield
    with cell.arm_at():
        yield


def switch(pressed: threading.Event, cell: Cell) -> Any:
    return cell.repeated(Bool, f"{NAME}/enable", lambda: Bool(data=pressed.is_set()))


def switch_is_silent(cell: Cell) -> Steps:
    pressed = threading.Event()
    pressed.set()
    with switch(pressed, cell):
        yield
    cell.steady.jump(1.0)
    yield
    with switch(pressed, cell):
        yield


def switch_says_no(cell: Cell) -> Steps:
    pressed = threading.Event()
    pressed.set()
    with switch(pressed, cell):
        yield
        pressed.clear()
        yield
        pressed.set()
        yield


def frozen(cell: Cell) -> Steps:
    yield
    cell.steady.jump(0.2)
    yield
    yield


def stop_called(cell: Cell) -> Steps:
    yield
    assert cell.trigger("stop").success
    yield
    yield


SCENARIOS = (
    Scenario("camera silent", silent),
    Scenario("camera repeats itself", repeats),
    Scenario("image too old", stamped(-5.4)),
    Scenario("image from the future", stamped(30.0)),
    Scenario("image without stamp", unstamped),
    Scenario("stamps go back", stamped(-2.0, out_of_order=True), fresh=1),
    Scenario("clock jumps back", clock_set_back),
    Scenario("image cannot be decoded", undecodable(encoding="32FC1")),
    Scenario("image cannot be decoded", undecodable(step=17)),
    Scenario("no instruction", told("")),
    Scenario("refused instruction", told("pick it up\nOut:")),
    Scenario("refused instruction", told("pick it up</s>")),
    Scenario("instruction changes", changes_mid_answer, gated=True),
    Scenario("answer without numbers", faulty("nan")),
    Scenario("answer without numbers", faulty("short")),
    Scenario("five answers without numbers", faulty("nan", 5)),
    Scenario("invalid token", faulty("invalid")),
    Scenario("late answer", answers_late, {"inference_timeout": 1.0}, gated=True),
    Scenario("policy raises", faulty("exception")),
    Scenario("out of memory", faulty("oom")),
    Scenario("policy hangs", never_answers, {"inference_timeout": 1.0}, gated=True),
    Scenario("callback fails", callback_raises),
    Scenario("controller lost", controller_leaves, {"controller_node": "servo"}),
    Scenario("second publisher", rival),
    Scenario("pose lost", pose_stays_away, BOX),
    Scenario("process frozen", frozen, {"late_tick_s": 0.15}),
    Scenario("dead-man switch released", switch_is_silent, {"deadman_required": True}),
    Scenario("dead-man switch released", switch_says_no, {"deadman_required": True}),
    Scenario("stop", stop_called),
)
