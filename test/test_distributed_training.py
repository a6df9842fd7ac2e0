"""Several processes take the same steps as one on the same global batch."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import distributed_run
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from openvla_ros.errors import ConfigurationError, DeviceError
from openvla_ros.training.distributed import (
    Ranks,
    barrier,
    broadcast_object,
    clip_gradients,
    full_tensor,
    mean_over_ranks,
    put_full,
    start_ranks,
    without_sync,
)

STRATEGIES = ("lora", "full", "last_layer", "sandwich", "last_layer@tied")
IN_BFLOAT16 = ("lora@bfloat16", "frozen_vision@bfloat16", "last_layer@bfloat16")
ALONE = Ranks(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of the same run in one process and in two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    program = distributed_run.__file__
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", program]
    for command in ([program, str(one)], [*launcher, str(two)]):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *command, *STRATEGIES, *IN_BFLOAT16],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-4000:]
    return one, two


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_train_like_one_on_the_same_global_batch(
    runs: tuple[Path, Path], name: str
) -> None:
    """LoRA runs under DDP, the others under FSDP2, in float32 over gloo, two passes per step.

    The first loss and gradient differ by the order of float32 sums alone: 1e-6. Later ones also by
    AdamW, which divides by the gradient's size and so moves a weight whose gradient is nothing but
    rounding by up to the learning rate: losses within 1e-4, norms within 2e-3. For the same reason
    weights are compared by their mean square: a hundredth of one update. Processes that do not
    exchange gradients end some whole updates apart.
    """
    one, two = (json.loads((folder / f"{name}.json").read_text()) for folder in runs)
    for i, (single, double) in enumerate(zip(one["steps"], two["steps"], strict=True)):
        for quantity, later in (("loss", 1e-4), ("gradient_norm", 2e-3)):
            off = abs(single[quantity] - double[quantity]) / single[quantity]
            assert off <= (later if i else 1e-6), f"{quantity} of step {i} is {off:.1e} off"
    assert one["ids"] == two["ids"]
    first, second = (load_file(folder / f"{name}.safetensors") for folder in runs)
    assert first.keys() == second.keys()
    squares = sum(float((first[key] - second[key]).square().sum()) for key in first)
    off = math.sqrt(squares / sum(tensor.numel() for tensor in first.values()))
    updates = off / distributed_run.LEARNING_RATE
    assert updates <= 1e-2, f"weights are {updates:.1e} updates apart"


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_BFLOAT16)
def test_frozen_bfloat16_and_trained_float32_share_a_run(
    runs: tuple[Path, Path], name: str
) -> None:
    """Units of both formats are split; the trained ones stay float32 and are computed in bfloat16.

    Rounding to 8 bits differs with the size of a pass: losses within 2 %. With two passes per step
    the weights that are never computed with used to end the backward pass of FSDP2.
    """
    one, two = (json.loads((folder / f"{name}.json").read_text()) for folder in runs)
    for single, double in zip(one["steps"], two["steps"], strict=True):
        off = abs(single["loss"] - double["loss"]) / single["loss"]
        assert off < 2e-2, f"loss is {off:.1e} off"
    weights = load_file(runs[1] / f"{name}.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_one_process_needs_no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = start_ranks("cpu")
    assert ranks == ALONE and ranks.is_main
    assert mean_over_ranks({"b": torch.tensor(2.0), "a": 1.0}, ranks) == {"b": 2.0, "a": 1.0}
    assert broadcast_object({"step": 3}, ranks) == {"step": 3}
    barrier(ranks)
    with without_sync(nn.Linear(1, 1)):
        pass
    target = torch.zeros(2)
    put_full(target, torch.ones(2))
    assert full_tensor(target).tolist() == [1.0, 1.0]


def test_one_gpu_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, local_rank=0)
    with pytest.raises(ConfigurationError, match="each process takes its own GPU"):
        start_ranks("cuda:0")


def test_processes_wait_longer_than_a_download_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL gives up after ten minutes, in which no base of 15 GB has arrived."""
    waits: list[float] = []
    _pretend(monkeypatch, local_rank=0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(
        "torch.distributed.init_process_group",
        lambda backend, timeout: waits.append(timeout.total_seconds()),
    )
    start_ranks("cuda")
    assert waits == [7200.0]


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, local_rank=1)
    with pytest.raises(DeviceError, match="at most 1 processes"):
        start_ranks("cuda")


def test_gradients_are_scaled_down_to_the_largest_norm() -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, 0.0) == 5.0
    assert parameters[0].grad.item() == 3.0
    assert clip_gradients(parameters, 1.0) == 5.0
    assert parameters[0].grad.item() == pytest.approx(0.6, rel=1e-5)
    assert clip_gradients([parameters[2]], 1.0) == 0.0


def _pretend(monkeypatch: pytest.MonkeyPatch, local_rank: int) -> None:
    """Two processes on a machine with one GPU."""
    for name, value in (("WORLD_SIZE", 2), ("RANK", local_rank), ("LOCAL_RANK", local_rank)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
