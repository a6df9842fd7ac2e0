"""Numbers inside GPU kernels: low-bit weights to float16, and rotated heads."""

from __future__ import annotations

import triton
import triton.language as tl

#: How weights are stored.
FULL, INT8, FP8, INT4 = (tl.constexpr(kind) for kind in range(4))


@triton.jit
def int8_to_half(values):
    """Four int8 at a time: 1152 + v is a half whose low byte is v + 128."""
    return tl.inline_asm_elementwise(
        """{ .reg .b32 u;
        xor.b32 u, $2, 0x80808080;
        prmt.b32 $0, u, 0x64646464, 0x4140;
        prmt.b32 $1, u, 0x64646464, 0x4342;
        mov.b32 u, 0x64806480;
        sub.f16x2 $0, $0, u;
        sub.f16x2 $1, $1, u; }""",
        "=r,=r,r",
        [values],
        dtype=tl.float16,
        is_pure=True,
        pack=4,
    )


@triton.jit
def low_to_half(pairs):
    """The low halves of four bytes at a time, less 8."""
    return tl.inline_asm_elementwise(
        """{ .reg .b32 u;
        and.b32 u, $2, 0x0F0F0F0F;
        prmt.b32 $0, u, 0x64646464, 0x4140;
        prmt.b32 $1, u, 0x64646464, 0x4342;
        mov.b32 u, 0x64086408;
        sub.f16x2 $0, $0, u;
        sub.f16x2 $1, $1, u; }""",
        "=r,=r,r",
        [pairs],
        dtype=tl.float16,
        is_pure=True,
        pack=4,
    )


@triton.jit
def high_to_half(pairs):
    """The high halves of four bytes at a time, less 8."""
    return tl.inline_asm_elementwise(
        """{ .reg .b32 u;
        shr.b32 u, $2, 4;
        and.b32 u, u, 0x0F0F0F0F;
        prmt.b32 $0, u, 0x64646464, 0x4140;
        prmt.b32 $1, u, 0x64646464, 0x4342;
        mov.b32 u, 0x64086408;
        sub.f16x2 $0, $0, u;
        sub.f16x2 $1, $1, u; }""",
        "=r,=r,r",
        [pairs],
        dtype=tl.float16,
        is_pure=True,
        pack=4,
    )


@triton.jit
def clamp_to(x, dtype: tl.constexpr):
    """float32 as `dtype`; float16 has more digits than bfloat16 and less range."""
    if dtype == tl.float16:
        x = tl.clamp(x, -65504.0, 65504.0)
    return x.to(dtype)


@triton.jit
def turn(first, second, cosine, sine):
    """The first half of a rotated head, rounded after every product as the reference is."""
    dtype = first.dtype
    straight = (first.to(tl.float32) * cosine.to(tl.float32)).to(dtype)
    crossed = (second.to(tl.float32) * sine.to(tl.float32)).to(dtype)
    return straight, crossed
