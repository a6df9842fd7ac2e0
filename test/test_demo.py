"""The demo works end to end, says which part failed when it does not, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from openvla_ros.config import NodeConfig
from openvla_ros.control.states import Drop
from openvla_ros.data.bag_file import BagFile, typestore_for
from openvla_ros.errors import ConfigurationError
from openvla_ros.ros import demo_policy
from openvla_ros.ros.child_processes import ChildProcesses, ProcessDiedError
from openvla_ros.ros.demo_environment import demo_environment
from openvla_ros.ros.demo_options import CELL, PICTURES, DemoOptions
from openvla_ros.ros.demo_policy import choose_policy, choose_scene
from openvla_ros.ros.demo_report import DemoReport, read_report, write_contact_sheet
from openvla_ros.ros.monitor_view import enum_names

ROOT = Path(__file__).resolve().parents[1]
REASONS = enum_names(Drop)
ACTION, IMAGE = "openvla_ros/msg/VLAAction", "sensor_msgs/msg/Image"
TWIST, POSE = "geometry_msgs/msg/TwistStamped", "geometry_msgs/msg/PoseStamped"
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


# --- processes


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """A folder of modules that child processes can run."""
    (tmp_path / "good.py").write_text(
        "import signal, sys\nprint('ready')\n"
        "try:\n    signal.pause()\nexcept KeyboardInterrupt:\n    sys.exit(0)\n"
    )
    (tmp_path / "broken.py").write_text("print('about to fail')\nraise SystemExit(3)\n")
    (tmp_path / "stubborn.py").write_text(
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('ready')\n"
        "while True:\n    signal.pause()\n"
    )
    monkeypatch.setattr("openvla_ros.ros.child_processes.SIGINT_GRACE_S", 0.5)
    return tmp_path


def environment(programs: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(programs)}


def wait_for(is_done, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_done():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def test_a_process_that_dies_is_named_with_its_code_and_last_words(programs) -> None:
    with ChildProcesses(environment(programs), programs / "logs") as children:
        children.start("good one", "good")
        children.start("broken one", "broken")
        wait_for(lambda: children._children[1].process.poll() is not None)
        with pytest.raises(ProcessDiedError, match=r"broken one.*code 3") as caught:
            children.check()
    assert "about to fail" in str(caught.value)


def test_processes_end_with_the_block_even_when_they_ignore_interrupts(programs) -> None:
    with ChildProcesses(environment(programs), programs / "logs") as children:
        for name in ("good", "stubborn"):
            children.start(name, name)
        wait_for(lambda: all("ready" in children.log_tail(n) for n in ("good", "stubborn")))
        children.check()
        good, stubborn = (child.process for child in children._children)
    assert good.returncode == 0, "a process that handles SIGINT ends by itself"
    assert stubborn.returncode == -signal.SIGKILL


def test_an_error_inside_the_block_ends_the_processes_too(programs) -> None:
    processes = []
    with (
        contextlib.suppress(RuntimeError),
        ChildProcesses(environment(programs), programs / "logs") as children,
    ):
        children.start("good", "good")
        processes += [child.process for child in children._children]
        raise RuntimeError
    assert processes[0].returncode is not None


def test_the_demo_keeps_to_itself_unless_the_user_says_otherwise() -> None:
    own = demo_environment({"ROS_DISTRO": "jazzy"})
    assert 0 < int(own["ROS_DOMAIN_ID"]) <= 101
    assert own["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert own["FASTRTPS_DEFAULT_PROFILES_FILE"].endswith("fastdds_images.xml")
    assert demo_environment({"ROS_DISTRO": "humble"})["ROS_LOCALHOST_ONLY"] == "1"
    users = {"ROS_DOMAIN_ID": "7", "FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml"}
    kept = demo_environment(users)
    assert kept["ROS_DOMAIN_ID"] == "7"
    assert kept["FASTDDS_DEFAULT_PROFILES_FILE"] == "/mine.xml"
    assert "FASTRTPS_DEFAULT_PROFILES_FILE" not in kept


# --- verdict


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (DemoReport({}), "answered no frame"),
        (
            DemoReport({}, actions=5, answered=0, executed=5, moving_twists=9, has_moved=True),
            "stamps",
        ),
        (
            DemoReport({}, actions=5, answered=5, not_executed=Counter({int(Drop.STALE): 5})),
            r"None of 5 .*STALE \(5\).*--max-action-age",
        ),
        (
            DemoReport({}, actions=5, answered=5, not_executed=Counter({Drop.MOTION_UNKNOWN: 5})),
            "--params-file",
        ),
        (DemoReport({}, actions=5, answered=5, executed=5), "no twist"),
        (DemoReport({}, actions=5, answered=5, executed=5, moving_twists=9), "did not move"),
    ],
)
def test_the_report_says_which_part_failed(report, text) -> None:
    [problem] = report.problems(REASONS)
    assert re.search(text, problem), problem


def test_a_working_pipeline_has_no_problems() -> None:
    report = DemoReport({}, actions=5, answered=5, executed=3, moving_twists=100, has_moved=True)
    assert report.problems(REASONS) == []


class Recording:
    """Writes a small demo bag by hand."""

    def __init__(self, path: Path, more: dict[str, str] | None = None) -> None:
        self.types = {"/image": IMAGE, "/action": ACTION, "/twist": TWIST, "/ee_pose": POSE}
        self.types |= more or {}
        self.store = typestore_for(self.types.values())
        self.bag = BagFile(path, self.types)
        self.clock = 0

    def add(self, topic: str, **values: object) -> None:
        message = self._fill(self.types[topic], values)
        raw = bytes(self.store.serialize_cdr(message, self.types[topic]))
        self.clock += 1
        self.bag.write(topic, self.clock, raw)

    def header(self, second: int):
        stamp = self._fill("builtin_interfaces/msg/Time", {"sec": second})
        return self._fill("std_msgs/msg/Header", {"stamp": stamp})

    def vector(self, x: float = 0.0):
        return self._fill("geometry_msgs/msg/Vector3", {"x": x})

    def _fill(self, kind: str, values: dict) -> object:
        """Build a message whose other fields are empty."""
        from rosbags.interfaces import Nodetype

        known = {}
        for name, (node, detail) in self.store.fielddefs[kind][1]:
            if name in values:
                known[name] = values[name]
            elif node == Nodetype.NAME:
                known[name] = self._fill(detail, {})
            elif node == Nodetype.BASE:
                known[name] = "" if detail[0] == "string" else 0
            else:
                element, size = detail
                is_text = element[1][0] == "string"
                dtype = {"float64": np.float64, "float32": np.float32, "int32": np.int32}.get(
                    element[1][0], np.uint8
                )
                known[name] = [] if is_text else np.zeros(size or 0, dtype)
        return self.store.types[kind](**known)


def record(path: Path, *, answers: int = 4) -> Path:
    recording = Recording(path)
    for second in range(5):
        picture = np.full(4 * 4 * 3, 40 * second, np.uint8)
        recording.add(
            "/image", header=recording.header(second), height=4, width=4, step=12,
            encoding="rgb8", data=picture,
        )  # fmt: skip
        if second < answers:
            end = recording._fill("builtin_interfaces/msg/Time", {"sec": second + 1})
            recording.add(
                "/action",
                header=recording.header(second),
                inference_end=end,
                instruction=f"task {second}",
                token_ids=np.array([31744 + second // 2], np.int32),
                executed=second != 1,
                drop_reason=int(Drop.STALE) if second == 1 else 0,
                delta_position=recording.vector(0.01),
                is_valid=True,
            )
        twist = recording._fill(
            "geometry_msgs/msg/Twist", {"linear": recording.vector(0.1 * (second % 2))}
        )
        recording.add("/twist", twist=twist)
        point = recording._fill("geometry_msgs/msg/Point", {"x": 0.01 * second})
        pose = recording._fill("geometry_msgs/msg/Pose", {"position": point})
        recording.add("/ee_pose", pose=pose)
    recording.bag.close()
    return path


def test_figures_are_read_back_from_the_bag(tmp_path) -> None:
    report = read_report(record(tmp_path / "bag"))
    assert report.counts == {"/image": 5, "/action": 4, "/twist": 5, "/ee_pose": 5}
    assert (report.actions, report.answered, report.executed) == (4, 4, 3)
    assert report.not_executed == {int(Drop.STALE): 1}
    assert report.token_sequences == 2
    assert report.latencies_s == [1.0] * 4
    assert report.moving_twists == 2
    assert report.travelled_m == pytest.approx(0.04)
    assert report.has_moved
    assert report.problems(REASONS) == []


def test_the_sheet_shows_the_frames_that_were_answered(tmp_path) -> None:
    bag = record(tmp_path / "bag", answers=3)
    assert write_contact_sheet(bag, tmp_path / "sheet.png", "t", "s", REASONS) == 3
    colours = {tuple(c) for c in np.asarray(Image.open(tmp_path / "sheet.png")).reshape(-1, 3)}
    assert {(40, 40, 40), (80, 80, 80)} <= colours
    assert (160, 160, 160) not in colours, "the frame without an answer is not shown"


def test_a_bag_that_cannot_be_used_is_named(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="no frame with an answer"):
        write_contact_sheet(record(tmp_path / "b", answers=0), tmp_path / "x.png", "", "", {})
    with pytest.raises(ConfigurationError, match="no bag at"):
        read_report(tmp_path / "absent")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "metadata.yaml").write_text("nonsense")
    with pytest.raises(ConfigurationError, match="damaged"):
        read_report(tmp_path / "damaged")


# --- choice of the policy


def choose(scene: str = PICTURES, **options: object):
    return choose_policy(DemoOptions(**options), scene)


def checkpoint_of(folder: Path, *keys: str) -> str:
    """A folder with statistics and three weights; returns it as a user names it."""
    entry = {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7}}
    folder.mkdir(exist_ok=True)
    stats = {"norm_stats": dict.fromkeys(keys, entry)}
    (folder / "config.json").write_text(json.dumps(stats))
    save_file({"weights": np.zeros(3, np.float32)}, folder / "model.safetensors")
    return str(folder)


def test_the_mock_needs_no_checkpoint_and_moves_a_mock_robot_at_full_speed() -> None:
    policy = choose(backend="mock", rate_hz=4.0)
    assert policy.parameters["motion_enabled"] is True
    assert policy.parameters["speed_scale"] == 1.0
    assert policy.parameters["policy_rate"] == 8.0
    assert "preset" in policy.caution


def test_every_parameter_of_the_demo_is_one_of_the_nodes(tmp_path) -> None:
    named = checkpoint_of(tmp_path, "sim_viperx")
    for scene in (CELL, PICTURES):
        for options in ({"backend": "mock"}, {"max_action_age_s": 9.0, "image_max_age_s": 2.0}):
            NodeConfig.from_values(choose(scene, checkpoint=named, **options).parameters)


def test_wider_limits_are_said_and_the_users_come_last(tmp_path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("openvla_node: {ros__parameters: {speed_scale: 0.25}}")
    policy = choose(backend="mock", max_action_age_s=7.5, params_file=own)
    assert policy.parameters["max_action_age"] == 7.5
    assert policy.parameters["inference_timeout"] == 7.5
    assert policy.parameters["speed_scale"] == 0.25
    assert any("max_action_age 7.5 s" in note for note in policy.notes)


def test_a_checkpoint_of_many_datasets_answers_bridge_frames_as_bridge(
    tmp_path, monkeypatch
) -> None:
    """`CHECKPOINT=openvla-7b make demo` has 25 keys and sample frames of one of them."""
    named = checkpoint_of(tmp_path, "bridge_orig", "kuka")
    policy = choose(checkpoint=named, device="cpu")
    assert policy.parameters["unnorm_key"] == "bridge_orig"
    assert any("bridge_orig" in note for note in policy.notes)
    assert policy.parameters["max_action_age"] == 2.0
    monkeypatch.setattr(demo_policy, "LARGE_PARAMETERS", 2)
    slow = choose(checkpoint=named, device="cpu")
    assert slow.parameters["max_action_age"] == 60.0, "a real model on a CPU is very slow"
    assert slow.still_s > policy.still_s, "an answer must come before its instruction changes"
    assert choose(checkpoint=named, bag=tmp_path).parameters["unnorm_key"] == ""
    assert choose(checkpoint=named, unnorm_key="kuka").parameters["unnorm_key"] == "kuka"


def test_a_policy_runs_where_it_knows_the_pictures(tmp_path) -> None:
    bridge = checkpoint_of(tmp_path / "bridge", "bridge_orig", "kuka")
    own = checkpoint_of(tmp_path / "own", "my_cell")
    assert choose_scene(DemoOptions()) == CELL
    assert choose_scene(DemoOptions(backend="mock")) == CELL
    assert choose_scene(DemoOptions(checkpoint=own)) == CELL
    assert choose_scene(DemoOptions(checkpoint=bridge)) == PICTURES
    assert choose_scene(DemoOptions(bag=tmp_path)) == PICTURES
    assert choose_scene(DemoOptions(checkpoint=bridge, scene=CELL)) == CELL
    assert "never seen" in choose(CELL, checkpoint=bridge, device="cpu").caution
    assert choose(CELL, checkpoint=own, device="cpu").caution == ""
    for wrong in (DemoOptions(scene="kitchen"), DemoOptions(bag=tmp_path, scene=CELL)):
        with pytest.raises(ConfigurationError, match="scene"):
            choose_scene(wrong)
