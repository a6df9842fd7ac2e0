"""Matrices in few bits: what is lost, and that packing loses nothing more."""

from __future__ import annotations

import pytest
import torch

from openvla_ros.engine import low_bit
from openvla_ros.engine.low_bit import quantize, why_not

#: Largest relative error of normally distributed weights, with a little room above what is measured
#: (int8 0.007, fp8 0.026, int4 0.101).
BOUNDS = {"int8": 0.009, "fp8": 0.03, "int4": 0.11}
BYTES_PER_WEIGHT = {"int8": 1.02, "fp8": 1.001, "int4": 0.54}


@pytest.mark.parametrize("kind", low_bit.KINDS)
def test_error_and_size_are_what_the_format_promises(kind: str) -> None:
    weight = torch.randn(96, 512, generator=torch.Generator().manual_seed(0))
    matrix = quantize(weight, kind)
    error = float((matrix.dequantize() - weight).norm() / weight.norm())
    assert error < BOUNDS[kind], f"relative error {error:.3f}"
    assert matrix.nbytes <= BYTES_PER_WEIGHT[kind] * weight.numel()


@pytest.mark.parametrize("kind", low_bit.KINDS)
def test_rounding_twice_changes_nothing_more(kind: str) -> None:
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(1))
    once = quantize(weight, kind).dequantize()
    twice = quantize(once, kind).dequantize()
    # int4 may find a scale that suits the rounded weights a little differently.
    tolerance = 0.06 if kind == "int4" else 1e-5
    assert float((twice - once).norm() / once.norm()) < tolerance


def test_int4_levels_survive_packing_into_tiles() -> None:
    levels = torch.randint(-8, 8, (64, 3, 128), dtype=torch.int8)
    assert torch.equal(low_bit._unpack(low_bit._pack(levels)), levels)


def test_int4_scales_lose_less_than_rounding_to_the_range() -> None:
    weight = torch.randn(32, 1024, generator=torch.Generator().manual_seed(2))
    grouped = weight.unflatten(1, (-1, 128))
    scale = grouped.abs().amax(dim=2, keepdim=True) / 7
    plain = ((grouped / scale).round().clamp(-8, 7) * scale).flatten(1)
    searched = quantize(weight, "int4").dequantize()
    assert (searched - weight).norm() < 0.97 * (plain - weight).norm()


@pytest.mark.parametrize("kind", low_bit.KINDS)
def test_a_row_of_zeros_stays_zero(kind: str) -> None:
    weight = torch.randn(32, 128)
    weight[3] = 0
    assert torch.equal(quantize(weight, kind).dequantize()[3], torch.zeros(128))


def test_shapes_that_int4_cannot_tile_are_named() -> None:
    assert why_not("int4", (64, 100)) == "int4 needs multiples of 32 x 128, the matrix is 64 x 100"
    assert why_not("int8", (64, 100)) is None
