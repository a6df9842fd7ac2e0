"""Whole runs in two processes end where the run in one does, also when they were resumed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import finetune_cases
import pytest
from finetune_cases import build_inputs, run_config, tensors_of

from openvla_ros.policy import OpenVLAPolicy
from openvla_ros.training.config_file import plain_config
from openvla_ros.training.finetune import finetune
from openvla_ros.training.run_log import read_lines
from openvla_ros.training.run_state import newest_state

LEARNING_RATE = 1e-4
INTERRUPTED, WHOLE = 2, 4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_two_processes_end_where_one_does(inputs: Path, tmp_path: Path, strategy: str) -> None:
    """DDP and FSDP2 over gloo, resumed half-way, against one process with two passes per step.

    Losses within 1e-4, as rounding is amplified by AdamW, and weights within a hundredth of one
    update in the mean square: see test_distributed_training.py.
    """
    settings = {"strategy__name": strategy, "optimization__learning_rate": LEARNING_RATE}
    alone = tmp_path / "alone"
    config = run_config(
        inputs,
        alone,
        optimization__accumulation=2,
        optimization__max_steps=WHOLE,
        **settings,
    )
    finetune(config)
    pair = tmp_path / "pair"
    for steps in (INTERRUPTED, WHOLE):
        config = run_config(inputs, pair, optimization__max_steps=steps, **settings)
        _run_in_two(tmp_path / f"{steps}.json", json.dumps(plain_config(config)))

    lines = [
        [line for line in read_lines(out / "metrics.jsonl") if line["kind"] == "train"]
        for out in (alone, pair)
    ]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for one, two in zip(*lines, strict=True):
        off = abs(one["loss"] - two["loss"]) / one["loss"]
        assert off < 1e-4, f"loss of step {one['step']} is {off:.1e} off"
    states = [newest_state(out / "checkpoints") for out in (alone, pair)]
    assert states[0] is not None and states[1] is not None
    assert states[0].step == states[1].step == WHOLE
    first, second = tensors_of(states[0]), tensors_of(states[1])
    assert first.keys() == second.keys()
    weights = [name for name in first if name.startswith("weights/")]
    squares = sum(float((first[name] - second[name]).square().sum()) for name in weights)
    off = math.sqrt(squares / sum(first[name].numel() for name in weights)) / LEARNING_RATE
    assert off < 1e-2, f"weights are {off:.1e} updates apart"
    OpenVLAPolicy.from_pretrained(pair / "result", device="cpu", dtype="float32")


def _run_in_two(path: Path, config: str) -> None:
    path.write_text(config, encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, finetune_cases.__file__, str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-6000:]
