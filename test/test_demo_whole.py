"""The demo as a user starts it: its output, Ctrl-C, and what is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from PIL import Image
from test_demo import record, wait_for

from openvla_ros.control.states import Drop
from openvla_ros.data.bag_file import open_bag
from openvla_ros.ros.demo_report import read_report
from openvla_ros.ros.monitor_view import enum_names

ROOT = Path(__file__).resolve().parents[1]
REASONS = enum_names(Drop)
ACTION, IMAGE = "openvla_ros/msg/VLAAction", "sensor_msgs/msg/Image"
TWIST, POSE = "geometry_msgs/msg/TwistStamped", "geometry_msgs/msg/PoseStamped"
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def demo(tmp_path: Path, *arguments: str) -> tuple[list[str], dict[str, str], str]:
    """Return command, environment and the mark that every process of this demo carries."""
    mark = uuid.uuid4().hex
    env = {**os.environ, "OPENVLA_ROS_TEST_MARK": mark, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    env.pop("CHECKPOINT", None)
    command = [sys.executable, "-u", "-m", "openvla_ros.cli", "demo", "--out"]
    return [*command, str(tmp_path / "out"), *arguments], env, mark


def processes_with(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def run_demo(tmp_path: Path, *arguments: str, timeout_s: float = 120.0):
    command, env, mark = demo(tmp_path, *arguments)
    try:
        return subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s
        )
    finally:
        left = processes_with(mark)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert left == [], "the demo left processes behind"


@pytest.mark.ros
@on_linux
def test_the_demo_with_the_mock_policy_runs_from_frames_to_contact_sheet(tmp_path) -> None:
    result = run_demo(tmp_path, "--backend", "mock", "--duration", "3")
    assert result.returncode == 0, result.stdout + result.stderr
    report = read_report(tmp_path / "out" / "bag")
    assert report.executed >= 5
    assert report.travelled_m > 0.005
    assert report.counts["/image"] >= 15
    for topic in ("twist_cmd", "gripper_cmd", "status", "active_instruction", "transition_event"):
        assert report.counts[f"/openvla_node/{topic}"] > 0, topic
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width > 1000
    assert "every answer is the same preset action" in " ".join(result.stdout.split())
    assert "| tokens " in result.stdout, "one plain line per second when not on a terminal"


@pytest.mark.ros
@on_linux
def test_interrupting_the_demo_closes_the_bag_and_ends_every_process(tmp_path) -> None:
    command, env, mark = demo(tmp_path, "--backend", "mock", "--duration", "60")
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in process.stdout:
            if "| tokens " in line:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        process.kill()
        left = processes_with(mark)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == 130
    assert left == [], "processes outlived the demo"
    with open_bag(tmp_path / "out" / "bag") as reader:
        assert sum(connection.msgcount for connection in reader.connections) > 0


@pytest.mark.ros
@on_linux
def test_a_killed_demo_takes_its_processes_with_it(tmp_path) -> None:
    """The node used to go on commanding a robot that nobody watched."""
    command, env, mark = demo(tmp_path, "--backend", "mock", "--duration", "60")
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if "| tokens " in line:
                break
        assert len(processes_with(mark)) >= 4
        process.kill()
        process.communicate(timeout=30)
        wait_for(lambda: processes_with(mark) == [])
    finally:
        process.kill()
        for pid in processes_with(mark):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.ros
@on_linux
def test_a_node_that_cannot_start_is_the_reason_given(tmp_path) -> None:
    result = run_demo(tmp_path, "--checkpoint", str(tmp_path / "nowhere"), "--device", "cpu")
    assert result.returncode == 1
    assert "nowhere" in result.stderr
    assert "Traceback (most recent call last):\n  File" not in result.stderr


@pytest.mark.ros
@on_linux
def test_a_bag_without_instructions_needs_one(tmp_path) -> None:
    bag = record(tmp_path / "bag")
    result = run_demo(tmp_path, "--backend", "mock", "--bag", str(bag))
    assert result.returncode == 1
    assert "--instruction" in result.stderr


@pytest.mark.ros
@pytest.mark.slow
@on_linux
def test_the_whole_demo_runs_the_embedded_policy_for_its_20_seconds(tmp_path) -> None:
    result = run_demo(tmp_path, timeout_s=300)
    assert result.returncode == 0, result.stdout + result.stderr
    report = read_report(tmp_path / "out" / "bag")
    assert report.executed >= 20
    assert report.token_sequences >= 3, report.token_sequences
    assert "weights are random" in " ".join(result.stdout.split())
