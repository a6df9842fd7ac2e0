"""`openvla-ros replay` as a user types it: exit codes, JSON, tables, modes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from replay_cases import shared_checkpoint, without_report
from rich.console import Console
from test_replay import ROOT, sample_bag

from openvla_ros.cli import app, main
from openvla_ros.cli import replay as command
from openvla_ros.cli.replay_progress import replay_progress

TOPICS = str(ROOT / "config" / "topics" / "bridge_sample.yaml")


@pytest.fixture(autouse=True)
def _registered(monkeypatch) -> None:
    if command.replay not in [entry.callback for entry in app.registered_commands]:
        app.command()(command.replay)
    without_report(monkeypatch)


def json_of(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 0) -> Any:
    assert main(["replay", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_bag_is_judged_in_one_command_and_standard_output_is_json_alone(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    checkpoint = shared_checkpoint()
    arguments = [str(sample_bag()), "--checkpoint", checkpoint, "--out", str(tmp_path / "out")]
    arguments += ["--topics", TOPICS, "--device", "cpu", "--max-episodes", "1", "--no-bag"]
    arguments += ["--no-probes", "--compare", "crop:center_crop=true"]
    monkeypatch.setattr(sys, "argv", ["openvla-ros", "replay", *arguments])
    answer = json_of(capsys, arguments)
    metrics = answer["metrics"]
    assert list(metrics["variants"]) == ["base", "crop"] and metrics["complete"] is True
    assert metrics["command"].startswith("openvla-ros replay ") and TOPICS in metrics["command"]
    assert Path(answer["report"]).exists() and answer["live"] is None
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    # The same once more, for a person: nothing is evaluated again.
    assert main(["replay", *arguments]) == 0
    shown = capsys.readouterr().out
    for text in ("crop - base", "baseline: zero", "translation", "mm", "report.html"):
        assert text in shown, text
    assert "cannot be judged: sight, hearing" in shown and "ok sight" not in shown


def test_what_is_missing_is_said(tmp_path: Path, capsys) -> None:
    bag = str(tmp_path / "bag")
    assert "--checkpoint is missing" in json_of(capsys, [bag], 1)["error"]
    assert "--out is missing" in json_of(capsys, [bag, "--checkpoint", "x"], 1)["error"]
    both = [bag, "--checkpoint", "x", "--out", str(tmp_path / "out")]
    assert "nothing at" in json_of(capsys, both, 1)["error"]
    wrong = json_of(capsys, [*both, "--compare", "fast:bits=4"], 1)
    assert wrong["type"] == "ConfigurationError" and "quantization=none|fp8" in wrong["error"]
    assert "use one of local, ray" in json_of(capsys, [*both, "--engine", "spark"], 1)["error"]
    assert "needs --unnorm-key" in json_of(capsys, [bag, "--ground-truth"], 1)["error"]
    assert not (tmp_path / "out").exists()


def test_a_part_left_out_is_exit_code_1_and_said(tmp_path: Path, capsys) -> None:
    broken = tmp_path / "broken.mcap"
    broken.write_bytes(b"\x89MCAP0\r\n")
    checkpoint = shared_checkpoint()
    arguments = [str(broken), str(sample_bag()), "--checkpoint", checkpoint, "--topics", TOPICS]
    arguments += ["--max-episodes", "1"]
    arguments += ["--out", str(tmp_path / "out"), "--no-bag", "--no-probes", "--device", "cpu"]
    assert "broken.mcap" in json_of(capsys, arguments, 1)["error"]
    assert not (tmp_path / "out" / "records").exists()
    assert main(["replay", *arguments, "--skip-broken"]) == 1
    shown = capsys.readouterr()
    assert "Incomplete: 1 left out" in shown.out and "broken.mcap" in shown.err
    assert (tmp_path / "out" / "report.html").exists()


def test_recorded_actions_go_through_the_motion_stage_without_a_policy(
    tmp_path: Path, capsys
) -> None:
    arguments = [str(sample_bag()), "--topics", TOPICS, "--ground-truth"]
    arguments += ["--out", str(tmp_path / "out")]
    found = json_of(capsys, [*arguments, "--unnorm-key", "bridge_orig"])
    assert len(found["episodes"]) == 3 and found["steps"] == 30 and found["problems"] == []
    assert json.loads((tmp_path / "out" / "ground_truth.json").read_text()) == found
    assert "action_hz" in json_of(capsys, [*arguments, "--unnorm-key", "my_robot"], 1)["error"]
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text("openvla_node:\n  ros__parameters:\n    limits.linear_speed: 0.01\n")
    slow = [*arguments, "--unnorm-key", "bridge_orig", "--params-file", str(parameters)]
    assert json_of(capsys, slow) != found
    assert main(["replay", *slow]) == 0
    assert "3 episodes, 30 steps" in capsys.readouterr().out


def test_a_source_that_ground_truth_leaves_out_is_exit_code_1(tmp_path: Path, capsys) -> None:
    """It was 0, and nobody looked at the list of problems."""
    broken = tmp_path / "broken.mcap"
    broken.write_bytes(b"\x89MCAP0\r\n")
    arguments = [str(broken), str(sample_bag()), "--topics", TOPICS, "--ground-truth"]
    arguments += ["--unnorm-key", "bridge_orig", "--skip-broken"]
    found = json_of(capsys, arguments, 1)
    assert "broken.mcap" in found["problems"][0] and found["steps"] == 30
    inside = [str(tmp_path), *arguments[2:], "--out", str(tmp_path / "truth")]
    assert "lies in the source" in json_of(capsys, inside, 1)["error"]


def test_image_steps_of_the_nodes_parameters_are_those_of_the_replay(
    tmp_path: Path, monkeypatch
) -> None:
    """`rotate_image_180: true` turned the node's images and not those of the replay, which then
    called the picture upside down.
    """
    from openvla_ros.cli import replay as command

    variants: list[Any] = []

    def evaluate(sources, given, out, options):
        variants.extend(given)
        return {"complete": True}

    monkeypatch.setattr(command, "_evaluate", evaluate)
    monkeypatch.setattr(command, "_show", lambda *arguments, **named: None)
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(
        "openvla_node:\n  ros__parameters:\n    rotate_image_180: true\n    lanczos3: false\n"
    )
    arguments = ["bag", "--checkpoint", "x", "--out", str(tmp_path / "out")]
    arguments += ["--params-file", str(parameters), "--compare", "as_is:rotate_image_180=false"]
    assert main(["replay", *arguments]) == 0
    found = {v.name: (v.rotate_image_180, v.lanczos3, v.center_crop) for v in variants}
    assert found == {"base": (True, None, None), "as_is": (False, None, None)}


@pytest.mark.ros
def test_live_plays_the_bag_to_a_node_with_the_same_policy(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    from openvla_ros.evaluation.replay.live_result import live_result
    from openvla_ros.ros import live_replay

    asked: dict[str, Any] = {}

    def run(options, records, out, tell):
        asked.update(options=options, records=records, out=out)
        return live_result([], records, images_in_bag=30, images_received=0, states={})

    monkeypatch.setattr(live_replay, "run_live_replay", run)
    bag, checkpoint = sample_bag(), shared_checkpoint()
    arguments = [str(bag), "--checkpoint", checkpoint, "--topics", TOPICS, "--device", "cpu"]
    arguments += ["--out", str(tmp_path / "out"), "--no-bag", "--no-probes", "--live"]
    answer = json_of(capsys, [*arguments, "--max-episodes", "1"])
    assert answer["live"]["images_in_bag"] == 30 and asked["out"] == tmp_path / "out"
    assert asked["options"].bag == bag and asked["options"].image_topic.startswith("/")
    assert asked["options"].parameters["checkpoint"] == checkpoint
    assert asked["options"].parameters["device"] == "cpu"
    assert [record.episode for record in asked["records"]] == ["episode_000000"]
    two = [str(bag), str(bag.parent / "bridge_v2_frames100_rosbag2_mcap"), *arguments[1:]]
    assert "plays one rosbag2" in json_of(capsys, two, 1)["error"]


def test_progress_is_drawn_for_people_and_nothing_else_stays() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with replay_progress(console) as shown:
        shown.loading(10**9, 4 * 10**9, "reading weights")
        shown.steps("base", 0, 0)  # nothing to do: no bar
        shown.steps("int4", 3, 12)
        shown.tell("left out [a].mcap")
        shown.bars.refresh()
        assert {task.description for task in shown.bars.tasks} == {"reading weights", "int4"}
    text = screen.getvalue()
    assert "1.0 of 4.0 GB" in text and "3 of 12 steps" in text and "left out [a].mcap" in text
    pipe = io.StringIO()
    with replay_progress(Console(file=pipe)) as shown:
        shown.steps("base", 3, 12)
        shown.tell("left out b.mcap")
    assert pipe.getvalue().strip() == "note: left out b.mcap"
