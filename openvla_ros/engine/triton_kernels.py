"""GPU kernels of a decoding pass.

A decoding pass reads every weight once for at most `ROWS` positions: its products stream weights
through tensor cores and never wait for arithmetic. The order of every sum depends on neither the
number of rows nor the content of the others, so a position gets the same bits alone or among eight.

Under `PDL` (programmatic dependent launch) a kernel starts while the one before it still runs, and
waits before it touches what that one writes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from openvla_ros.engine.triton_numbers import (
    FP8,
    INT4,
    INT8,
    clamp_to,
    high_to_half,
    int8_to_half,
    low_to_half,
    turn,
)

#: Positions a decoding pass has room for.
ROWS = 8


@triton.jit
def _stream(
    x_ptr,
    weight_ptr,
    scales_ptr,
    rows,
    columns,
    depth,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    KIND: tl.constexpr,
):
    """Product of this program's BLOCK_N rows of the weight and x: (BLOCK_N, ROWS) float32.

    Scales of whole rows or matrices are left to the caller.
    """
    program = tl.program_id(0)
    n = program * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, ROWS)
    total = tl.zeros((BLOCK_N, ROWS), tl.float32)
    inside = row[None, :] < rows
    if KIND == INT4:  # a tile of one group is contiguous, and has a scale per row
        half = tl.arange(0, BLOCK_K // 2)
        groups = depth // BLOCK_K
        tile = tl.arange(0, BLOCK_N)[:, None] * (BLOCK_K // 2) + half[None, :]
        tile += weight_ptr + program.to(tl.int64) * groups * (BLOCK_N * (BLOCK_K // 2))
        for group in tl.range(0, groups, num_stages=STAGES):
            pairs = tl.load(tile + group * (BLOCK_N * (BLOCK_K // 2)))
            scales = tl.load(scales_ptr + group * columns + n)
            place = x_ptr + row[None, :] * depth + (group * BLOCK_K + half)[:, None]
            first = tl.load(place, inside, other=0.0)
            second = tl.load(place + BLOCK_K // 2, inside, other=0.0)
            partial = tl.dot(low_to_half(pairs), first)
            partial = tl.dot(high_to_half(pairs), second, partial)
            total += partial * scales[:, None]
    else:
        k = tl.arange(0, BLOCK_K)
        weight_rows = weight_ptr + n.to(tl.int64) * depth
        for start in tl.range(0, depth, BLOCK_K, num_stages=STAGES):
            weights = tl.load(weight_rows[:, None] + (start + k)[None, :])
            x = tl.load(x_ptr + row[None, :] * depth + (start + k)[:, None], inside, other=0.0)
            if KIND == INT8:
                total = tl.dot(int8_to_half(weights), x, total)
            elif KIND == FP8:
                total = tl.dot(weights.to(tl.float16), x, total)
            else:
                total = tl.dot(weights, x, total)
    return total


@triton.jit
def skinny_linear(
    x_ptr,  # (rows, depth)
    weight_ptr,  # (columns, depth)
    scales_ptr,  # float32, of low-bit weights; see `LowBitMatrix`
    squares_ptr,  # (parts, ROWS) float32, with NORM: sums of squares of the unscaled rows
    residual_ptr,  # (rows, columns), with RESIDUAL
    gain_ptr,  # (columns,), with RESIDUAL: of the norm that follows
    out_ptr,  # (rows, columns), or (rows, columns / 2) with GATED
    scaled_ptr,  # (rows, columns), with RESIDUAL: out * gain
    value_ptr,  # (programs, ROWS) float32: sums of squares with RESIDUAL, highest values with BEST
    index_ptr,  # (programs, ROWS) int32: where the highest values are, with BEST
    rows,
    columns,
    depth,
    parts,
    eps,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PARTS: tl.constexpr,
    KIND: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BEST: tl.constexpr,
    PDL: tl.constexpr,
):
    """Weight @ x for up to ROWS rows, with what a decoder layer does before and after it.

    NORM: x was multiplied by the norm's gain; dividing by its root mean square can wait.
    GATED: weight rows alternate gate, up; what leaves is silu(gate) * up.
    RESIDUAL: `residual` is added, and what the next norm needs leaves beside the sum.
    BEST: the highest value among each program's columns leaves beside the product.
    """
    program = tl.program_id(0)
    n = program * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, ROWS)
    if PDL:
        gdc_wait()
    if NORM:
        part = tl.arange(0, PARTS)
        squares = tl.load(
            squares_ptr + part[:, None] * ROWS + row[None, :], part[:, None] < parts, other=0.0
        )
    total = _stream(
        x_ptr, weight_ptr, scales_ptr, rows, columns, depth, ROWS, BLOCK_N, BLOCK_K, STAGES, KIND
    )
    inside = row[None, :] < rows
    if PDL:
        gdc_launch_dependents()
    if KIND == INT8:
        total *= tl.load(scales_ptr + n)[:, None]
    elif KIND == FP8:
        total *= tl.load(scales_ptr)
    if NORM:
        total *= tl.rsqrt(tl.sum(squares, axis=0) / depth + eps)[None, :]
    result = clamp_to(total, out_ptr.dtype.element_ty)
    if GATED:
        pairs = tl.reshape(result, (BLOCK_N // 2, 2, ROWS))
        gate, up = tl.split(tl.permute(pairs, (0, 2, 1)))
        wide = gate.to(tl.float32)
        result = (wide * tl.sigmoid(wide)).to(gate.dtype) * up
        n = program * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        columns = columns // 2
    places = row[None, :] * columns + n[:, None]
    if RESIDUAL:
        result += tl.load(residual_ptr + places, inside, other=0.0)
        wide = result.to(tl.float32)
        gain = tl.load(gain_ptr + n).to(tl.float32)
        scaled = clamp_to(wide * gain[:, None], scaled_ptr.dtype.element_ty)
        tl.store(scaled_ptr + places, scaled, inside)
        tl.store(value_ptr + program * ROWS + row, tl.sum(wide * wide, axis=0))
    tl.store(out_ptr + places, result, inside)
    if BEST:
        value, index = tl.max(
            result.to(tl.float32), axis=0, return_indices=True, return_indices_tie_break_left=True
        )
        tl.store(value_ptr + program * ROWS + row, value)
        tl.store(index_ptr + program * ROWS + row, index + program * BLOCK_N)


@triton.jit
def pick_best(
    best_value_ptr,  # (programs, ROWS)
    best_index_ptr,  # (programs, ROWS)
    token_ptr,  # (rows,) int64, written
    programs,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """The lowest id of the highest logit of one row, from what each program of the head found."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0)
    program = tl.arange(0, BLOCK)
    places = program * ROWS + row
    value = tl.load(best_value_ptr + places, program < programs, other=float("-inf"))
    _, first = tl.max(value, axis=0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(token_ptr + row, tl.load(best_index_ptr + first * ROWS + row).to(tl.int64))


@triton.jit
def embed_rows(
    token_ptr,  # (rows,) int64
    table_ptr,  # (V, width)
    gain_ptr,  # (width,)
    out_ptr,  # (rows, width)
    scaled_ptr,  # (rows, width): out * gain
    squares_ptr,  # (1, ROWS) float32
    width,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row of the embedding per program, and what the norm that follows needs."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    values = tl.load(table_ptr + tl.load(token_ptr + row) * width + column, inside, other=0.0)
    wide = values.to(tl.float32)
    gain = tl.load(gain_ptr + column, inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * width + column, values, inside)
    scaled = clamp_to(wide * gain, scaled_ptr.dtype.element_ty)
    tl.store(scaled_ptr + row * width + column, scaled, inside)
    tl.store(squares_ptr + row, tl.sum(wide * wide, axis=0))


@triton.jit
def _rotated(pointers, mask, cos_low, sin_low, cos_high, sin_high, HALF: tl.constexpr):
    """Both halves of the heads at `pointers`, rotated."""
    low, high = tl.load(pointers, mask, other=0.0), tl.load(pointers + HALF, mask, other=0.0)
    straight, crossed = turn(low, high, cos_low, sin_low)
    turned_low = straight - crossed
    straight, crossed = turn(high, low, cos_high, sin_high)
    return turned_low, straight + crossed


@triton.jit
def attend_cache(
    qkv_ptr,  # (rows, (H + 2 KV) d)
    keys_ptr,  # (KV, capacity, d)
    values_ptr,  # (KV, capacity, d)
    position_ptr,  # (1,) int32
    cosine_ptr,  # (positions, d)
    sine_ptr,  # (positions, d)
    part_ptr,  # (H, blocks, ROWS, d) float32, scratch
    weight_ptr,  # (H, blocks, 2, ROWS) float32, scratch
    counter_ptr,  # (H,) int32, zero between launches
    out_ptr,  # (rows, H d)
    rows,
    heads,
    kv_heads,
    capacity,
    blocks,
    scale,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One head and one block of cached positions: rotate, cache what is new, attend, join.

    Blocks begin at multiples of BLOCK. A head's last program to finish joins them, in their order.
    """
    WIDTH: tl.constexpr = 2 * HALF
    head = tl.program_id(0)
    block = tl.program_id(1)
    kv_head = head // (heads // kv_heads)
    keys_ptr += kv_head * capacity * WIDTH
    values_ptr += kv_head * capacity * WIDTH
    row = tl.arange(0, ROWS)
    half = tl.arange(0, HALF)
    column = tl.arange(0, WIDTH)
    valid = row[:, None] < rows
    # The position and the tables come from kernels before the one that still runs.
    start = tl.load(position_ptr)
    table = (start + row)[:, None] * WIDTH + half[None, :]
    cos_low = tl.load(cosine_ptr + table, valid, other=0.0)
    sin_low = tl.load(sine_ptr + table, valid, other=0.0)
    cos_high = tl.load(cosine_ptr + table + HALF, valid, other=0.0)
    sin_high = tl.load(sine_ptr + table + HALF, valid, other=0.0)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    source = qkv_ptr + row[:, None] * ((heads + 2 * kv_heads) * WIDTH)
    q = source + head * WIDTH + half[None, :]
    q_low, q_high = _rotated(q, valid, cos_low, sin_low, cos_high, sin_high, HALF)
    if (block + 1) * BLOCK > start:  # some of the new positions may lie in this block
        new = valid & ((start + row) // BLOCK == block)[:, None]
        k = source + (heads + kv_head) * WIDTH + half[None, :]
        low, high = _rotated(k, new, cos_low, sin_low, cos_high, sin_high, HALF)
        place = (start + row)[:, None] * WIDTH
        tl.store(keys_ptr + place + half[None, :], low, new)
        tl.store(keys_ptr + place + HALF + half[None, :], high, new)
        v = source + (heads + kv_heads + kv_head) * WIDTH + column[None, :]
        tl.store(values_ptr + place + column[None, :], tl.load(v, new, other=0.0), new)
        tl.debug_barrier()  # what this program wrote is read below by other threads of it

    key = block * BLOCK + tl.arange(0, BLOCK)
    cached = key < start + rows
    key_low = keys_ptr + key[None, :] * WIDTH + half[:, None]
    scores = tl.dot(q_low, tl.load(key_low, cached[None, :], other=0.0))
    scores = tl.dot(q_high, tl.load(key_low + HALF, cached[None, :], other=0.0), scores) * scale
    scores = tl.where(key[None, :] <= start + row[:, None], scores, float("-inf"))
    highest = tl.max(scores, axis=1)
    # A row that sees nothing of this block has the highest score -inf and the weight 0.
    shares = tl.exp(scores - tl.where(highest == float("-inf"), 0.0, highest)[:, None])
    value_ptrs = values_ptr + key[:, None] * WIDTH + column[None, :]
    value = tl.load(value_ptrs, cached[:, None], other=0.0)
    total = tl.dot(shares.to(value.dtype), value)
    slot = head * blocks + block
    tl.store(part_ptr + (slot * ROWS + row)[:, None] * WIDTH + column[None, :], total)
    tl.store(weight_ptr + slot * 2 * ROWS + row, highest)
    tl.store(weight_ptr + slot * 2 * ROWS + ROWS + row, tl.sum(shares, axis=1))
    tl.debug_barrier()
    if tl.atomic_add(counter_ptr + head, 1, sem="acq_rel") == blocks - 1:
        tl.store(counter_ptr + head, 0)
        _join(part_ptr, weight_ptr, out_ptr, head, heads, rows, blocks, ROWS, WIDTH)


@triton.jit
def _join(
    part_ptr,
    weight_ptr,
    out_ptr,
    head,
    heads,
    rows,
    blocks,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The attention of one head from that over each of its blocks."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    place = row[:, None] * WIDTH + column[None, :]
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for block in tl.range(0, blocks, num_stages=1):
        slot = head * blocks + block
        # .cg: not from the first-level cache, which other multiprocessors do not write.
        part = tl.load(part_ptr + slot * ROWS * WIDTH + place, cache_modifier=".cg")
        part_highest = tl.load(weight_ptr + slot * 2 * ROWS + row, cache_modifier=".cg")
        part_weight = tl.load(weight_ptr + slot * 2 * ROWS + ROWS + row, cache_modifier=".cg")
        new_highest = tl.maximum(highest, part_highest)
        shrink, share = tl.exp(highest - new_highest), tl.exp(part_highest - new_highest)
        total = total * shrink[:, None] + part * share[:, None]
        weight = weight * shrink + part_weight * share
        highest = new_highest
    result = (total / weight[:, None]).to(out_ptr.dtype.element_ty)
    out = out_ptr + row[:, None] * (heads * WIDTH) + head * WIDTH + column[None, :]
    tl.store(out, result, row[:, None] < rows)
