"""GPU kernels of a prefill: what lies between its matrix products, which are cuBLAS's.

Each joins what would be several passes over the same rows.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from openvla_ros.engine.triton_numbers import INT4, high_to_half, int8_to_half, low_to_half, turn


@triton.jit
def add_rms_norm(
    x_ptr,
    delta_ptr,
    scale_ptr,  # (rows,) float32, with SCALE
    norm_ptr,
    sum_ptr,
    out_ptr,  # of the dtype that the next product takes
    width,
    eps,
    ADD: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row: sum = x + delta (times its scale), out = sum / rms(sum) * norm."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    place = row * width + column
    inside = column < width
    x = tl.load(x_ptr + place, inside, other=0.0)
    if ADD:
        delta = tl.load(delta_ptr + place, inside, other=0.0)
        if SCALE:
            delta = (delta.to(tl.float32) * tl.load(scale_ptr + row)).to(x.dtype)
        x += delta
        tl.store(sum_ptr + place, x, inside)
    wide = x.to(tl.float32)
    scaled = (wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)).to(x.dtype)
    scaled = tl.load(norm_ptr + column, inside, other=0.0) * scaled
    if out_ptr.dtype.element_ty == tl.float8e4nv:
        scaled = tl.clamp(scaled.to(tl.float32), -448.0, 448.0)
    tl.store(out_ptr + place, scaled.to(out_ptr.dtype.element_ty), inside)


@triton.jit
def scale_rows(
    x_ptr, out_ptr, scale_ptr, width, GATED: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """One row, or with GATED silu(gate) * up of one, as fp8 with the scale of its largest value."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    if GATED:
        pair = tl.arange(0, 2)
        source = x_ptr + row.to(tl.int64) * 2 * width + 2 * column[:, None] + pair[None, :]
        gate, up = tl.split(tl.load(source, inside[:, None], other=0.0))
        wide = gate.to(tl.float32)
        x = ((wide * tl.sigmoid(wide)).to(gate.dtype) * up).to(tl.float32)
    else:
        x = tl.load(x_ptr + row * width + column, inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), axis=0), 1e-20) / 448.0
    tl.store(out_ptr + row * width + column, (x / scale).to(out_ptr.dtype.element_ty), inside)
    tl.store(scale_ptr + row, scale)


@triton.jit
def expand(
    data_ptr,
    scales_ptr,
    unit_ptr,  # () float32, with an fp8 `out`: what its numbers are multiples of
    out_ptr,  # (rows, depth)
    rows,
    depth,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    KIND: tl.constexpr,
):
    """A tile of int8 or int4 weights as 16-bit numbers, or of int4 weights as fp8."""
    program, group = tl.program_id(0), tl.program_id(1)
    n = program * BLOCK_N + tl.arange(0, BLOCK_N)
    place = out_ptr + n.to(tl.int64)[:, None] * depth + group * BLOCK_K
    dtype = out_ptr.dtype.element_ty
    if KIND == INT4:
        half = tl.arange(0, BLOCK_K // 2)
        tile = tl.arange(0, BLOCK_N)[:, None] * (BLOCK_K // 2) + half[None, :]
        groups = depth // BLOCK_K
        tile += (program.to(tl.int64) * groups + group) * (BLOCK_N * (BLOCK_K // 2))
        pairs = tl.load(data_ptr + tile)
        scales = tl.load(scales_ptr + group * rows + n)[:, None]
        if dtype == tl.float8e4nv:
            scales /= tl.load(unit_ptr)
        low = low_to_half(pairs).to(tl.float32) * scales
        high = high_to_half(pairs).to(tl.float32) * scales
        tl.store(place + half[None, :], low.to(dtype))
        tl.store(place + BLOCK_K // 2 + half[None, :], high.to(dtype))
    else:
        k = tl.arange(0, BLOCK_K)
        source = data_ptr + n.to(tl.int64)[:, None] * depth + group * BLOCK_K + k[None, :]
        values = int8_to_half(tl.load(source)).to(tl.float32)
        tl.store(place + k[None, :], (values * tl.load(scales_ptr + n)[:, None]).to(dtype))


@triton.jit
def add_layer_norm(
    x_ptr,
    delta_ptr,
    scale_ptr,
    norm_ptr,
    bias_ptr,
    sum_ptr,
    out_ptr,
    width,
    eps,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row: sum = x + delta (times scale with SCALE), out = layer norm of sum."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    column = tl.arange(0, BLOCK)
    place = tl.program_id(0) * width + column
    inside = column < width
    delta = tl.load(delta_ptr + place, inside, other=0.0)
    if SCALE:
        delta *= tl.load(scale_ptr + column, inside, other=0.0)
    x = tl.load(x_ptr + place, inside, other=0.0) + delta
    tl.store(sum_ptr + place, x, inside)
    wide = x.to(tl.float32)
    centred = tl.where(inside, wide - tl.sum(wide, axis=0) / width, 0.0)
    scaled = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
    norm = tl.load(norm_ptr + column, inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, (scaled * norm + bias).to(x.dtype), inside)


@triton.jit
def silu_mul(gate_up_ptr, out_ptr, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """silu(gate) * up of one block of one row; (rows, 2 width) alternates gate, up."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, 2)
    inside = column < width
    source = gate_up_ptr + row * 2 * width + 2 * column[:, None] + pair[None, :]
    gate, up = tl.split(tl.load(source, inside[:, None], other=0.0))
    wide = gate.to(tl.float32)
    result = (wide * tl.sigmoid(wide)).to(gate.dtype) * up
    tl.store(out_ptr + row * width + column, result, inside)


@triton.jit
def store_prompt(
    qkv_ptr,  # (rows, (H + 2 KV) d); queries are rotated in place
    keys_ptr,  # (KV, capacity, d)
    values_ptr,
    cosine_ptr,
    sine_ptr,
    heads,
    kv_heads,
    capacity,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_H heads of one position: rotate queries and keys, cache keys and values."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    WIDTH: tl.constexpr = 2 * HALF
    position = tl.program_id(0)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    half = tl.arange(0, HALF)
    inside = (head < heads + 2 * kv_heads)[:, None]
    source = qkv_ptr + position * (heads + 2 * kv_heads) * WIDTH
    source += head[:, None] * WIDTH + half[None, :]
    low, high = tl.load(source, inside, other=0.0), tl.load(source + HALF, inside, other=0.0)
    table = position * WIDTH + half
    straight, crossed = turn(
        low, high, tl.load(cosine_ptr + table)[None, :], tl.load(sine_ptr + table)[None, :]
    )
    turned_low = straight - crossed
    straight, crossed = turn(
        high,
        low,
        tl.load(cosine_ptr + table + HALF)[None, :],
        tl.load(sine_ptr + table + HALF)[None, :],
    )
    turned_high = straight + crossed
    is_query = (head < heads)[:, None]
    tl.store(source, turned_low, is_query)
    tl.store(source + HALF, turned_high, is_query)
    place = position * WIDTH + half[None, :]
    is_key = (head >= heads)[:, None] & (head < heads + kv_heads)[:, None]
    keys = keys_ptr + (head - heads)[:, None] * (capacity * WIDTH) + place
    tl.store(keys, turned_low, is_key)
    tl.store(keys + HALF, turned_high, is_key)
    is_value = (head >= heads + kv_heads)[:, None] & inside
    values = values_ptr + (head - heads - kv_heads)[:, None] * (capacity * WIDTH) + place
    tl.store(values, low, is_value)
    tl.store(values + HALF, high, is_value)
