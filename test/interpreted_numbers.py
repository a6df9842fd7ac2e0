"""Conversions of low-bit weights that Triton's interpreter can run: it knows no PTX."""

from __future__ import annotations

import triton
import triton.language as tl

from openvla_ros.engine import triton_kernels, triton_prompt_kernels


@triton.jit
def int8_to_half(values):  # type: ignore[no-untyped-def]
    return values.to(tl.float16)


@triton.jit
def low_to_half(pairs):  # type: ignore[no-untyped-def]
    return (pairs & 15).to(tl.float16) - 8


@triton.jit
def high_to_half(pairs):  # type: ignore[no-untyped-def]
    return (pairs >> 4).to(tl.float16) - 8


def install() -> None:
    """Put them in the place of the kernels' own."""
    for module in (triton_kernels, triton_prompt_kernels):
        for function in (int8_to_half, low_to_half, high_to_half):
            setattr(module, function.__name__, function)
