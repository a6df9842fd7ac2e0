"""The node under a real `ros2 launch`: killed and started again, and interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

from lifecycle_msgs.srv import GetState
from openvla_ros.msg import VLAStatus
from sensor_msgs.msg import Image
from test_node_process import PATIENCE_S, Watcher, is_zero

from openvla_ros.control.states import State

pytestmark = pytest.mark.ros

ROOT = Path(__file__).resolve().parents[1]
ARGUMENTS = {
    "backend": "mock",
    "instruction": "pick up the cup",
    "base_frame": "base_link",
    "motion_enabled": "true",
    "respawn": "true",
}


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watching = Watcher()
    yield watching
    watching.close()


@pytest.fixture
def launched(watcher: Watcher, tmp_path: Path) -> Iterator[subprocess.Popen]:
    if shutil.which("ros2") is None:
        pytest.skip("needs the `ros2 launch` command; it comes with ROS from apt")
    slow = tmp_path / "slow.yaml"  # a step of 10 mm lasts 2 s
    slow.write_text("/**: {ros__parameters: {limits.linear_speed: 0.005}}\n")
    arguments = {**ARGUMENTS, "namespace": watcher.namespace, "params_file": str(slow)}
    process = subprocess.Popen(
        ["ros2", "launch", str(ROOT / "launch" / "openvla.launch.py")]
        + [f"{name}:={value}" for name, value in arguments.items()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        start_new_session=True,
        # A background job's SIGINT may be ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    yield process
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=PATIENCE_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def node_process(launcher: subprocess.Popen) -> int | None:
    """Process id of the node below a launcher."""
    for folder in Path("/proc").iterdir():
        with suppress(OSError, IndexError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == launcher.pid and any(b"openvla_node" in word for word in words):
                return int(folder.name)
    return None


def feed(watcher: Watcher) -> None:
    image = Image(height=2, width=2, encoding="rgb8", step=6, data=bytes(12))
    image.header.stamp = watcher.node.get_clock().now().to_msg()
    watcher._camera.publish(image)


def wait_moving(watcher: Watcher) -> None:
    def is_moving() -> bool:
        feed(watcher)
        return any(not is_zero(t) for t in watcher.twists)

    watcher.spin_until(is_moving, "a moving twist")


def test_an_interrupt_of_everything_ends_with_a_zero_twist(
    watcher: Watcher, launched: subprocess.Popen
) -> None:
    """Ctrl-C in a terminal and systemd both signal launch and node; launch then signals it too."""
    wait_moving(watcher)
    os.killpg(launched.pid, signal.SIGINT)
    assert launched.wait(timeout=PATIENCE_S) == 0
    watcher.drain()
    assert is_zero(watcher.twists[-1])
    assert node_process(launched) is None


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the process in /proc")
def test_a_node_that_was_killed_comes_back_unconfigured_and_nothing_moves(
    watcher: Watcher, launched: subprocess.Popen
) -> None:
    wait_moving(watcher)
    first = node_process(launched)
    assert first is not None
    os.kill(first, signal.SIGKILL)

    def is_back() -> bool:
        feed(watcher)
        return node_process(launched) not in (None, first)

    watcher.spin_until(is_back, "a new process")
    watcher.drain()
    watcher.twists.clear()
    statuses: list[VLAStatus] = watcher.statuses
    statuses.clear()
    watcher.spin_until(lambda: bool(statuses), "a status of the new process")
    # Two seconds of its own status messages, with images coming in and an instruction given.
    begin = time.monotonic()
    while len(statuses) < 5:
        assert time.monotonic() < begin + PATIENCE_S
        feed(watcher)
        watcher._executor.spin_once(timeout_sec=0.02)
    assert {s.state for s in statuses} == {State.UNCONFIGURED}
    assert not watcher.twists, "an unconfigured node commands nothing"
    client = watcher.node.create_client(GetState, f"{watcher.namespace}/openvla_node/get_state")
    watcher.spin_until(client.service_is_ready, "get_state")
    answer = client.call_async(GetState.Request())
    watcher.spin_until(answer.done, "the state")
    assert answer.result().current_state.label == "unconfigured"
