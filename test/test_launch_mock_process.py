"""openvla_mock.launch.py under a real `ros2 launch`: the mock robot moves, and all ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

pytestmark = pytest.mark.ros

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 60.0


class PoseWatcher:
    """Hears where the mock robot is."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = Node("pose_watcher", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.x_m: list[float] = []
        self.node.create_subscription(
            PoseStamped, "/ee_pose", lambda m: self.x_m.append(m.pose.position.x), 10
        )

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def watcher() -> Iterator[PoseWatcher]:
    made = PoseWatcher()
    yield made
    made.close()


def started(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["ros2", "launch", str(ROOT / "launch" / "openvla_mock.launch.py"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        start_new_session=True,
        # A background job's SIGINT may be ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def processes_of(group: int) -> list[str]:
    """Command lines of the processes of a group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.mark.parametrize("split", ["false", "true"])
def test_the_mock_robot_moves_and_nothing_stays_behind(watcher: PoseWatcher, split: str) -> None:
    if shutil.which("ros2") is None:
        pytest.skip("needs the `ros2 launch` command; it comes with ROS from apt")
    launcher = started(f"split_streamer:={split}", "mock_latency_s:=0.02", "rate:=10.0")
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (watcher.x_m and watcher.x_m[-1] - watcher.x_m[0] > 0.02):
            assert time.monotonic() < deadline, f"the robot stands still: {watcher.x_m[-3:]}"
            assert launcher.poll() is None, "the launch ended by itself"
            watcher.executor.spin_once(timeout_sec=0.1)
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(timeout=PATIENCE_S) == 0
        assert processes_of(launcher.pid) == []
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
