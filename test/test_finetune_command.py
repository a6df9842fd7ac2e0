"""`openvla-ros finetune`: the plan, a run, and what is shown of both."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_cases import build_inputs, run_config
from rich.console import Console

from openvla_ros.cli import main
from openvla_ros.cli.finetune_progress import finetune_progress
from openvla_ros.model.random_weights import profile_config
from openvla_ros.training.config_file import config_from, plain_config
from openvla_ros.training.plan import make_plan, work_per_sample_tflop
from openvla_ros.training.run_log import append_line
from openvla_ros.training.run_state import newest_state


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


def config_file(inputs: Path, folder: Path, **settings: Any) -> Path:
    path = folder / "run.yaml"
    config = run_config(inputs, folder / "run", **settings)
    path.write_text(yaml.safe_dump(plain_config(config)), encoding="utf-8")
    return path


def test_dry_run_prints_the_plan_and_leaves_nothing(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_file(inputs, tmp_path)
    assert main(["finetune", "--config", str(path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for text in ("demo", "held-out episodes", "are trained", "memory", "6 of 2 samples", "PFLOP"):
        assert text in shown, text
    assert "not known before the first steps" in shown
    assert not (tmp_path / "run").exists()


def test_dry_run_as_json_counts_what_the_options_say(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_file(inputs, tmp_path)
    line = ["finetune", "--config", str(path), "--dry-run", "--json", "--strategy", "full"]
    line += ["--set", "optimization.max_steps=900", "--out", str(tmp_path / "other")]
    assert main(line) == 0
    plan = json.loads(capsys.readouterr().out)
    steps = plan["data"]["demo"]["steps"]
    assert plan["strategy"] == "full" and plan["steps"] == 900
    assert plan["epochs"] == pytest.approx(900 * 2 / steps)
    assert plan["trained"] == plan["total"]
    assert plan["checkpoint_bytes"] == plan["trained"] * 4 * 3 * 3
    assert plan["duration_s"] is None


def test_duration_comes_from_given_or_measured_speed(inputs: Path, tmp_path: Path) -> None:
    config = run_config(inputs, tmp_path / "run", optimization__max_steps=100)
    plan = make_plan(config, tflop_s=2.0)
    assert plan.duration_s == pytest.approx(plan.work_tflop / 2.0)
    assert make_plan(config, world_size=2, tflop_s=2.0).duration_s == pytest.approx(plan.duration_s)
    (tmp_path / "run").mkdir()
    append_line(tmp_path / "run" / "timings.jsonl", {"step": 10, "samples_per_s": 4.0})
    assert make_plan(config).duration_s == pytest.approx(100 * 2 / 4.0)


@pytest.mark.parametrize(
    ("strategy", "checkpointing", "expected_tflop"), [("lora", "none", 8.7), ("lora", "full", 13.0)]
)
def test_work_of_openvla_7b_is_what_was_calculated(
    strategy: str, checkpointing: str, expected_tflop: float
) -> None:
    """8.7 and 13.0 TFLOP per sample, with attention, which this count leaves out."""
    content = {
        "base": "b",
        "data": {"sources": [{"path": "p", "name": "n"}]},
        "strategy": {"name": strategy},
        "run": {"activation_checkpointing": checkpointing},
    }
    found = work_per_sample_tflop(profile_config("7b"), config_from(content))
    assert found == pytest.approx(expected_tflop, rel=0.04), f"{found:.2f} TFLOP"


def test_a_run_ends_with_figures_beside_baselines_and_where_the_result_is(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_file(inputs, tmp_path)
    assert main(["finetune", "--config", str(path)]) == 0
    captured = capsys.readouterr()
    for text in ("free-running", "baseline: the action before", "gripper", "openvla-ros replay"):
        assert text in captured.out, text
    assert "step 6 of 6, loss" in captured.err
    assert main(["finetune", "--config", str(path), "--json"]) == 0
    captured = capsys.readouterr()
    shown = json.loads(captured.out)
    assert shown["folder"] == str(tmp_path / "run" / "result") and shown["metrics"]["step"] == 6
    assert "Resumed after step 6" in captured.err
    line = ["finetune", "--config", str(path), "--set", "optimization.learning_rate=1e-4"]
    assert main(line) == 1
    assert "optimization.learning_rate: 0.001 before, 0.0001 now" in capsys.readouterr().err


def test_mistakes_are_messages(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_file(inputs, tmp_path)
    assert main(["finetune", "--config", str(path), "--set", "run.sed=1"]) == 1
    assert "did you mean run.seed?" in capsys.readouterr().err
    assert main(["finetune", "--config", str(tmp_path / "absent.yaml")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert main(["finetune", "--config", str(path), "--base", str(tmp_path / "absent")]) == 1
    assert main(["finetune"]) == 2


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_a_bar_for_people_and_lines_for_a_file(is_terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=120)
    with finetune_progress(2, console) as watcher:
        watcher.progress("pictures of episodes", 1, 2)
        for step in range(11, 15):
            watcher.step(step, 14, {"loss": 1 / step, "action_accuracy": 0.5})
        watcher.tell("Resumed after step 10.")
    text = out.getvalue()
    assert "Resumed after step 10." in text and "step 14 of 14, loss 0.071" in text
    assert "accuracy 50.0 % (teacher-forced)" in text
    if not is_terminal:
        assert "\x1b" not in text and "step 12 of 14" in text and "step 11" not in text


@pytest.mark.slow
def test_a_run_says_what_is_its_own_and_nothing_of_libraries(inputs: Path, tmp_path: Path) -> None:
    path = config_file(inputs, tmp_path, optimization__max_steps=2, run__evaluate_every=0)
    line = [sys.executable, "-m", "openvla_ros.cli", "finetune", "--config", str(path), "--json"]
    run = subprocess.run(line, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)["metrics"]["step"] == 2
    own = ("step ", "demo: the gripper goes from", "note: demo: nobody says what kind")
    assert [text for text in run.stderr.splitlines() if not text.startswith(own)] == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_of_a_run_saves_it(
    inputs: Path, tmp_path: Path, number: int, code: int
) -> None:
    """As Ctrl-C in a terminal does, which the processes that prepare images get too."""
    settings = {"data__workers": 2, "optimization__max_steps": 5000, "run__evaluate_every": 0}
    path = config_file(inputs, tmp_path, run__save_every=5000, **settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "openvla_ros.cli", "finetune", "--config", str(path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step "):  # the first line about training
            os.killpg(process.pid, number)
            break
    rest = process.communicate()[1]
    assert process.returncode == code, rest
    assert "which is saved; the same call goes on." in rest and "Traceback" not in rest, rest
    state = newest_state(tmp_path / "run" / "checkpoints")
    assert state is not None and 0 < state.step < 5000
