"""GPU kernels of the decoding pass and of what lies between the matrix products of a prefill.

A decoding pass reads every weight once for at most `ROWS` positions: its products stream weights
through tensor cores and never wait for arithmetic. The order of every sum depends on neither the
number of rows nor the content of the others, so a position gets the same bits alone or among eight.

Under `PDL` (programmatic dependent launch) a kernel starts while the one before it still runs: it
asks L2 for its first weights, which nobody writes, and waits before it touches anything else.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

#: Positions a decoding pass has room for.
ROWS = 8


@triton.jit
def _prefetch(pointers, size):
    """Ask L2 for `size` bytes (a multiple of 16) at each pointer, and do not wait."""
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [pointers.to(tl.uint64), size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def skinny_linear(
    x_ptr,  # (rows, depth)
    weight_ptr,  # (columns, depth)
    norm_ptr,  # (depth,), with NORM
    residual_ptr,  # (rows, columns), with RESIDUAL
    out_ptr,  # (rows, columns), or (rows, columns / 2) with GATED
    best_value_ptr,  # (programs, ROWS) float32, with BEST
    best_index_ptr,  # (programs, ROWS) int32, with BEST
    rows,
    columns,
    depth,
    eps,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BEST: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """weight @ x for up to ROWS rows; the rest of a layer's arithmetic at its edges.

    NORM: x is divided by its root mean square. The division commutes with the product, so it
        happens at the end, and the sum of squares is gathered on the way.
    GATED: weight rows alternate gate, up; what leaves is silu(gate) * up.
    RESIDUAL: `residual` is added. BEST: the highest value of each program's columns leaves too.
    """
    program = tl.program_id(0)
    n = program * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK_K)
    weight_rows = weight_ptr + n.to(tl.int64) * depth
    if PREFETCH > 0:
        _prefetch(weight_rows, tl.full((BLOCK_N,), PREFETCH, tl.int32))
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    total = tl.zeros((BLOCK_N, ROWS), tl.float32)
    squares = tl.zeros((BLOCK_K, ROWS), tl.float32)
    for start in tl.range(0, depth, BLOCK_K, num_stages=STAGES):
        weights = tl.load(weight_rows[:, None] + (start + k)[None, :])
        x = tl.load(
            x_ptr + row[None, :] * depth + (start + k)[:, None], row[None, :] < rows, other=0.0
        )
        if NORM:
            wide = x.to(tl.float32)
            squares += wide * wide
            gain = tl.load(norm_ptr + start + k).to(tl.float32)
            x = (wide * gain[:, None]).to(x.dtype)
        total = tl.dot(weights, x, total)
    if NORM:
        mean = tl.sum(squares, axis=0) / depth
        total *= tl.rsqrt(mean + eps)[None, :]
    result = total.to(out_ptr.dtype.element_ty)
    if GATED:
        pairs = tl.reshape(result, (BLOCK_N // 2, 2, ROWS))
        gate, up = tl.split(tl.permute(pairs, (0, 2, 1)))
        wide = gate.to(tl.float32)
        result = (wide * tl.sigmoid(wide)).to(gate.dtype) * up
        n = program * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        columns = columns // 2
    places = row[None, :] * columns + n[:, None]
    if RESIDUAL:
        result += tl.load(residual_ptr + places, row[None, :] < rows, other=0.0)
    tl.store(out_ptr + places, result, row[None, :] < rows)
    if BEST:
        value, index = tl.max(
            result.to(tl.float32), axis=0, return_indices=True, return_indices_tie_break_left=True
        )
        tl.store(best_value_ptr + program * ROWS + row, value)
        tl.store(best_index_ptr + program * ROWS + row, index + program * BLOCK_N)


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
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    program = tl.arange(0, BLOCK)
    places = program * ROWS + row
    value = tl.load(best_value_ptr + places, program < programs, other=float("-inf"))
    _, first = tl.max(value, axis=0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(token_ptr + row, tl.load(best_index_ptr + first * ROWS + row).to(tl.int64))


@triton.jit
def embed_rows(token_ptr, table_ptr, out_ptr, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One row of the embedding per program."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    token = tl.load(token_ptr + row)
    column = tl.arange(0, BLOCK)
    values = tl.load(table_ptr + token * width + column, column < width)
    tl.store(out_ptr + row * width + column, values, column < width)


@triton.jit
def _turn(first, second, cosine, sine):
    """The first half of a rotated head, rounded after every product as the reference is."""
    dtype = first.dtype
    straight = (first.to(tl.float32) * cosine.to(tl.float32)).to(dtype)
    crossed = (second.to(tl.float32) * sine.to(tl.float32)).to(dtype)
    return straight, crossed


@triton.jit
def attend_cache(
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
    scale,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """One head: rotate, put the new keys and values into the cache, attend to all of it.

    Cached positions are taken in blocks that begin at multiples of BLOCK, whoever asks.
    """
    WIDTH: tl.constexpr = 2 * HALF
    head = tl.program_id(0)
    kv_head = head // (heads // kv_heads)
    keys_ptr += kv_head * capacity * WIDTH
    values_ptr += kv_head * capacity * WIDTH
    if PREFETCH:
        chunk = tl.arange(0, 8) * BLOCK
        size = tl.full((8,), BLOCK * WIDTH * 2, tl.int32)
        size = tl.where(chunk + BLOCK <= capacity, size, 0)
        _prefetch(keys_ptr + chunk * WIDTH, size)
        _prefetch(values_ptr + chunk * WIDTH, size)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    start = tl.load(position_ptr)
    row = tl.arange(0, ROWS)
    half = tl.arange(0, HALF)
    column = tl.arange(0, WIDTH)
    valid = row[:, None] < rows
    table = (start + row)[:, None] * WIDTH + half[None, :]
    cos_low = tl.load(cosine_ptr + table, valid, other=0.0)
    sin_low = tl.load(sine_ptr + table, valid, other=0.0)
    cos_high = tl.load(cosine_ptr + table + HALF, valid, other=0.0)
    sin_high = tl.load(sine_ptr + table + HALF, valid, other=0.0)

    source = qkv_ptr + row[:, None] * ((heads + 2 * kv_heads) * WIDTH)
    q = source + head * WIDTH + half[None, :]
    low, high = tl.load(q, valid, other=0.0), tl.load(q + HALF, valid, other=0.0)
    straight, crossed = _turn(low, high, cos_low, sin_low)
    q_low = straight - crossed
    straight, crossed = _turn(high, low, cos_high, sin_high)
    q_high = straight + crossed

    k = source + (heads + kv_head) * WIDTH + half[None, :]
    low, high = tl.load(k, valid, other=0.0), tl.load(k + HALF, valid, other=0.0)
    place = (start + row)[:, None] * WIDTH
    straight, crossed = _turn(low, high, cos_low, sin_low)
    tl.store(keys_ptr + place + half[None, :], straight - crossed, valid)
    straight, crossed = _turn(high, low, cos_high, sin_high)
    tl.store(keys_ptr + place + HALF + half[None, :], straight + crossed, valid)
    v = source + (heads + kv_heads + kv_head) * WIDTH + column[None, :]
    tl.store(values_ptr + place + column[None, :], tl.load(v, valid, other=0.0), valid)
    tl.debug_barrier()  # what this program wrote is read below by other threads of it

    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in tl.range(0, start + rows, BLOCK, num_stages=STAGES):
        key = first + tl.arange(0, BLOCK)
        cached = key[None, :] < start + rows
        key_low = keys_ptr + key[None, :] * WIDTH + half[:, None]
        scores = tl.dot(q_low, tl.load(key_low, cached, other=0.0))
        scores = tl.dot(q_high, tl.load(key_low + HALF, cached, other=0.0), scores) * scale
        scores = tl.where(key[None, :] <= start + row[:, None], scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, axis=1))
        shares = tl.exp(scores - new_highest[:, None])
        shrink = tl.exp(highest - new_highest)
        value = values_ptr + key[:, None] * WIDTH + column[None, :]
        value = tl.load(value, key[:, None] < start + rows, other=0.0)
        total = tl.dot(shares.to(value.dtype), value, total * shrink[:, None])
        weight = weight * shrink + tl.sum(shares, axis=1)
        highest = new_highest
    total = (total / weight[:, None]).to(out_ptr.dtype.element_ty)
    out = out_ptr + row[:, None] * (heads * WIDTH) + head * WIDTH + column[None, :]
    tl.store(out, total, valid)


@triton.jit
def add_rms_norm(
    x_ptr, delta_ptr, norm_ptr, sum_ptr, out_ptr, width, eps, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    """One row of (rows, width): sum = x + delta with ADD, out = sum / rms(sum) * norm."""
    column = tl.arange(0, BLOCK)
    place = tl.program_id(0) * width + column
    inside = column < width
    x = tl.load(x_ptr + place, inside, other=0.0)
    if ADD:
        x += tl.load(delta_ptr + place, inside, other=0.0)
        tl.store(sum_ptr + place, x, inside)
    wide = x.to(tl.float32)
    scaled = (wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)).to(x.dtype)
    tl.store(out_ptr + place, tl.load(norm_ptr + column, inside, other=0.0) * scaled, inside)


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
):
    """One row: sum = x + delta (times scale with SCALE), out = layer norm of sum."""
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
def silu_mul(gate_up_ptr, out_ptr, width, BLOCK: tl.constexpr):
    """silu(gate) * up of one block of one row; (rows, 2 width) alternates gate, up."""
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
):
    """BLOCK_H heads of one position: rotate queries and keys, cache keys and values."""
    WIDTH: tl.constexpr = 2 * HALF
    position = tl.program_id(0)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    half = tl.arange(0, HALF)
    inside = (head < heads + 2 * kv_heads)[:, None]
    source = qkv_ptr + position * (heads + 2 * kv_heads) * WIDTH
    source += head[:, None] * WIDTH + half[None, :]
    low, high = tl.load(source, inside, other=0.0), tl.load(source + HALF, inside, other=0.0)
    table = position * WIDTH + half
    straight, crossed = _turn(
        low, high, tl.load(cosine_ptr + table)[None, :], tl.load(sine_ptr + table)[None, :]
    )
    turned_low = straight - crossed
    straight, crossed = _turn(
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
