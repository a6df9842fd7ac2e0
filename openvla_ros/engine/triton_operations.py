"""The engine's arithmetic on an NVIDIA GPU: cuBLAS for many rows, own kernels for the rest.

The functions are those of `torch_operations`, which says what they return.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton

from openvla_ros.engine import triton_kernels as kernels
from openvla_ros.engine.torch_operations import attend_prompt
from openvla_ros.engine.triton_kernels import ROWS

__all__ = ["attend_prompt"]

_HAS_PDL = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
_BLOCK = 64  # cached positions per program


@dataclass(frozen=True)
class Tile:
    """How a skinny product is cut: weights per step, steps in flight, warps."""

    block_n: int
    block_k: int
    stages: int
    warps: int


@dataclass(frozen=True)
class Normed:
    """Rows on their way through a norm: multiplied by its gain, not yet divided.

    Attributes:
        scaled: (M, D) rows times gain.
        squares: (parts, ROWS) float32, whose sum over parts is each row's sum of squares.
        eps: Of the norm.
    """

    scaled: torch.Tensor
    squares: torch.Tensor
    eps: float


#: Measured on an H200; see docs/benchmarks/engine_h200.md.
TILES = {
    "qkv": Tile(64, 128, 4, 2),
    "gate_up": Tile(64, 128, 3, 2),
    "output": Tile(16, 1024, 3, 2),
    "down": Tile(16, 256, 6, 1),
    "head": Tile(32, 256, 4, 2),
}


def why_unsupported(width: int, head_dim: int) -> str | None:
    """Return why these kernels cannot run a language model of such a shape, or None."""
    if head_dim not in (32, 64, 128):
        return f"heads are {head_dim} wide, not 32, 64 or 128"
    if width % 16:
        return f"its width {width} is not a multiple of 16"
    return None


def _launch_options() -> dict[str, Any]:
    return {"PDL": _HAS_PDL, "launch_pdl": True} if _HAS_PDL else {"PDL": False}


def _fitting(tile: Tile, columns: int, depth: int) -> Tile:
    """Return the tile, made smaller until it divides the matrix."""
    block_n, block_k = tile.block_n, tile.block_k
    while depth % block_k:
        block_k //= 2
    while columns % block_n:
        block_n //= 2
    return replace(tile, block_n=block_n, block_k=block_k)


def _skinny(
    tile: Tile,
    x: torch.Tensor | Normed,
    weight: torch.Tensor,
    *,
    gated: bool = False,
    residual: torch.Tensor | None = None,
    gain: torch.Tensor | None = None,
    best: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Return the product, and with `residual` or `best` what leaves beside it."""
    normed = x if isinstance(x, Normed) else None
    source = normed.scaled if normed else x
    (rows, depth), columns = source.shape, weight.shape[0]
    tile = _fitting(tile, columns, depth)
    programs = columns // tile.block_n
    out = source.new_empty(rows, columns // 2 if gated else columns)
    scaled = out if residual is None else torch.empty_like(out)
    value = out if residual is None and not best else _scratch(programs, torch.float32, out)
    index = _scratch(programs, torch.int32, out) if best else out
    kernels.skinny_linear[(programs,)](
        source,
        weight,
        normed.squares if normed else source,
        source if residual is None else residual,
        source if gain is None else gain,
        out,
        scaled,
        value,
        index,
        rows,
        columns,
        depth,
        len(normed.squares) if normed else 0,
        normed.eps if normed else 0.0,
        ROWS=ROWS,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        STAGES=tile.stages,
        PARTS=triton.next_power_of_2(len(normed.squares)) if normed else 1,
        NORM=normed is not None,
        GATED=gated,
        RESIDUAL=residual is not None,
        BEST=best,
        num_warps=tile.warps,
        **_launch_options(),
    )
    return out, scaled, value, index


def _scratch(programs: int, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(programs, ROWS, dtype=dtype, device=like.device)


def qkv(x: Normed, weight: torch.Tensor) -> torch.Tensor:
    """Return (M, (H + 2 KV) d), for up to `ROWS` rows."""
    return _skinny(TILES["qkv"], x, weight)[0]


def gate_up(x: Normed, weight: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, (M, I), for up to `ROWS` rows."""
    return _skinny(TILES["gate_up"], x, weight, gated=True)[0]


def output_add_norm(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, gain: torch.Tensor, eps: float
) -> tuple[torch.Tensor, Normed]:
    """Return residual + weight @ x, (M, D), and that on its way through a norm."""
    return _add_norm(TILES["output"], x, weight, residual, gain, eps)


def down_add_norm(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, gain: torch.Tensor, eps: float
) -> tuple[torch.Tensor, Normed]:
    """Return residual + weight @ x, (M, D), and that on its way through a norm."""
    return _add_norm(TILES["down"], x, weight, residual, gain, eps)


def _add_norm(
    tile: Tile,
    x: torch.Tensor,
    weight: torch.Tensor,
    residual: torch.Tensor,
    gain: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, Normed]:
    out, scaled, squares, _ = _skinny(tile, x, weight, residual=residual, gain=gain)
    return out, Normed(scaled, squares, eps)


def head(x: Normed, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (M, V) and the lowest id of the highest one, (M,) int64."""
    logits, _, value, index = _skinny(TILES["head"], x, weight, best=True)
    token = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    kernels.pick_best[(len(logits),)](
        value,
        index,
        token,
        len(value),
        ROWS=ROWS,
        BLOCK=triton.next_power_of_2(len(value)),
        num_warps=4,
        **_launch_options(),
    )
    return logits, token


def embed_norm(
    token_ids: torch.Tensor, embedding: torch.Tensor, gain: torch.Tensor, eps: float
) -> tuple[torch.Tensor, Normed]:
    """Return rows (M, D) of the embedding for (M,) int64 ids, and those on their way to a norm."""
    width = embedding.shape[1]
    out = embedding.new_empty(len(token_ids), width)
    scaled, squares = torch.empty_like(out), _scratch(1, torch.float32, out)
    kernels.embed_rows[(len(token_ids),)](
        token_ids,
        embedding,
        gain,
        out,
        scaled,
        squares,
        width,
        BLOCK=triton.next_power_of_2(width),
        num_warps=4,
        **_launch_options(),
    )
    return out, Normed(scaled, squares, eps)


def attend(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    limit: int,
) -> torch.Tensor:
    """Return attention (M, H d) of M new positions, whose keys and values join the cache."""
    kv_heads, capacity, head_dim = keys.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    blocks = triton.cdiv(limit, _BLOCK)
    out = qkv.new_empty(len(qkv), heads * head_dim)
    part = torch.empty(heads, blocks, ROWS, head_dim, dtype=torch.float32, device=qkv.device)
    weight = torch.empty(heads, blocks, 2, ROWS, dtype=torch.float32, device=qkv.device)
    kernels.attend_cache[(heads, blocks)](
        qkv,
        keys,
        values,
        position,
        cosines,
        sines,
        part,
        weight,
        _counters(heads, qkv.device),
        out,
        len(qkv),
        heads,
        kv_heads,
        capacity,
        blocks,
        head_dim**-0.5,
        ROWS=ROWS,
        HALF=head_dim // 2,
        BLOCK=_BLOCK,
        BLOCKS=triton.next_power_of_2(blocks),
        num_warps=4,
        enable_fp_fusion=False,
        **_launch_options(),
    )
    return out


@functools.cache
def _counters(heads: int, device: torch.device) -> torch.Tensor:
    """Return zeros (heads,) int32 that every launch leaves as zeros."""
    return torch.zeros(heads, dtype=torch.int32, device=device)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / rms(x) * weight, (M, D)."""
    return _add_rms_norm(x, None, weight, eps)[1]


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x + delta, and that normalised."""
    return _add_rms_norm(x, delta, weight, eps)


def _add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, width = x.shape
    out = torch.empty_like(x)
    total = x if delta is None else torch.empty_like(x)
    kernels.add_rms_norm[(rows,)](
        x,
        x if delta is None else delta,
        weight,
        total,
        out,
        width,
        eps,
        ADD=delta is not None,
        BLOCK=triton.next_power_of_2(width),
        num_warps=4,
        **_launch_options(),
    )
    return total, out


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, (M, I), of alternating columns (M, 2 I)."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    grid = (rows, triton.cdiv(width, 1024))
    kernels.silu_mul[grid](gate_up, out, width, BLOCK=1024, num_warps=4, **_launch_options())
    return out


def store_prompt(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
) -> torch.Tensor:
    """Return rotated queries (M, H, d) of positions 0 .. M - 1; they replace those in `qkv`."""
    kv_heads, capacity, head_dim = keys.shape
    parts = qkv.shape[1] // head_dim
    heads = parts - 2 * kv_heads
    kernels.store_prompt[(len(qkv), triton.cdiv(parts, 16))](
        qkv,
        keys,
        values,
        cosines,
        sines,
        heads,
        kv_heads,
        capacity,
        HALF=head_dim // 2,
        BLOCK_H=16,
        num_warps=4,
        enable_fp_fusion=False,
        **_launch_options(),
    )
    return qkv.view(len(qkv), parts, head_dim)[:, :heads]


def add_layer_norm(
    x: torch.Tensor,
    delta: torch.Tensor,
    scale: torch.Tensor | None,
    norm: torch.nn.LayerNorm,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x + scale * delta (LayerScale where there is one), and that normalised."""
    rows, width = x.shape
    total, out = torch.empty_like(x), torch.empty_like(x)
    kernels.add_layer_norm[(rows,)](
        x,
        delta,
        x if scale is None else scale,
        norm.weight,
        norm.bias,
        total,
        out,
        width,
        norm.eps,
        SCALE=scale is not None,
        BLOCK=triton.next_power_of_2(width),
        num_warps=4,
        **_launch_options(),
    )
    return total, out
