"""A whole cell as processes - camera, node, streamer, consumer - and an observer outside of them.

fault_run.py, load_run.py and the tests of the split process share it. The observer judges by the
stamps that the processes themselves put on what they publish, so a busy observer blames nobody.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import rclpy
import yaml
from geometry_msgs.msg import PoseStamped, TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from openvla_ros.msg import VLAAction, VLAStatus
from process_usage import MARK, is_stopped, segments_of
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_srvs.srv import SetBool, Trigger

from openvla_ros.config import PARAMETERS, NodeConfig
from openvla_ros.control.states import Reason, State
from openvla_ros.messages import stamp_ns
from openvla_ros.ros import qos
from openvla_ros.ros.child_processes import ChildProcesses
from openvla_ros.ros.mock_robot import START_POSITION_M

PATIENCE_S = 60.0  # a limit for a broken cell, not a measurement
ATTEMPT_S = 3.0  # a call may go to a process that was killed; then it is made again
LEASE_S = 3  # see `profile_with_lease`
BASE_FRAME = "base_link"
INSTRUCTION = "pick up the cup"
TWIST = "/robot/twist_cmd"
ACTIVE = (State.IDLE, State.RUNNING, State.HOLD)
ROLES = ("camera", "node", "consumer")
SPLIT_ROLES = ("camera", "node", "streamer", "consumer")
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Sample:
    """One twist or pose: when it was published (system time, s), and whether the arm moved."""

    stamp_s: float
    moves: bool
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)


class Observer:
    """Hears twist, pose, status and actions in a thread of its own."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        # A name that does not count as a controller.
        self.node = Node("openvla_monitor_observer", context=self.context)
        self.twists: list[Sample] = []
        self.poses: list[Sample] = []
        self.statuses: list[VLAStatus] = []
        self.actions: list[VLAAction] = []
        self.streamer_detail = ""  # what action_to_twist says
        deep = QoSProfile(depth=100)
        for kind, topic, callback, profile in (
            (TwistStamped, TWIST, self._on_twist, deep),
            (PoseStamped, "/ee_pose", self._on_pose, deep),
            (VLAStatus, "/openvla_node/status", self.statuses.append, qos.LATCHED),
            (VLAStatus, "/action_to_twist/status", self._on_streamer, qos.LATCHED),
            (VLAAction, "/openvla_node/action", self.actions.append, qos.ACTION),
        ):
            self.node.create_subscription(kind, topic, callback, profile)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self.check: Callable[[], None] = lambda: None  # called while waiting; may raise
        self._is_over = False
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._is_over:
            self._executor.spin_once(timeout_sec=0.05)

    def _on_twist(self, message: TwistStamped) -> None:
        v, w = message.twist.linear, message.twist.angular
        moves = any((v.x, v.y, v.z, w.x, w.y, w.z))
        self.twists.append(Sample(stamp_ns(message.header.stamp) * 1e-9, moves))

    def _on_pose(self, message: PoseStamped) -> None:
        p = message.pose.position
        last = self.poses[-1].position if self.poses else (p.x, p.y, p.z)
        now = (p.x, p.y, p.z)
        moves = now not in (last, START_POSITION_M)  # an arm that was started again is not moving
        self.poses.append(Sample(stamp_ns(message.header.stamp) * 1e-9, moves, now))

    def _on_streamer(self, message: VLAStatus) -> None:
        self.streamer_detail = message.detail

    def state(self) -> int:
        """State of the node as it said it last; -1 before that."""
        return self.statuses[-1].state if self.statuses else -1

    def wait(self, is_true: Callable[[], Any], what: str) -> Any:
        """Return the first true value; fail after a long time."""
        deadline = time.monotonic() + PATIENCE_S
        while not (value := is_true()):
            self.check()
            if time.monotonic() > deadline:
                last = self.statuses[-1] if self.statuses else None
                raise AssertionError(f"waited in vain for {what}; the node says {last}")
            time.sleep(0.01)
        return value

    def has_moved_since(self, begin: float) -> bool:
        """True when the arm was commanded to move, and has, since a system time."""
        return all(
            any(x.moves and x.stamp_s > begin for x in samples[-50:])
            for samples in (self.twists, self.poses)
        )

    def wait_moving(self) -> None:
        """Return when the arm has moved, on command, from now on."""
        begin = time.time()
        self.wait(lambda: self.has_moved_since(begin), "a moving arm")

    def close(self) -> None:
        """End the thread and leave ROS."""
        self._is_over = True
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


class Cell:
    """The processes by role, and the operator who starts the node. Use as a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        split: bool,
        rate_hz: float = 10.0,
        lease_s: int = LEASE_S,
        **values: Any,
    ) -> None:
        """Start nothing yet.

        Args:
            folder: For logs, the parameter file and the DDS profile.
            split: Whether the twist comes from action_to_twist.
            rate_hz: Of the camera.
            lease_s: After so much silence discovery takes a process for dead. A process that goes
                on after hanging for about that long may be forgotten by one side only, and then
                the two never hear each other again: a test of hanging needs a longer one.
            values: Parameters of the node, `__` for a dot.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.roles = SPLIT_ROLES if split else ROLES
        self.parameters = {
            "backend": "mock",
            "base_frame": BASE_FRAME,
            "speed_scale": 1.0,
            **({"output": "none"} if split and "output" in PARAMETERS else {}),
            **{name.replace("__", "."): value for name, value in values.items()},
        }
        self.config = NodeConfig.from_values(self.parameters)
        file = folder / "parameters.yaml"
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": self.parameters}}))
        # Split or not, the node looks at the same topic for who follows, and who else commands.
        given = ["--ros-args", "--params-file", str(file), "-r", f"~/twist_cmd:={TWIST}"]
        self._commands: dict[str, tuple[str, list[str]]] = {
            "camera": ("camera", ["--rate", str(rate_hz), "--instruction", INSTRUCTION]),
            "node": ("node", given),
            "streamer": ("action_to_twist", given),
            "consumer": (
                "mock_robot",
                ["--base-frame", BASE_FRAME, "--ros-args", "-r", f"twist_cmd:={TWIST}"],
            ),
        }
        self.environment = _environment(folder, lease_s)
        self._children: dict[str, ChildProcesses] = {}
        self._lives: dict[str, int] = {}
        self.own_segments: set[str] = set()  # of shared memory
        self.observer = Observer()
        self.observer.check = self.check

    @property
    def is_split(self) -> bool:
        """True when action_to_twist publishes the twist."""
        return "streamer" in self.roles

    @property
    def streaming_role(self) -> str:
        """Which process publishes the twist."""
        return "streamer" if self.is_split else "node"

    # Processes ----------------------------------------------------------------------------------

    def start(self, role: str) -> None:
        """Start the process of a role that has none."""
        self._lives[role] = self._lives.get(role, 0) + 1
        module, arguments = self._commands[role]
        children = ChildProcesses(self.environment, self.folder)
        children.start(f"{role}-{self._lives[role]}", f"openvla_ros.ros.{module}", arguments)
        self._children[role] = children

    @property
    def pids(self) -> dict[str, int]:
        """Process id of every role that has a process."""
        return {role: c.processes[0].pid for role, c in self._children.items()}

    def send(self, role: str, number: signal.Signals) -> float:
        """Send a signal; return the system time at which it has taken effect on a process."""
        process = self._children[role].processes[0]
        self.own_segments |= segments_of(process.pid)
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.wait()
            at_s = time.time()
            self._children.pop(role).stop()
            return at_s
        if number == signal.SIGSTOP:
            self.observer.wait(lambda: is_stopped(process.pid), f"{role} to stop")
        return time.time()

    def ended(self, role: str) -> int:
        """Wait for a process that was asked to end; return its exit code."""
        children = self._children.pop(role)
        code = children.processes[0].wait(PATIENCE_S)
        children.stop()
        return code

    def check(self) -> None:
        """Raise when a process has ended by itself."""
        for children in self._children.values():
            children.check()

    # The operator -------------------------------------------------------------------------------

    def start_all(self) -> None:
        """Start every process, and let the arm move."""
        for role in self.roles:
            self.start(role)
        self.bring_up()
        self.bring_to_motion()

    def bring_up(self) -> None:
        """Configure and activate a node that has just started; it is in dry run then."""
        observer = self.observer
        observer.wait(lambda: observer.state() == State.UNCONFIGURED, "the node")
        for transition, done in (
            (Transition.TRANSITION_CONFIGURE, (State.READY,)),
            (Transition.TRANSITION_ACTIVATE, ACTIVE),
        ):
            request = ChangeState.Request()
            request.transition.id = transition
            self._call(
                ChangeState,
                "/openvla_node/change_state",
                request,
                lambda d=done: observer.state() in d,
            )

    def bring_to_motion(self) -> None:
        """Do what an operator does until the arm moves."""
        begin, deadline = time.time(), time.monotonic() + PATIENCE_S
        while not self.observer.has_moved_since(begin):
            assert time.monotonic() < deadline, f"no motion: {self.observer.statuses[-1]}"
            self.check()
            self._operate(self.observer.statuses[-1])
            time.sleep(0.05)

    def _operate(self, status: VLAStatus) -> None:
        """One look at the status, and what it asks for."""
        observer = self.observer
        if status.reason == Reason.MULTIPLE_PUBLISHERS:
            # A killed process stays in DDS discovery for its lease.
            observer.wait(lambda: observer.node.count_publishers(TWIST) == 1, "one publisher")
            self._trigger("/openvla_node/reset", lambda: observer.state() != State.FAULT)
        elif status.reason == Reason.NO_CONTROLLER:
            is_back = lambda: observer.statuses[-1].reason != Reason.NO_CONTROLLER  # noqa: E731
            observer.wait(lambda: observer.node.count_subscribers(TWIST) > 1, "the consumer")
            self._trigger("/openvla_node/start", is_back)
        elif status.state in ACTIVE and not status.motion_enabled:
            observer.wait(lambda: observer.node.count_publishers(TWIST) == 1, "one publisher")
            request = SetBool.Request(data=True)
            is_on = lambda: observer.statuses[-1].motion_enabled  # noqa: E731
            self._call(SetBool, "/openvla_node/set_motion_enabled", request, is_on)
        elif self.is_split and "~/start" in observer.streamer_detail:
            is_on = lambda: "~/start" not in observer.streamer_detail  # noqa: E731
            self._trigger("/action_to_twist/start", is_on)

    def _trigger(self, name: str, is_done: Callable[[], bool]) -> None:
        self._call(Trigger, name, Trigger.Request(), is_done)

    def _call(self, kind: type, name: str, request: Any, is_done: Callable[[], bool]) -> None:
        """Call a service of the node until the status shows that it was heard."""
        deadline = time.monotonic() + PATIENCE_S
        while not is_done():
            assert time.monotonic() < deadline, (
                f"{name} has no effect: {self.observer.statuses[-1]}"
            )
            client = self.observer.node.create_client(kind, name)
            attempt = time.monotonic() + ATTEMPT_S
            while not client.service_is_ready() and time.monotonic() < attempt:
                time.sleep(0.02)
            client.call_async(request)
            while not is_done() and time.monotonic() < attempt:
                time.sleep(0.02)
            self.observer.node.destroy_client(client)

    def __enter__(self) -> Cell:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for children in self._children.values():
            for process in children.processes:
                self.own_segments |= segments_of(process.pid)
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)
            children.stop()
        self.observer.close()


def _environment(folder: Path, lease_s: int) -> dict[str, str]:
    profile = folder / "fastdds.xml"
    profile.write_text(profile_with_lease(lease_s))
    return {
        **os.environ,
        MARK: str(folder),
        "OPENVLA_ROS_SHARED": str(folder),  # has no data: the camera renders its frames
        "FASTRTPS_DEFAULT_PROFILES_FILE": str(profile),
        "FASTDDS_DEFAULT_PROFILES_FILE": str(profile),
        "RCUTILS_COLORIZED_OUTPUT": "0",
    }


def profile_with_lease(lease_s: int) -> str:
    """Return config/fastdds_images.xml with a lease of this many seconds; DDS has 20.

    A killed process lingers in discovery for its lease and answers no service. Nothing that is
    measured depends on it; a run of 100 faults would last half an hour longer.
    """
    text = (ROOT / "config" / "fastdds_images.xml").read_text()
    lease = (
        f"<builtin><discovery_config><leaseDuration><sec>{lease_s}</sec></leaseDuration>"
        "<leaseAnnouncement><sec>1</sec></leaseAnnouncement></discovery_config></builtin>"
    )
    assert "<rtps>" in text
    return text.replace("<rtps>", f"<rtps>{lease}", 1)
