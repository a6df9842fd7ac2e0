"""`openvla-ros monitor`: what the node sees, answers and commands, live in a terminal."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from std_msgs.msg import Float64

from openvla_ros.control.states import Drop, Reason, State
from openvla_ros.msg import GripperCommand, VLAAction, VLAStatus
from openvla_ros.ros.monitor_view import MonitorState, enum_names

REDRAW_S = 0.2
PLAIN_LINE_S = 1.0
LOOK_S = 0.1  # how often a thread that spins looks whether it shall end
STYLES = {"ok": "default", "warn": "yellow", "bad": "bold red", "quiet": "dim"}
DROP_REASON_NAMES = enum_names(Drop)


class MonitorNode(Node):
    """Stores what arrives in a `MonitorState`; shows nothing by itself."""

    def __init__(self, node_name: str = "openvla_node", twist_topic: str = "") -> None:
        """Subscribe to the topics of `node_name` and to `ee_pose` and `gripper_opening`.

        Args:
            node_name: The node.
            twist_topic: Where its twist goes, when that was remapped.
        """
        super().__init__("openvla_monitor")
        self.state = MonitorState(
            {
                "state": enum_names(State),
                "reason": enum_names(Reason),
                "drop_reason": DROP_REASON_NAMES,
            }
        )
        self._lock = threading.Lock()
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._follow("status", VLAStatus, f"{node_name}/status", latched)
        self._follow("action", VLAAction, f"{node_name}/action", 10)
        self._follow("twist", TwistStamped, twist_topic or f"{node_name}/twist_cmd", 10)
        self._follow("gripper", GripperCommand, f"{node_name}/gripper_cmd", 10)
        self._follow("pose", PoseStamped, "ee_pose", 10)
        self._follow("opening", Float64, "gripper_opening", 10)

    def _follow(self, key: str, message_class: type, topic: str, qos: QoSProfile | int) -> None:
        def store(message: object) -> None:
            with self._lock:
                self.state.receive(key, message, time.monotonic())

        self.create_subscription(message_class, topic, store, qos)

    def table(self, title: str) -> Panel:
        """Return the table as rich draws it."""
        with self._lock:
            rows = self.state.rows(time.monotonic())
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for row in rows:
            grid.add_row(row.label, f"[{STYLES[row.level]}]{_escape(row.text)}[/]")
        return Panel(grid, title=title, title_align="left", border_style="cyan")

    def plain_line(self) -> str:
        """Return the table as one line."""
        with self._lock:
            return self.state.plain_line(time.monotonic())


def show(
    monitor: MonitorNode,
    console: Console,
    duration_s: float | None,
    title: str | Callable[[], str],
    check: Callable[[], None] = lambda: None,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Draw until `duration_s` is over (None: until Ctrl-C); something else must spin the node.

    Args:
        monitor: The node that collects messages.
        console: A terminal is redrawn; anything else gets one line per second.
        duration_s: Seconds, or None.
        title: Heading of the table, or what returns it.
        check: Called between drawings; may raise to stop.
        is_over: Ends the drawing sooner.
    """
    begin = time.monotonic()

    def remaining() -> bool:
        check()
        return not is_over() and (duration_s is None or time.monotonic() - begin < duration_s)

    def table() -> Panel:
        return monitor.table(title if isinstance(title, str) else title())

    if console.is_terminal:
        with Live(table(), console=console, auto_refresh=False) as live:
            while remaining():
                live.update(table(), refresh=True)
                time.sleep(REDRAW_S)
        return
    next_line = begin
    while remaining():
        now = time.monotonic()
        if now >= next_line:
            console.print(
                f"{now - begin:5.1f} s | {monitor.plain_line()}", soft_wrap=True, highlight=False
            )
            next_line += PLAIN_LINE_S
        time.sleep(REDRAW_S)


@contextmanager
def spinning(*nodes: Node) -> Iterator[None]:
    """Spin nodes in a background thread while the block runs, then stop and destroy them."""
    executor = SingleThreadedExecutor()
    for node in nodes:
        executor.add_node(node)

    is_over = threading.Event()

    def spin() -> None:
        with suppress(ExternalShutdownException):
            while not is_over.is_set():
                executor.spin_once(timeout_sec=LOOK_S)

    thread = threading.Thread(target=spin, name="openvla-spin", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # An executor that is shut down while it spins may raise in its thread. A thread that
        # outlives the context aborts the process.
        is_over.set()
        thread.join(timeout=4.0)
        executor.shutdown(timeout_sec=2.0)
        for node in nodes:
            node.destroy_node()


def run_monitor(
    node_name: str,
    duration_s: float | None,
    console: Console,
    twist_topic: str = "",
    beside: Callable[[], Sequence[Node]] = tuple,
) -> bool:
    """Show a running node until `duration_s` is over or Ctrl-C; return whether anything arrived.

    Args:
        node_name: The node.
        duration_s: Seconds; None = until Ctrl-C.
        console: Where to draw.
        twist_topic: Where the node's twist goes, when that was remapped.
        beside: Makes other nodes, which run as long.
    """
    rclpy.init()
    try:
        others = beside()
        monitor = MonitorNode(node_name, twist_topic)
        with spinning(monitor, *others), suppress(KeyboardInterrupt):
            show(monitor, console, duration_s, f"{node_name}  (Ctrl-C ends)")
        return any(monitor.state.counts.values())
    finally:
        rclpy.try_shutdown()


def main(arguments: Sequence[str] | None = None) -> int:
    """Show a node from `ros2 run`; returns a process exit code: 1 when nothing arrived."""
    parser = argparse.ArgumentParser(description="Show what openvla_node sees and does, live.")
    parser.add_argument("--node", default="openvla_node", help="name of the node")
    parser.add_argument("--twist", default="", help="topic of the twist, if remapped")
    parser.add_argument("--duration", type=float, help="seconds; default: until Ctrl-C")
    own, _ = parser.parse_known_args(arguments)
    return 0 if run_monitor(own.node, own.duration, Console(), own.twist) else 1


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


if __name__ == "__main__":
    sys.exit(main())
