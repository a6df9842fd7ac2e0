"""Whole runs on a small model: what they leave, and what stops them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_cases import (
    LENGTHS,
    Killed,
    Witness,
    build_inputs,
    demanding_config,
    require_same_runs,
    run_config,
    tensors_of,
)

from openvla_ros.errors import ConfigurationError, StorageError, TrainingError
from openvla_ros.policy import OpenVLAPolicy
from openvla_ros.training import loop, run_state
from openvla_ros.training.finetune import FinetuneResult, finetune
from openvla_ros.training.loop import SilentWatcher
from openvla_ros.training.run_log import read_lines
from openvla_ros.training.run_state import newest_state


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def whole(inputs: Path) -> FinetuneResult:
    """An uninterrupted run with everything that could be lost: dropout, average, augmentation."""
    return finetune(demanding_config(inputs, inputs / "whole"))


def test_a_run_leaves_a_result_its_checkpoints_figures_and_plots(
    inputs: Path, whole: FinetuneResult
) -> None:
    out = inputs / "whole"
    assert whole.folder == out / "result"
    names = {path.name for path in out.iterdir()}
    assert names >= {"result", "checkpoints", "metrics.jsonl", "timings.jsonl", "metrics.json"}
    assert [path.name for path in whole.plots] == ["loss.png", "accuracy.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in whole.plots)
    kept = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert kept == ["step_00000004", "step_00000006"]
    lines = read_lines(out / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [2, 4, 6]
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [3, 6]
    assert json.loads((out / "metrics.json").read_text())["data"]["demo"] == {
        "episodes": 2,
        "steps": sum(LENGTHS) - whole.metrics["data"]["demo"]["held_out_steps"],
        "held_out_episodes": 1,
        "held_out_steps": whole.metrics["data"]["demo"]["held_out_steps"],
        "left_out": {},
    }


def test_every_accuracy_stands_beside_free_running_and_baselines(whole: FinetuneResult) -> None:
    for name in ("training", "held_out"):
        figures = whole.metrics["evaluation"][name]
        for kind in ("teacher_forced", "free_running", "constant", "previous", "swapped_images"):
            assert len(figures[kind]["accuracy_per_dimension"]) == 7, (name, kind)


def test_the_result_is_a_policy_with_statistics_image_path_and_meaning(
    inputs: Path, whole: FinetuneResult
) -> None:
    policy = OpenVLAPolicy.from_pretrained(whole.folder, device="cpu", dtype="float32")
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    prediction = policy.predict_action(image, "pick up the cup")
    assert prediction.action.shape == (7,) and prediction.unnorm_key == "demo"
    assert policy.action_spec.action_hz == 5.0
    assert policy.action_spec.sources == {"action_hz": "set by the training run"}
    stored = json.loads((whole.folder / "finetune.json").read_text())
    assert stored["base"]["checkpoint"] == str((inputs / "base").resolve())
    assert stored["metrics"]["step"] == 6


def test_two_runs_cannot_share_a_folder(inputs: Path, tmp_path: Path) -> None:
    config = run_config(inputs, tmp_path / "run")

    class Intruder(SilentWatcher):
        def step(self, done: int, total: int, figures: Mapping[str, float]) -> None:
            with pytest.raises(ConfigurationError, match="another process is training in"):
                finetune(config)
            raise Killed

    with pytest.raises(Killed):
        finetune(config, watcher=Intruder())


def test_a_full_disk_stops_the_run_and_the_last_checkpoint_stays(
    inputs: Path, whole: FinetuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = demanding_config(inputs, tmp_path / "run")
    real = run_state._require_space

    def full_from_step_four(folder: Path, needed: int) -> None:
        real(folder, needed)
        if (folder / "step_00000002").exists():
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_state, "_require_space", full_from_step_four)
    with pytest.raises(StorageError, match=r"step 4 cannot be written.*No space left"):
        finetune(config)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]
    finetune(config)
    require_same_runs(inputs / "whole", tmp_path / "run")


def test_a_loss_that_is_no_number_stops_before_the_weights_are_lost(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(inputs, tmp_path / "run")
    real = loop.Objective.forward
    steps = iter(range(100))

    def forward(self: Any, batch: Any) -> dict[str, torch.Tensor]:
        found = real(self, batch)
        return found | {"loss": found["loss"] * (float("nan") if next(steps) == 2 else 1.0)}

    monkeypatch.setattr(loop.Objective, "forward", forward)
    with pytest.raises(TrainingError, match=r"the loss of step 3 is nan") as caught:
        finetune(config)
    assert str(caught.value).count("demo/episode_") == 2, caught.value
    state = newest_state(tmp_path / "run" / "checkpoints")
    assert state is not None and state.step == 2
    assert all(bool(tensor.isfinite().all()) for tensor in tensors_of(state).values())


def test_the_run_stops_when_the_target_is_reached(inputs: Path, tmp_path: Path) -> None:
    """On one step of one episode that is soon learnt by heart."""
    config = run_config(
        inputs,
        tmp_path / "run",
        strategy__name="full",
        data__image_augmentation=False,
        data__held_out=0.0,
        optimization__learning_rate=5e-3,
        optimization__max_steps=200,
        optimization__batch_size=8,
        run__evaluate_every=20,
        run__save_every=1000,
        run__target_accuracy=0.3,
    )
    result = finetune(config)
    assert result.metrics["reached_target"] and result.metrics["step"] < 200
    assert result.metrics["evaluation"]["training"]["free_running"]["accuracy"] >= 0.3
    assert set(result.metrics["evaluation"]) == {"step", "training"}
    witness = Witness()
    finetune(config, watcher=witness)
    assert witness.steps == []
