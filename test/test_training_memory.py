"""The memory of a run is told before its first step, and what would take less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from openvla_ros.errors import DeviceError, GpuMemoryError
from openvla_ros.model.random_weights import profile_config
from openvla_ros.training.config import (
    DataConfig,
    FinetuneConfig,
    OptimizationConfig,
    RunConfig,
    SourceConfig,
    StrategyConfig,
)
from openvla_ros.training.memory import GB, MemoryEstimate, estimate_memory, require_memory

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
ESTIMATE = MemoryEstimate(15 * GB, GB, 2 * GB, 30 * GB, 2 * GB, (("smaller", 20 * GB),))


def run(name: str = "lora", batch_size: int = 16, **options: Any) -> FinetuneConfig:
    """Return a run over some source."""
    return FinetuneConfig(
        "base",
        DataConfig((SourceConfig("path", "name"),)),
        strategy=StrategyConfig(name=name),
        optimization=OptimizationConfig(batch_size=batch_size),
        run=RunConfig(**options),
    )


@pytest.fixture(scope="module")
def lora() -> MemoryEstimate:
    """Return the estimate of the usual run at full size."""
    return estimate_memory(profile_config("7b"), run())


def test_weights_gradients_and_moments_of_lora_are_exact(lora: MemoryEstimate) -> None:
    base, adapters = 7_541_237_184, 110_828_288
    assert lora.weights == 2 * base + (4 + 2) * adapters
    assert lora.gradients == 4 * adapters
    assert lora.optimizer == 8 * adapters


def test_lora_at_batch_16_is_as_large_as_the_paper_measured(lora: MemoryEstimate) -> None:
    """59.7 GB, OpenVLA paper, table 1; the estimate has no logits of unlabelled positions."""
    off = lora.total / GB / 59.7 - 1
    assert abs(off) < 0.15, f"{lora.describe()} is {off:+.0%} off"


def test_advice_takes_less_and_keeps_the_samples_of_a_step(lora: MemoryEstimate) -> None:
    texts = [text for text, _ in lora.advice]
    assert all(total < lora.total for _, total in lora.advice)
    assert texts[:2] == [
        "run.activation_checkpointing: selective",
        "run.activation_checkpointing: full",
    ]
    assert "optimization.batch_size: 4 with accumulation: 4" in texts
    assert any("qlora" in text for text in texts)


def test_processes_share_what_is_trained_but_for_adapters() -> None:
    config = profile_config("tiny")
    full, lora = run("full"), run("lora")
    assert estimate_memory(config, full, 2).optimizer * 2 == estimate_memory(config, full).optimizer
    assert estimate_memory(config, lora, 2) == estimate_memory(config, lora)


@pytest.mark.parametrize("part", ["batch", "checkpointing", "average", "precision"])
def test_settings_change_their_part(part: str) -> None:
    config, before = profile_config("tiny"), run()
    after = {
        "batch": run(batch_size=32),
        "checkpointing": run(activation_checkpointing="full"),
        "average": replace(before, optimization=OptimizationConfig(ema_decay=0.9)),
        "precision": run(precision="float32"),
    }[part]
    first, second = (estimate_memory(config, one) for one in (before, after))
    if part == "batch":
        assert second.activations == 2 * first.activations
    elif part == "checkpointing":
        assert second.activations < first.activations
    elif part == "average":
        assert second.optimizer == 1.5 * first.optimizer
    else:
        assert second.activations == 2 * first.activations and second.weights > first.weights


def test_a_run_that_does_not_fit_is_refused_with_what_would() -> None:
    def free(gigabytes: float) -> Callable[[torch.device], tuple[int, int]]:
        return lambda device: (int(gigabytes * GB), int(80 * GB))

    assert "80.0 GB are free" in require_memory(ESTIMATE, GPU, mem_get_info=free(80))
    with pytest.raises(GpuMemoryError, match=r"50\.0 GB.*24\.0 GB free.*smaller \(20\.0 GB\)"):
        require_memory(ESTIMATE, GPU, mem_get_info=free(24))
    with pytest.raises(GpuMemoryError, match="No setting makes it fit"):
        require_memory(ESTIMATE, GPU, mem_get_info=free(10))


def test_a_cpu_is_asked_for_its_memory_where_it_tells() -> None:
    assert "cannot be told" in require_memory(ESTIMATE, CPU, available_ram=lambda: 0)
    with pytest.raises(DeviceError, match=r"cpu has 24\.0 GB free"):
        require_memory(ESTIMATE, CPU, available_ram=lambda: int(24 * GB))
