"""The demo as a user starts it: its output, Ctrl-C, and what is left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
import sim_cells
import yaml
from PIL import Image
from test_demo import record, wait_for

from openvla_ros.data.bag_file import open_bag
from openvla_ros.errors import CheckpointError
from openvla_ros.model.embedded import embedded_checkpoint
from openvla_ros.ros.demo_options import SEED
from openvla_ros.ros.demo_policy import NODE_NAME
from openvla_ros.ros.demo_report import read_report
from openvla_ros.sim.scene import BLOCK_SIZE_M
from openvla_ros.sim.tasks import REACH_ABOVE_M

ROOT = Path(__file__).resolve().parents[1]
PICTURES_WITH_MOCK = ("--backend", "mock", "--scene", "pictures")
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
    result = run_demo(tmp_path, *PICTURES_WITH_MOCK, "--duration", "3")
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
    command, env, mark = demo(tmp_path, *PICTURES_WITH_MOCK, "--duration", "60")
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
    command, env, mark = demo(tmp_path, *PICTURES_WITH_MOCK, "--duration", "60")
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


def blind_reach(folder: Path, number: int) -> tuple[str, str]:
    """Parameters of a mock that always goes straight to a block of the demo's scene; its colour."""
    cell = sim_cells.shared_cell()
    cell.reset(SEED)
    state = cell.state()
    colour = list(state.blocks)[number]
    goal = state.blocks[colour] + [0.0, 0.0, BLOCK_SIZE_M / 2 + REACH_ABOVE_M]
    way = goal - state.tool.position
    action = [*(0.04 * way / np.linalg.norm(way)).tolist(), 0.0, 0.0, 0.0, 1.0]
    file = folder / "mock.yaml"
    values = {NODE_NAME: {"ros__parameters": {"mock_action": action}}}
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(file), colour


@pytest.mark.ros
@on_linux
def test_an_arm_in_the_cell_is_told_three_things_and_what_it_missed_is_said(tmp_path) -> None:
    """The mock goes to one block whatever it is told: one instruction is done, two are missed."""
    sim_cells.require_pictures()
    file, colour = blind_reach(tmp_path, 0)
    result = run_demo(tmp_path, "--backend", "mock", "--params-file", file, "--duration", "4")
    assert result.returncode == 0, result.stdout + result.stderr
    said = " ".join(result.stdout.split())
    assert re.search(rf"1 of 3: “reach the {colour} block”: done after \d", said), said
    assert len(re.findall(r"[23] of 3: “[a-z ]*”: missed in", said)) == 2
    assert "1 of 3 instructions done" in said
    assert "real-time factor" in said and "ws://127.0.0.1:" in said
    out = tmp_path / "out"
    page = (out / "summary.html").read_text(encoding="utf-8")
    assert page.count("missed in") >= 2 and "done after" in page
    with Image.open(out / "demo.gif") as film:
        assert film.n_frames > 10
    counts = read_report(out / "bag").counts
    for topic in ("/image", "/view/compressed", "/task_done", "/joint_states", "/ee_pose"):
        assert counts[topic] > 0, topic


@pytest.mark.ros
@on_linux
@pytest.mark.parametrize("module", ["openvla_ros.ros.node", "openvla_ros.ros.sim_cell"])
def test_a_process_that_dies_on_the_way_is_the_reason_given(tmp_path, module: str) -> None:
    sim_cells.require_pictures()
    command, env, mark = demo(tmp_path, "--backend", "mock")
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in process.stdout:
            if "| tokens " in line:
                break
        [victim] = [
            pid
            for pid in processes_with(mark)
            if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(victim, signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        left = processes_with(mark)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == 1
    assert "process ended with code -9" in said
    assert left == [], "processes outlived the demo"


@pytest.mark.ros
@pytest.mark.slow
@on_linux
def test_the_whole_demo_shows_the_embedded_policy_following_language(tmp_path) -> None:
    sim_cells.require_pictures()
    try:
        embedded_checkpoint()
    except CheckpointError as error:
        pytest.skip(str(error))
    result = run_demo(tmp_path, timeout_s=300)
    assert result.returncode == 0, result.stdout + result.stderr
    report = read_report(tmp_path / "out" / "bag")
    assert report.executed >= 20
    assert report.token_sequences >= 3, report.token_sequences
    assert int(re.search(r"(\d) of 3 instructions done", result.stdout)[1]) >= 2
