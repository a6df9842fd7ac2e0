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

from openvla_ros.engine import low_bit
from openvla_ros.engine.triton_numbers import (
    FP8,
    INT4,
    INT8,
    clamp_to,
    high_to_half,
    int8_to_half,
    low_to_half,
)

#: Positions a decoding pass has room for.
ROWS = 8

TILE_ROWS = tl.constexpr(low_bit.TILE_ROWS)


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
def _stream_split(
    x_ptr,
    weight_ptr,
    scales_ptr,
    rows,
    columns,
    depth,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    KIND: tl.constexpr,
):
    """What `_stream` returns, by SPLITS warps that sum every SPLITS-th step each.

    One warp adds up one product after another and waits for each: a program of few warps is slower
    than memory where a matrix has too few rows to give every multiprocessor several programs.
    """
    split = tl.arange(0, SPLITS)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, ROWS)
    inside = row[None, None, :] < rows
    total = tl.zeros((SPLITS, BLOCK_N, ROWS), tl.float32)
    if KIND == INT4:  # tiles of one group follow each other
        half = tl.arange(0, BLOCK_K // 2)
        groups = depth // BLOCK_K
        tile = (n // TILE_ROWS).to(tl.int64) * groups * TILE_ROWS + n % TILE_ROWS
        tile = weight_ptr + (tile * (BLOCK_K // 2))[None, :, None] + half[None, None, :]
        for start in tl.range(0, groups, SPLITS, num_stages=STAGES):
            group = start + split
            known = (group < groups)[:, None, None]
            pairs = tile + group[:, None, None] * (TILE_ROWS * (BLOCK_K // 2))
            pairs = tl.load(pairs, known, other=0)
            scales = scales_ptr + group[:, None, None] * columns + n[None, :, None]
            scales = tl.load(scales, known, other=0.0)
            place = x_ptr + row[None, None, :] * depth
            place += (group[:, None] * BLOCK_K + half[None, :])[:, :, None]
            first = tl.load(place, known & inside, other=0.0)
            second = tl.load(place + BLOCK_K // 2, known & inside, other=0.0)
            partial = tl.dot(low_to_half(pairs), first)
            partial = tl.dot(high_to_half(pairs), second, partial)
            total += partial * scales
    else:
        k = split[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
        weight_rows = weight_ptr + (n.to(tl.int64) * depth)[None, :, None]
        for start in tl.range(0, depth, SPLITS * BLOCK_K, num_stages=STAGES):
            weights = tl.load(weight_rows + (start + k)[:, None, :])
            place = x_ptr + row[None, None, :] * depth + (start + k)[:, :, None]
            x = tl.load(place, inside, other=0.0)
            if KIND == INT8:
                total = tl.dot(int8_to_half(weights), x, total)
            elif KIND == FP8:
                total = tl.dot(weights.to(tl.float16), x, total)
            else:
                total = tl.dot(weights, x, total)
    return tl.sum(total, axis=0)


@triton.jit
def _product(
    x_ptr,
    weight_ptr,
    scales_ptr,
    rows,
    columns,
    depth,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    KIND: tl.constexpr,
):
    """Product of this program's BLOCK_N rows of the weight and x, by one of two ways."""
    if SPLITS == 1:
        total = _stream(
            x_ptr,
            weight_ptr,
            scales_ptr,
            rows,
            columns,
            depth,
            ROWS,
            BLOCK_N,
            BLOCK_K,
            STAGES,
            KIND,
        )
    else:
        total = _stream_split(
            x_ptr,
            weight_ptr,
            scales_ptr,
            rows,
            columns,
            depth,
            ROWS,
            BLOCK_N,
            BLOCK_K,
            SPLITS,
            STAGES,
            KIND,
        )
    return total


@triton.jit
def _load_squares(squares_ptr, parts, ROWS: tl.constexpr, PARTS: tl.constexpr):
    """Sums of squares as the kernel before left them: (PARTS, ROWS), zeros beyond `parts`."""
    part = tl.arange(0, PARTS)[:, None]
    return tl.load(squares_ptr + part * ROWS + tl.arange(0, ROWS)[None, :], part < parts, other=0.0)


@triton.jit
def _rescale(total, scales_ptr, n, KIND: tl.constexpr):
    """A product times what `_stream` left out: scales of whole rows or matrices."""
    if KIND == INT8:
        total *= tl.load(scales_ptr + n)[:, None]
    elif KIND == FP8:
        total *= tl.load(scales_ptr)
    return total


@triton.jit
def _prepare_norm(result, gain, scaled_ptr):
    """What a norm needs: rows times its gain, as `scaled_ptr` has them, and sums of squares."""
    wide = result.to(tl.float32)
    scaled = clamp_to(wide * gain.to(tl.float32)[:, None], scaled_ptr.dtype.element_ty)
    return scaled, tl.sum(wide * wide, axis=0)


@triton.jit
def _silu_mul(result, BLOCK_N: tl.constexpr, ROWS: tl.constexpr):
    """silu(gate) * up, (BLOCK_N / 2, ROWS), of rows that alternate gate, up."""
    pairs = tl.reshape(result, (BLOCK_N // 2, 2, ROWS))
    gate, up = tl.split(tl.permute(pairs, (0, 2, 1)))
    wide = gate.to(tl.float32)
    return (wide * tl.sigmoid(wide)).to(gate.dtype) * up


@triton.jit
def _store_best(result, value_ptr, index_ptr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr):
    """Store each row's highest value, and where the first of equals is among all columns."""
    program = tl.program_id(0)
    place = program * ROWS + tl.arange(0, ROWS)
    value, index = tl.max(
        result.to(tl.float32), axis=0, return_indices=True, return_indices_tie_break_left=True
    )
    tl.store(value_ptr + place, value)
    tl.store(index_ptr + place, index + program * BLOCK_N)


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
    SPLITS: tl.constexpr,
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
        squares = _load_squares(squares_ptr, parts, ROWS, PARTS)
    total = _product(
        x_ptr,
        weight_ptr,
        scales_ptr,
        rows,
        columns,
        depth,
        ROWS,
        BLOCK_N,
        BLOCK_K,
        SPLITS,
        STAGES,
        KIND,
    )
    inside = row[None, :] < rows
    if PDL:
        gdc_launch_dependents()
    total = _rescale(total, scales_ptr, n, KIND)
    if NORM:
        total *= tl.rsqrt(tl.sum(squares, axis=0) / depth + eps)[None, :]
    result = clamp_to(total, out_ptr.dtype.element_ty)
    if GATED:
        result = _silu_mul(result, BLOCK_N, ROWS)
        n, columns = program * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2), columns // 2
    places = row[None, :] * columns + n[:, None]
    if RESIDUAL:
        result += tl.load(residual_ptr + places, inside, other=0.0)
        scaled, squared = _prepare_norm(result, tl.load(gain_ptr + n), scaled_ptr)
        tl.store(scaled_ptr + places, scaled, inside)
        tl.store(value_ptr + program * ROWS + row, squared)
    tl.store(out_ptr + places, result, inside)
    if BEST:
        value, index = tl.max(
            result.to(tl.float32), axis=0, return_indices=True
        )  # lowest of equals
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
