"""The node as a process: signals end it quickly, and the last thing on the wire is a zero twist."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from node_cell import is_zero
from openvla_ros.msg import VLAStatus
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Empty

from openvla_ros.control.states import State
from openvla_ros.ros import qos

pytestmark = pytest.mark.ros

NUMBERS = itertools.count()
PATIENCE_S = 30.0
EXIT_WITHIN_S = 4.0  # ros2 launch sends a harder signal after 5 s
ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = {
    "backend": "mock",
    "instruction": "pick up the cup",
    "base_frame": "base_link",
    "motion_enabled": "true",
    "limits.linear_speed": "0.005",  # a step of 10 mm lasts 2 s
}


class Watcher:
    """A separate process's view of the node: it feeds images and remembers every twist."""

    def __init__(self) -> None:
        # A process that was cut off stays in DDS discovery for 20 s; the next one must not be
        # mistaken for it.
        self.namespace = f"/cell{next(NUMBERS)}"
        name = f"{self.namespace}/openvla_node"
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = Node("watcher", context=self.context)
        self.twists: list[TwistStamped] = []
        self.statuses: list[VLAStatus] = []
        self.node.create_subscription(TwistStamped, f"{name}/twist_cmd", self.twists.append, 100)
        self.node.create_subscription(
            VLAStatus, f"{name}/status", self.statuses.append, qos.LATCHED
        )
        self.poses: list[PoseStamped] = []
        self.node.create_subscription(PoseStamped, f"{name}/pose_cmd", self.poses.append, 100)
        self._ee_pose = self.node.create_publisher(PoseStamped, f"{self.namespace}/ee_pose", 1)
        self._teleop = self.node.create_publisher(TwistStamped, f"{name}/teleop_twist", 1)
        self._camera = self.node.create_publisher(Image, f"{self.namespace}/image", 1)
        self._change = self.node.create_client(ChangeState, f"{name}/change_state")
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)

    def spin_until(self, is_true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_true():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            self._executor.spin_once(timeout_sec=0.02)

    def drain(self) -> None:
        """Take in what had arrived when the node ended."""
        count = -1
        while count != len(self.twists) + len(self.poses):
            count = len(self.twists) + len(self.poses)
            for _ in range(10):
                self._executor.spin_once(timeout_sec=0.02)

    def change(self, transition: int) -> None:
        self.spin_until(self._change.service_is_ready, "change_state")
        request = ChangeState.Request()
        request.transition.id = transition
        future = self._change.call_async(request)
        self.spin_until(future.done, "the transition")
        assert future.result().success

    def start_moving(self) -> None:
        """Configure, activate and feed images until the arm moves."""
        self.change(Transition.TRANSITION_CONFIGURE)
        self.change(Transition.TRANSITION_ACTIVATE)
        self.spin_until(
            lambda: self.feed() or any(not is_zero(t) for t in self.twists), "a moving twist"
        )

    def feed(self) -> None:
        """Send an image and a measured pose, stamped now."""
        now = self.node.get_clock().now().to_msg()
        image = Image(height=2, width=2, encoding="rgb8", step=6, data=bytes(12))
        pose = PoseStamped()
        pose.header.frame_id, pose.pose.orientation.w = "base_link", 1.0
        image.header.stamp = pose.header.stamp = now
        self._camera.publish(image)
        self._ee_pose.publish(pose)

    def steer(self) -> None:
        """Send a twist along z, stamped now."""
        twist = TwistStamped()
        twist.header.frame_id = "base_link"
        twist.header.stamp = self.node.get_clock().now().to_msg()
        twist.twist.linear.z = 0.004
        self._teleop.publish(twist)

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watching = Watcher()
    yield watching
    watching.close()


def hear_signals() -> None:
    """What a background job or nohup ignores is inherited; here it is not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def start(watcher: Watcher) -> Iterator[Callable[..., subprocess.Popen]]:
    processes: list[subprocess.Popen] = []

    def run(code: str = "", **parameters: str) -> subprocess.Popen:
        command = ["-c", code] if code else ["-m", "openvla_ros.ros.node"]
        arguments = [f"{k}:={v}" for k, v in {**PARAMETERS, **parameters}.items()]
        given = [word for argument in arguments for word in ("-p", argument)]
        process = subprocess.Popen(
            [sys.executable, *command, "--ros-args", "-r", f"__ns:={watcher.namespace}", *given],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            preexec_fn=hear_signals,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def end(process: subprocess.Popen, number: int) -> tuple[int, str]:
    """Send a signal; return exit code and log of a process that must end in time."""
    process.send_signal(number)
    try:
        _, log = process.communicate(timeout=EXIT_WITHIN_S)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        raise AssertionError(f"still alive {EXIT_WITHIN_S} s after signal {number}") from None
    return process.returncode, log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_mid_motion_ends_with_a_zero_twist_and_exit_0(
    watcher: Watcher, start: Callable, number: int
) -> None:
    process = start()
    watcher.start_moving()
    code, log = end(process, number)
    watcher.drain()
    assert code == 0, log
    assert "Traceback" not in log, log
    assert is_zero(watcher.twists[-1])
    last_moving = max(i for i, t in enumerate(watcher.twists) if not is_zero(t))
    assert len(watcher.twists) - last_moving > 1


def test_a_signal_that_comes_again_and_again_is_an_orderly_end_too(
    watcher: Watcher, start: Callable
) -> None:
    """systemd, or a terminal, signals the whole group, and `ros2 launch` its nodes once more."""
    process = start()
    watcher.start_moving()
    watcher.spin_until(
        lambda: process.send_signal(signal.SIGINT) or process.poll() is not None, "the end"
    )
    watcher.drain()
    assert process.returncode == 0
    assert is_zero(watcher.twists[-1])


UNDER_NOHUP = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from openvla_ros.ros.node import main
sys.exit(main())
"""


def test_under_nohup_a_closed_terminal_changes_nothing(watcher: Watcher, start: Callable) -> None:
    process = start(UNDER_NOHUP)
    watcher.start_moving()
    process.send_signal(signal.SIGHUP)
    count = len(watcher.twists)
    watcher.spin_until(lambda: len(watcher.twists) >= count + 30, "0.6 s of twists")
    assert process.poll() is None
    assert not any(is_zero(t) for t in watcher.twists[count:])
    assert end(process, signal.SIGTERM)[0] == 0


def test_a_signal_while_somebody_steers_ends_with_a_zero_twist(
    watcher: Watcher, start: Callable
) -> None:
    """The last word is that of the node, however much the other goes on."""
    process = start()
    watcher.start_moving()
    watcher.spin_until(
        lambda: watcher.steer() or watcher.twists[-1].twist.linear.z > 0.0, "the steered twist"
    )
    process.send_signal(signal.SIGTERM)
    watcher.spin_until(lambda: watcher.steer() or process.poll() is not None, "the end")
    watcher.drain()
    assert process.returncode == 0
    assert all(is_zero(t) for t in watcher.twists[-3:])


def test_a_signal_mid_motion_ends_with_a_target_where_the_arm_is(
    watcher: Watcher, start: Callable
) -> None:
    process = start(output="pose")
    watcher.change(Transition.TRANSITION_CONFIGURE)
    watcher.change(Transition.TRANSITION_ACTIVATE)
    watcher.spin_until(
        lambda: watcher.feed() or any(p.pose.position.x > 0.001 for p in watcher.poses),
        "a target ahead of the arm",
    )
    process.send_signal(signal.SIGINT)
    watcher.spin_until(lambda: watcher.feed() or process.poll() is not None, "the end")
    watcher.drain()
    assert process.returncode == 0
    assert [p.pose.position.x for p in watcher.poses[-3:]] == [0.0, 0.0, 0.0]
    assert not watcher.twists


def test_a_signal_before_configure_ends_at_once(watcher: Watcher, start: Callable) -> None:
    process = start()
    watcher.spin_until(lambda: bool(watcher.statuses), "a status")
    assert end(process, signal.SIGTERM)[0] == 0


LOADS_FOR_EVER = """
import sys, threading
from openvla_ros.ros import node
from openvla_ros.ros.process import run
load = lambda model: threading.Event().wait()
sys.exit(run(lambda: node.OpenVLANode(load=load), None))
"""


def test_a_signal_while_a_model_loads_ends_in_time(watcher: Watcher, start: Callable) -> None:
    process = start(LOADS_FOR_EVER)
    watcher.spin_until(watcher._change.service_is_ready, "change_state")
    request = ChangeState.Request()
    request.transition.id = Transition.TRANSITION_CONFIGURE
    watcher._change.call_async(request)
    watcher.spin_until(
        lambda: bool(watcher.statuses) and watcher.statuses[-1].state == State.LOADING, "LOADING"
    )
    assert end(process, signal.SIGINT)[0] == 0


def test_a_signal_while_the_policy_hangs_ends_with_a_zero_twist(
    watcher: Watcher, start: Callable
) -> None:
    process = start(mock_latency_s="30.0", warmup_iterations="0")
    watcher.change(Transition.TRANSITION_CONFIGURE)
    watcher.change(Transition.TRANSITION_ACTIVATE)
    image = Image(height=2, width=2, encoding="rgb8", step=6, data=bytes(12))

    def is_in_flight() -> bool:
        image.header.stamp = watcher.node.get_clock().now().to_msg()
        watcher._camera.publish(image)
        return bool(watcher.statuses) and watcher.statuses[-1].frames_in_flight > 0

    watcher.spin_until(is_in_flight, "a frame in flight")
    assert end(process, signal.SIGTERM)[0] == 0
    watcher.drain()
    assert is_zero(watcher.twists[-1])


def test_a_policy_that_hangs_ends_the_process_with_zeros_and_an_error(
    watcher: Watcher, start: Callable
) -> None:
    process = start(mock_fault="hang", hang_timeout="1.0")
    watcher.change(Transition.TRANSITION_CONFIGURE)
    watcher.change(Transition.TRANSITION_ACTIVATE)

    def has_ended() -> bool:
        image = Image(height=2, width=2, encoding="rgb8", step=6, data=bytes(12))
        image.header.stamp = watcher.node.get_clock().now().to_msg()
        watcher._camera.publish(image)
        return process.poll() is not None

    watcher.spin_until(has_ended, "the process to give up")
    watcher.drain()
    assert process.returncode == 3
    assert is_zero(watcher.twists[-1])


def test_deactivate_mid_motion_ends_with_a_zero_twist(watcher: Watcher, start: Callable) -> None:
    process = start()
    watcher.start_moving()
    watcher.change(Transition.TRANSITION_DEACTIVATE)
    watcher.drain()
    assert is_zero(watcher.twists[-1])
    assert end(process, signal.SIGTERM)[0] == 0
    watcher.drain()
    assert is_zero(watcher.twists[-1])


LOOP_BREAKS = """
import threading
from std_msgs.msg import Empty
from openvla_ros.ros import process
from openvla_ros.ros.node import OpenVLANode

asked, spin_once = threading.Event(), process._spin_once

def spin_once_and_break(*arguments):
    spin_once(*arguments)
    if asked.is_set():
        raise SystemExit(7)

def make_node():
    node = OpenVLANode()
    node.create_subscription(Empty, "break", lambda _: asked.set(), 1)
    return node

process._spin_once = spin_once_and_break
process.run(make_node, None)
"""


def test_an_exception_that_leaves_the_executor_ends_with_a_zero_twist(
    watcher: Watcher, start: Callable
) -> None:
    process = start(LOOP_BREAKS)
    watcher.start_moving()
    breaker = watcher.node.create_publisher(Empty, f"{watcher.namespace}/break", 1)
    watcher.spin_until(breaker.get_subscription_count, "the callback")
    breaker.publish(Empty())
    watcher.spin_until(lambda: process.poll() is not None, "the end")
    watcher.drain()
    assert process.returncode == 7
    assert is_zero(watcher.twists[-1])


def test_unusable_parameters_are_told_without_a_traceback(start: Callable) -> None:
    process = start(speed_scale="7.0")
    _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "speed_scale" in log and "Traceback" not in log
