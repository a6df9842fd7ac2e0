"""Matrices in 8 or 4 bits: how they are rounded, stored and read back. No kernel here.

int8: one scale per row, round to nearest. fp8: e4m3 with one scale per matrix; the format's own
exponent serves small rows. int4: 16 levels with a scale per row and 128 columns, chosen among
several for the least squared error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

GROUP = 128  # columns that share an int4 scale
TILE_ROWS = 32  # rows of an int4 tile: what one GPU program reads
KINDS = ("int8", "fp8", "int4")

_FP8_MAX = 448.0
#: Shares of the range tried for an int4 scale: clipping the largest values helps all the others.
_INT4_SHARES = tuple(0.60 + 0.04 * i for i in range(11))
#: Rows rounded at a time: the search needs float32 copies. On a CPU they fit its caches, and memory
#: that the process has already: 2048 rows of 4096 take 15 times as long there.
_CHUNK_ROWS = {"cpu": 128, "cuda": 2048}


@dataclass(frozen=True)
class LowBitMatrix:
    """A weight matrix (N, K) in few bits.

    Attributes:
        kind: One of `KINDS`.
        data: int8 (N, K); float8_e4m3fn (N, K); or uint8 (N / 32, K / 128, 32, 64), where byte j of
            a row holds column j in its low and column 64 + j in its high half, both plus 8.
        scales: float32. int8 (N,), fp8 (), int4 (K / 128, N).
        shape: (N, K).
        dtype: What it was, and what products with it come out as.
    """

    kind: str
    data: torch.Tensor
    scales: torch.Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.data.nbytes + self.scales.nbytes

    @cached_property
    def fp8_unit(self) -> torch.Tensor:
        """What the matrix is divided by as e4m3, float32 (); its own scale where it is fp8."""
        return self.scales if self.kind == "fp8" else self.scales.amax() * (8 / _FP8_MAX)

    def dequantize(self) -> torch.Tensor:
        """Return the matrix (N, K) as its bits say, in `dtype`."""
        if self.kind == "int8":
            return (self.data.float() * self.scales[:, None]).to(self.dtype)
        if self.kind == "fp8":
            return (self.data.float() * self.scales).to(self.dtype)
        return (_unpack(self.data).float() * self.scales.t()[:, :, None]).flatten(1).to(self.dtype)


def why_not(kind: str, shape: tuple[int, ...]) -> str | None:
    """Return why a matrix of this shape cannot be stored so, or None."""
    rows, columns = shape
    if kind == "int4" and (columns % GROUP or rows % TILE_ROWS):
        return f"int4 needs multiples of {TILE_ROWS} x {GROUP}, the matrix is {rows} x {columns}"
    return None


def quantize(weight: torch.Tensor, kind: str) -> LowBitMatrix:
    """Return a matrix (N, K) in few bits.

    Args:
        weight: (N, K).
        kind: One of `KINDS`; `why_not` says whether the shape fits.
    """
    assert why_not(kind, tuple(weight.shape)) is None
    chunk_rows = _CHUNK_ROWS[weight.device.type]
    data, scales = _empty(weight, kind)
    if kind == "fp8":
        widest = torch.maximum(weight.amax(), -weight.amin()).float()
        scales.copy_((widest / _FP8_MAX).clamp_min(torch.finfo(torch.float32).tiny))
        for part, rounded in zip(weight.split(chunk_rows), data.split(chunk_rows), strict=True):
            rounded.copy_(_to_fp8(part / scales))
        return LowBitMatrix(kind, data, scales, tuple(weight.shape), weight.dtype)
    rounding, tile_rows = (_round_int8, 1) if kind == "int8" else (_round_int4, TILE_ROWS)
    for part, rounded, scale in zip(
        weight.split(chunk_rows),
        data.split(chunk_rows // tile_rows),
        scales.split(chunk_rows),
        strict=True,
    ):
        for place, values in zip((rounded, scale), rounding(part.float()), strict=True):
            place.copy_(values)
    if kind == "int4":
        scales = scales.t().contiguous()
    return LowBitMatrix(kind, data, scales, tuple(weight.shape), weight.dtype)


def _empty(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return places for data and scales, (N, groups) for int4: collected pieces would be a copy."""
    rows, columns = weight.shape
    groups, tiles = columns // GROUP, rows // TILE_ROWS
    scales: dict[str, tuple[int, ...]] = {"fp8": (), "int8": (rows,), "int4": (rows, groups)}
    data = (tiles, groups, TILE_ROWS, GROUP // 2) if kind == "int4" else (rows, columns)
    dtype = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "int4": torch.uint8}[kind]
    return (
        weight.new_empty(data, dtype=dtype),
        weight.new_empty(scales[kind], dtype=torch.float32),
    )


def _to_fp8(values: torch.Tensor) -> torch.Tensor:
    return values.float().clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)


def _round_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (N, K) int8 and (N,) scales."""
    scales = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (weight / scales[:, None]).round().to(torch.int8), scales


def _round_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return packed levels (N / 32, groups, 32, 64), and (N, groups) scales of least squared error.

    Packed here, so that no whole matrix of unpacked levels is ever in memory.
    """
    grouped = weight.unflatten(1, (-1, GROUP))
    widest = grouped.abs().amax(dim=2).clamp_min(torch.finfo(torch.float32).tiny)
    best_error = torch.full_like(widest, math.inf)
    best = widest / 7
    for share in _INT4_SHARES:
        scales = share * widest / 7
        levels = (grouped / scales[:, :, None]).round().clamp(-8, 7)
        error = (levels * scales[:, :, None] - grouped).square().sum(dim=2)
        best = torch.where(error < best_error, scales, best)
        best_error = torch.minimum(error, best_error)
    return _pack((grouped / best[:, :, None]).round().clamp(-8, 7).to(torch.int8)), best


def _pack(levels: torch.Tensor) -> torch.Tensor:
    """Return (N, groups, 128) in -8..7 as (N / 32, groups, 32, 64) bytes."""
    low, high = (levels + 8).to(torch.uint8).chunk(2, dim=2)
    tiles = (low | (high << 4)).unflatten(0, (-1, TILE_ROWS))  # (N / 32, 32, groups, 64)
    return tiles.transpose(1, 2).contiguous()


def _unpack(data: torch.Tensor) -> torch.Tensor:
    """Return (N, groups, 128) int8 in -8..7."""
    rows = data.transpose(1, 2).flatten(0, 1)  # (N, groups, 64)
    return torch.cat([rows & 15, rows >> 4], dim=2).to(torch.int8) - 8
