"""GPU kernels of attention over the cache: a head cut by positions, or by what it gives out.

Either order of sums depends on neither the number of rows nor the content of the others.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from openvla_ros.engine.triton_numbers import turn


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


@triton.jit
def attend_slices(
    qkv_ptr,  # (rows, (H + 2 KV) d)
    keys_ptr,  # (KV, capacity, d)
    values_ptr,  # (KV, capacity, d)
    position_ptr,  # (1,) int32
    cosine_ptr,  # (positions, d)
    sine_ptr,  # (positions, d)
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
    SLICE: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """SLICE columns of one head's attention: rotate, cache what is new, attend to every block.

    Programs of one head all read its keys, most of them from the second-level cache. None waits for
    another: all store the same new keys, and each its own columns of the new values.
    """
    WIDTH: tl.constexpr = 2 * HALF
    head = tl.program_id(0)
    kv_head = head // (heads // kv_heads)
    keys_ptr += kv_head * capacity * WIDTH
    values_ptr += kv_head * capacity * WIDTH
    row = tl.arange(0, ROWS)
    half = tl.arange(0, HALF)
    column = tl.program_id(1) * SLICE + tl.arange(0, SLICE)
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
    k = source + (heads + kv_head) * WIDTH + half[None, :]
    v = source + (heads + kv_heads + kv_head) * WIDTH + column[None, :]
    new_values = tl.load(v, valid, other=0.0)
    low, high = _rotated(k, valid, cos_low, sin_low, cos_high, sin_high, HALF)
    q_low, q_high = _rotated(q, valid, cos_low, sin_low, cos_high, sin_high, HALF)
    place = (start + row)[:, None] * WIDTH
    tl.store(keys_ptr + place + half[None, :], low, valid)
    tl.store(keys_ptr + place + HALF + half[None, :], high, valid)
    tl.store(values_ptr + place + column[None, :], new_values, valid)
    tl.debug_barrier()  # what this program wrote is read below by other threads of it

    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, SLICE), tl.float32)
    for block in tl.range(0, blocks, num_stages=STAGES):
        key = block * BLOCK + tl.arange(0, BLOCK)
        cached = key < start + rows
        key_low = keys_ptr + key[None, :] * WIDTH + half[:, None]
        value = values_ptr + key[:, None] * WIDTH + column[None, :]
        value = tl.load(value, cached[:, None], other=0.0)
        scores = tl.dot(q_low, tl.load(key_low, cached[None, :], other=0.0))
        scores = tl.dot(q_high, tl.load(key_low + HALF, cached[None, :], other=0.0), scores) * scale
        scores = tl.where(key[None, :] <= start + row[:, None], scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, axis=1))  # finite: all see position 0
        shrink = tl.exp(highest - new_highest)
        shares = tl.exp(scores - new_highest[:, None])
        weight = weight * shrink + tl.sum(shares, axis=1)
        total = tl.dot(shares.to(value.dtype), value, total * shrink[:, None])
        highest = new_highest
    result = (total / weight[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(
        out_ptr + row[:, None] * (heads * WIDTH) + head * WIDTH + column[None, :], result, valid
    )
