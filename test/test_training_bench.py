"""The benchmark of training: cases run, the verdict follows the figures, a failure costs one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from openvla_ros.engine.bench.profiles import bench_config
from openvla_ros.training.bench import command
from openvla_ros.training.bench.cases import CASES, make_batches, measure

CPU = torch.device("cpu")
FIGURES: dict[str, dict[str, Any]] = {
    "reference": {"samples_per_s": 20.0},
    "ours": {"samples_per_s": 29.0, "peak_gb": 57.0},
    "ours_batch_1": {"peak_gb": 20.5},
    "qlora_batch_1": {"error": "exit code 1"},
}


@pytest.mark.parametrize("name", ["reference", "ours", "ours_selective", "qlora_batch_1"])
def test_a_case_trains_a_tiny_model(name: str) -> None:
    if name == "qlora_batch_1" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    (case,) = (case for case in CASES if case.name == name)
    found = measure(case, "tiny", CPU, steps=1, warmup=1)
    assert len(found["step_ms"]) == 1 and found["samples_per_s"] > 0
    assert "peak_gb" not in found  # a CPU has no such counter


def test_both_loops_begin_with_the_same_loss() -> None:
    """New adapters change nothing, so the first loss tells whether both see the same batch."""
    losses = [measure(case, "tiny", CPU, steps=1, warmup=0)["losses"][0] for case in CASES[:2]]
    off = abs(losses[0] - losses[1]) / losses[0]
    assert off < 5e-3, f"bfloat16 losses {losses} are {off:.1e} apart"


def test_prompts_have_several_lengths_and_the_same_number_of_labels() -> None:
    (batch, *_) = make_batches(bench_config("tiny"), 8)
    assert (batch.labels != -100).sum(dim=1).tolist() == [8] * 8
    assert len(set(batch.attention_mask.sum(dim=1).tolist())) > 1
    assert batch.pixel_values.shape == (8, 6, 224, 224)


def test_targets_are_met_missed_or_not_measured() -> None:
    verdicts = [line["verdict"] for line in command._judge(FIGURES)]
    assert verdicts == ["MISSED", "not measured", "met", "MISSED", "not measured"]


def test_a_failed_case_is_recorded_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        name, out = command[command.index("--case") + 1], command[command.index("--json") + 1]
        if name == "reference":
            return subprocess.CompletedProcess(command, 1, "", "CUDA out of memory")
        Path(out).write_text(json.dumps({"samples_per_s": 3.0}), encoding="utf-8")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(command, "describe_machine", lambda device: {})
    monkeypatch.setattr(subprocess, "run", run)
    out = tmp_path / "out.json"
    assert command.main(["--tiny", "--json", str(out), "--only", "reference", "ours"]) == 1
    cases = json.loads(out.read_text())["cases"]
    assert "out of memory" in cases["reference"]["error"]
    assert cases["ours"]["samples_per_s"] == 3.0


@pytest.mark.slow
def test_the_command_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["--tiny", "--json", str(out), "--steps", "1", "--warmup", "1"]
    assert command.main([*arguments, "--only", "reference", "ours_compiled"]) == 0
    report = json.loads(out.read_text())
    assert set(report["cases"]) == {"reference", "ours_compiled"}
    assert "targets" not in report
