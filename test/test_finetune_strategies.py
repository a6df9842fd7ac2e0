"""Every strategy goes through the whole loop, with what may be attached to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_cases import (
    Killed,
    Witness,
    build_inputs,
    require_same_runs,
    run_config,
    tensors_of,
)
from safetensors import safe_open
from torch import nn

from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.policy import OpenVLAPolicy
from openvla_ros.training.auxiliary import register_auxiliary_loss
from openvla_ros.training.batch import TrainingBatch
from openvla_ros.training.config import STRATEGIES
from openvla_ros.training.finetune import finetune
from openvla_ros.training.run_log import read_lines
from openvla_ros.training.run_state import newest_state


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_resumes_bit_for_bit(inputs: Path, tmp_path: Path, strategy: str) -> None:
    if strategy == "qlora":
        pytest.importorskip("bitsandbytes")
    settings = {"strategy__name": strategy, "optimization__max_steps": 3, "run__save_every": 1}
    settings |= {"optimization__accumulation": 2, "optimization__schedule": "cosine"}
    whole, broken = (run_config(inputs, tmp_path / name, **settings) for name in ("a", "b"))
    finetune(whole)
    with pytest.raises(Killed):
        finetune(broken, watcher=Witness(2))
    finetune(broken)
    require_same_runs(tmp_path / "a", tmp_path / "b")
    policy = OpenVLAPolicy.from_pretrained(tmp_path / "b" / "result", device="cpu")
    assert policy.predict_action(np.zeros((32, 32, 3), np.uint8), "go").action.shape == (7,)


@pytest.mark.parametrize("strategy", ["lora", "qlora"])
def test_evaluations_change_nothing(inputs: Path, tmp_path: Path, strategy: str) -> None:
    """bitsandbytes used to pack weights of a CPU in an evaluation, and training then failed."""
    if strategy == "qlora":
        pytest.importorskip("bitsandbytes")
    losses = []
    for every in (0, 1):
        out = tmp_path / str(every)
        settings = {"strategy__name": strategy, "strategy__lora_dropout": 0.2}
        finetune(run_config(inputs, out, run__evaluate_every=every, run__log_every=1, **settings))
        lines = read_lines(out / "metrics.jsonl")
        losses.append([line["loss"] for line in lines if line["kind"] == "train"])
    assert len(losses[0]) == 6 and losses[0] == losses[1]


class Smallness(nn.Module):
    """An auxiliary loss with weights of its own."""

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        self.head = nn.Linear(config.text_config.hidden_size, 1)

    def forward(self, hidden: torch.Tensor, batch: TrainingBatch) -> torch.Tensor:
        return self.head(hidden.float()).square().mean()


def test_auxiliary_losses_are_trained_and_saved_and_never_deployed(
    inputs: Path, tmp_path: Path
) -> None:
    register_auxiliary_loss("smallness", Smallness)
    settings = {"optimization__auxiliary_losses": {"smallness": 0.5}, "run__save_every": 1}
    finetune(run_config(inputs, tmp_path / "whole", **settings))
    broken = run_config(inputs, tmp_path / "broken", **settings)
    with pytest.raises(Killed):
        finetune(broken, watcher=Witness(3))
    result = finetune(broken)
    require_same_runs(tmp_path / "whole", tmp_path / "broken")
    lines = read_lines(tmp_path / "whole" / "metrics.jsonl")
    for line in lines:
        if line["kind"] == "train":
            total = line["cross_entropy"] + 0.5 * line["auxiliary/smallness"]
            assert line["loss"] == pytest.approx(total, rel=1e-6)
    state = newest_state(tmp_path / "whole" / "checkpoints")
    assert state is not None
    saved = {name: value for name, value in tensors_of(state).items() if "smallness" in name}
    assert len(saved) == 2 * 4, saved.keys()  # weights, both moments and their count
    assert all(bool(value.any()) for value in saved.values())
    with safe_open(result.folder / "adapter_model.safetensors", "pt") as stored:
        assert not any("smallness" in name for name in stored.keys())  # noqa: SIM118
