"""What every demo has: the node and its lifecycle, the monitor, the bag, Foxglove.

A `Scene` brings the rest: where pictures come from, what moves, and what happens in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.markup import escape

from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.child_processes import ChildProcesses
from openvla_ros.ros.demo_options import DemoError, DemoOptions
from openvla_ros.ros.demo_policy import NODE_NAME, DemoPolicy
from openvla_ros.ros.demo_report import DemoReport
from openvla_ros.ros.lifecycle_client import LifecycleClient, LifecycleError
from openvla_ros.ros.monitor import MonitorNode, spinning
from openvla_ros.ros.recorder import RecordedTopic, Recorder

FIRST_MESSAGES_S = 20.0  # discovery takes about 0.3 s; a loaded machine is given more
STOP_TIMEOUT_S = 10.0
FOXGLOVE_HOST, FOXGLOVE_PORT = "127.0.0.1", 8765


@dataclass
class Stage:
    """A running demo, as a scene sees it.

    Attributes:
        options: Of the user.
        policy: What runs.
        out: Folder for results.
        console: The screen.
        children: All processes; `children.check` raises when one has died.
        driver: A node for clients and subscriptions; it is spun.
        monitor: What the node says and does.
    """

    options: DemoOptions
    policy: DemoPolicy
    out: Path
    console: Console
    children: ChildProcesses
    driver: Node
    monitor: MonitorNode

    def seen(self, key: str) -> int:
        """How many messages of "status", "action", "twist" or "pose" have come."""
        return self.monitor.state.counts[key]

    def wait(self, is_true: Callable[[], bool], what: str, patience_s: float) -> None:
        """Return once something holds.

        Raises:
            DemoError: It does not within `patience_s`; the text quotes the node's log.
            ProcessDiedError: A process has ended.
        """
        deadline = time.monotonic() + patience_s
        while not is_true():
            self.children.check()
            if time.monotonic() > deadline:
                raise DemoError(
                    f"Waited {patience_s:.0f} s for {what}, in vain. The node's state is "
                    f"{self.monitor.state.state_text()}.\n{self.children.log_tail('node')}"
                )
            time.sleep(0.02)

    def wait_for_answers(self, count: int = 1) -> None:
        """Return when so many answers have come; as `wait`."""
        patience_s = FIRST_MESSAGES_S + count * self.policy.parameters["max_action_age"]
        wanted = self.seen("action") + count
        self.wait(lambda: self.seen("action") >= wanted, "an answer of the node", patience_s)


class Scene(Protocol):
    """Where pictures come from and what moves.

    Attributes:
        description: What the screen says about it.
        node_parameters: More parameters of the node.
        topics: What is recorded.
    """

    description: str
    node_parameters: dict[str, Any]
    topics: tuple[RecordedTopic, ...]

    def start(self, children: ChildProcesses, policy: DemoPolicy) -> None:
        """Start the processes beside the node."""

    def play(self, stage: Stage) -> None:
        """Do what there is to see; the node is active."""

    def finish(self, report: DemoReport, out: Path, policy: DemoPolicy, console: Console) -> None:
        """Write the results beside the bag; all processes have ended."""


@contextmanager
def open_stage(
    scene: Scene,
    options: DemoOptions,
    policy: DemoPolicy,
    out: Path,
    console: Console,
    children: ChildProcesses,
) -> Iterator[Stage]:
    """Give a stage with the node active, and wind it down; the bag is closed by then.

    Raises:
        DemoError: The node refuses a transition, or nothing moves.
        ProcessDiedError: A process has ended.
    """
    # Signals are ours: rclpy's handler would shut the context before the bag is closed.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        clock = Parameter("use_sim_time", value=scene.node_parameters.get("use_sim_time", False))
        driver = Node("openvla_demo", parameter_overrides=[clock])
        recorder = Recorder(driver, out / "bag", scene.topics)
        stage = Stage(options, policy, out, console, children, driver, MonitorNode(NODE_NAME))
        try:
            with spinning(driver, stage.monitor, *_foxglove(console)):
                lifecycle = LifecycleClient(driver, NODE_NAME)
                _bring_up(stage, lifecycle)
                yield stage
                _wind_down(lifecycle, console)
        finally:
            recorder.close()
    finally:
        rclpy.try_shutdown()


def _bring_up(stage: Stage, lifecycle: LifecycleClient) -> None:
    begin, check = time.monotonic(), stage.children.check
    with stage.console.status("loading the policy and testing that it looks at its images ..."):
        try:
            lifecycle.change("configure", stage.options.load_timeout_s, check)
            # Motion needs somebody who follows the twist.
            stage.wait(lambda: stage.seen("pose") > 0, "a pose of the arm", FIRST_MESSAGES_S)
            lifecycle.change("activate", STOP_TIMEOUT_S, check)
        except LifecycleError as error:
            status = stage.monitor.state.latest("status")
            reason = f" It says: {status.detail}" if status is not None and status.detail else ""
            raise DemoError(f"{error}{reason}\n{stage.children.log_tail('node')}") from error
    stage.console.print(f"The node is active after {time.monotonic() - begin:.1f} s.")


def _wind_down(lifecycle: LifecycleClient, console: Console) -> None:
    try:
        lifecycle.change("deactivate", STOP_TIMEOUT_S)
    except LifecycleError as error:
        console.print(f"[yellow]{escape(str(error))}[/] The process is ended anyway.")


def _foxglove(console: Console) -> list[Node]:
    """A bridge for Foxglove, where its package is installed."""
    try:
        from openvla_ros.ros.foxglove_bridge import FoxgloveBridge
    except ImportError:
        console.print("No Foxglove: pip install '.[foxglove]' in the folder of openvla_ros.")
        return []
    try:
        bridge = FoxgloveBridge(FOXGLOVE_HOST, FOXGLOVE_PORT)
    except ConfigurationError:  # another program has the usual port
        bridge = FoxgloveBridge(FOXGLOVE_HOST, 0)
    address = f"ws://{FOXGLOVE_HOST}:{bridge.port}"
    console.print(f"Foxglove: open a connection to {address}", highlight=False)
    return [bridge]
