from __future__ import annotations

import pytest
import torch
from torch import nn
from training_cases import prepared_small_model
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from openvla_ros.training.config import StrategyConfig
from openvla_ros.training.norms import compute_norms_in_one_pass


def norm_of(kind: str, dtype: torch.dtype) -> nn.Module:
    norm = nn.LayerNorm(64, eps=1e-6) if kind == "layer" else LlamaRMSNorm(64, eps=1e-5)
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=1.0)
    return norm.to(dtype)


def computed(norm: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    y.square().sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_one_pass_gives_the_same_values_and_gradients(
    kind: str, dtype: torch.dtype, bound: float
) -> None:
    x = 3 * torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    plain, fused = norm_of(kind, dtype), norm_of(kind, dtype)
    compute_norms_in_one_pass(fused)
    exact = computed(norm_of(kind, torch.float64), x.double())
    for name, expected, found, usual in zip(
        ("value", "gradient"), exact, computed(fused, x), computed(plain, x), strict=True
    ):
        off = ((found.double() - expected).norm() / expected.norm()).item()
        off_usual = ((usual.double() - expected).norm() / expected.norm()).item()
        assert off < bound, f"{name} is off by {off:.2g} of itself; as before {off_usual:.2g}"


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_trained_norms_compute_as_before_under_autocast(kind: str) -> None:
    """Their weights are float32 and their input is not: the fused kernels want one format."""
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    plain, fused = norm_of(kind, torch.float32), norm_of(kind, torch.float32)
    compute_norms_in_one_pass(fused)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fused(x), plain(x))


def test_a_prepared_model_has_them_under_the_old_names() -> None:
    prepared = prepared_small_model(StrategyConfig("last_layer"))
    norms = [m for m in prepared.model.modules() if "Norm" in type(m).__name__]
    assert len(norms) == 2 * (2 * 2 + 1) + 1 + 2 * 2 + 1  # towers, pooling head, decoder
    assert all("forward" in vars(norm) for norm in norms)
    assert "language_model.model.layers.0.input_layernorm.weight" in prepared.model.state_dict()
