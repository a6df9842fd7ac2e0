"""bfloat16 on a CPU: packed weights and its own attention give what plain torch gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from openvla_ros.engine import cpu_operations, packed, torch_operations
from openvla_ros.engine.bench.profiles import bench_config, random_model
from openvla_ros.engine.engine import Engine
from openvla_ros.engine.low_bit import quantize
from openvla_ros.engine.weights import MATRICES, LanguageWeights, fuse_language_model

CPU = torch.device("cpu")
HEADS, HEAD_DIM, CAPACITY = 3, 32, 64


def tiny_model(dtype: torch.dtype = torch.bfloat16):
    return random_model(bench_config("tiny"), CPU, dtype)


def require_packing() -> LanguageWeights:
    weights = fuse_language_model(tiny_model())
    reason = packed.why_not(weights)
    if reason:
        pytest.skip(f"weights are packed on CPUs with AVX512 only: {reason}")
    return weights


def inputs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 31000, (1, 9 + seed), generator=generator)
    return ids, torch.randn(1, 6, 224, 224, generator=generator)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_the_packed_engine_answers_like_the_plain_one(quantization: str) -> None:
    require_packing()
    plain = Engine(tiny_model(), quantization=quantization, keeps_modules=True)
    fast = Engine(tiny_model(), quantization=quantization)
    assert plain.choices["engine"].startswith("torch: on a CPU")
    assert fast.choices["engine"] == "cpu: bfloat16, packed for oneDNN"
    for seed in range(3):
        ids, pixels = inputs(seed)
        expected = plain.generate_action_tokens(ids, pixels, 7)
        found = fast.generate_action_tokens(ids, pixels, 7)
        error = relative(found.logits[0], expected.logits[0])
        assert error < 0.03, f"logits of the first id differ by {error:.3f} of their size"
        fast.calibrate(ids, [pixels], 7)
        for draft in (found.token_ids, [5] * 7):
            assert fast.verify_draft(ids, pixels, 7, draft).token_ids == found.token_ids


def test_packing_holds_no_weight_twice() -> None:
    require_packing()
    model = tiny_model()
    engine = Engine(model)
    layers = model.language_model.model.layers
    linears = [m for m in layers.modules() if isinstance(m, nn.Linear)]
    assert all(m.weight.numel() == 0 for m in [*linears, model.language_model.lm_head])
    for layer in engine.language.weights.layers:
        assert all(isinstance(getattr(layer, name), packed.PackedMatrix) for name in MATRICES)


def test_modules_that_shall_stay_still_run() -> None:
    model, untouched = tiny_model(), tiny_model()
    Engine(model, keeps_modules=True)
    ids, pixels = inputs(1)
    expected = untouched.generate_action_tokens(ids, pixels, 7).token_ids
    assert model.generate_action_tokens(ids, pixels, 7).token_ids == expected


def test_float32_is_never_packed() -> None:
    assert packed.why_not(fuse_language_model(tiny_model(torch.float32))) == (
        "the weights are float32"
    )


def test_a_packed_product_has_the_values_of_the_plain_one() -> None:
    require_packing()
    weight = torch.randn(96, 64).to(torch.bfloat16)
    for rows in (1, 7, 33):
        x = torch.randn(rows, 64).to(torch.bfloat16)
        exact = x.float() @ weight.float().t()
        assert relative(packed._packed(weight).product(x), exact) < 0.004


@pytest.mark.parametrize("rows", [1, 7, 33])
def test_int8_rows_agree_whether_few_or_many(rows: int) -> None:
    weight = quantize(torch.randn(96, 64).to(torch.bfloat16), "int8")
    x = torch.randn(rows, 64).to(torch.bfloat16)
    exact = x.float() @ weight.dequantize().float().t()
    assert relative(torch_operations.linear(x, weight), exact) < 0.01


@pytest.mark.parametrize("rows", [1, 7, 33])
def test_packed_int4_has_the_levels_it_was_made_of(rows: int) -> None:
    whole = quantize(torch.randn(128, 256).to(torch.bfloat16), "int4")
    matrix = packed._prepared("down", whole)
    x = torch.randn(rows, 256).to(torch.bfloat16)
    exact = x.float() @ whole.dequantize().float().t()
    assert relative(matrix.product(x), exact) < 0.01


def cache() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    angles = torch.randn(CAPACITY, HEAD_DIM)
    keys, values = torch.zeros(2, HEADS, CAPACITY, HEAD_DIM, dtype=torch.bfloat16)
    return keys, values, angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("length", [1, 20, 41])
def test_attention_is_that_of_plain_torch(rows: int, length: int) -> None:
    """After a prompt, at its own end; keys behind a row must not be seen by it."""
    keys, values, cosines, sines = cache()
    pairs = [(operations, keys.clone(), values.clone()) for operations in (
        torch_operations, cpu_operations)]  # fmt: skip
    prompt, after = (
        torch.randn(length + rows, 3 * HEADS * HEAD_DIM).bfloat16().split([length, rows])
    )
    position = torch.tensor([length], dtype=torch.int32)
    found = []
    for operations, own_keys, own_values in pairs:
        queries = operations.store_prompt(prompt, own_keys, own_values, cosines, sines)
        first = operations.attend_prompt(queries, own_keys, own_values)
        own_keys[:, length + rows :] = 100.0  # of an earlier, longer prompt
        own_values[:, length + rows :] = 100.0
        second = operations.attend(
            after, own_keys, own_values, position, cosines, sines, length + 2 * rows, None
        )
        found.append((first, second, own_keys, own_values))
    for name, one, other in zip(("prompt", "pass", "keys", "values"), *found, strict=True):
        assert one.shape == other.shape
        assert relative(other, one) < 0.02, f"{name} differ by {relative(other, one):.3f}"
