"""The engine's arithmetic on an NVIDIA GPU: cuBLAS for many rows, own kernels for the rest.

The functions are those of `torch_operations`, which says what they return.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch.nn import functional as F

from openvla_ros.engine import triton_kernels as kernels
from openvla_ros.engine import triton_prompt_kernels as prompt_kernels
from openvla_ros.engine.low_bit import GROUP, TILE_ROWS, LowBitMatrix
from openvla_ros.engine.torch_operations import Matrix, attend_prompt
from openvla_ros.engine.triton_kernels import ROWS

__all__ = ["attend_prompt"]

_HAS_PDL = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
_HALF_MAX = 65504.0
_BLOCK = 128  # cached positions per program


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


@dataclass(frozen=True)
class Scaled:
    """Rows in fp8 with one scale each: values (M, K) times scales (M,)."""

    values: torch.Tensor
    scales: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)


#: Number formats of weights as the kernels know them.
_KINDS = {"int8": 1, "fp8": 2, "int4": 3}
#: Measured on an H200; see docs/benchmarks/engine_h200.md.
TILES = {
    "qkv": Tile(64, 128, 4, 2),
    "gate_up": Tile(64, 128, 3, 2),
    "output": Tile(16, 1024, 3, 2),
    "down": Tile(16, 256, 6, 1),
    "head": Tile(32, 256, 4, 2),
}
BYTE_TILES = {
    "qkv": Tile(64, 256, 4, 2),
    "gate_up": Tile(64, 256, 3, 2),
    "output": Tile(16, 512, 5, 1),
    "down": Tile(16, 256, 8, 1),
}
NIBBLE_TILE = Tile(TILE_ROWS, GROUP, 8, 2)


def why_unsupported(width: int, head_dim: int) -> str | None:
    """Return why these kernels cannot run a language model of such a shape, or None."""
    if head_dim not in (32, 64, 128):
        return f"heads are {head_dim} wide, not 32, 64 or 128"
    if width % 16:
        return f"its width {width} is not a multiple of 16"
    return None


def _launch_options() -> dict[str, Any]:
    return {"PDL": _HAS_PDL, "launch_pdl": True} if _HAS_PDL else {"PDL": False}


def _tile(name: str, weight: Matrix) -> Tile:
    """Return the tile of a product, made smaller until it divides the matrix."""
    if isinstance(weight, LowBitMatrix):
        if weight.kind == "int4":
            return NIBBLE_TILE
        tile = BYTE_TILES[name]
    else:
        tile = TILES[name]
    columns, depth = weight.shape
    block_n, block_k = tile.block_n, tile.block_k
    while depth % block_k:
        block_k //= 2
    while columns % block_n:
        block_n //= 2
    return replace(tile, block_n=block_n, block_k=block_k)


def _skinny(
    name: str,
    x: torch.Tensor | Normed,
    weight: Matrix,
    *,
    gated: bool = False,
    residual: torch.Tensor | None = None,
    gain: torch.Tensor | None = None,
    best: bool = False,
    following: Matrix | None = None,
) -> tuple[torch.Tensor, ...]:
    """Return the product, and with `residual` or `best` what leaves beside it."""
    normed = x if isinstance(x, Normed) else None
    source = normed.scaled if normed else x
    low = weight if isinstance(weight, LowBitMatrix) else None
    if low and source.dtype != torch.float16:  # the last rows of a prompt
        source = source.float().clamp(-_HALF_MAX, _HALF_MAX).half()
    rows, (columns, depth) = len(source), weight.shape
    tile = _tile(name, weight)
    programs = columns // tile.block_n
    dtype = low.dtype if low else weight.dtype
    shape = (rows, columns // 2 if gated else columns)
    out = source.new_empty(shape, dtype=_activation_dtype(weight) if gated else dtype)
    scaled = out if residual is None else out.new_empty(shape, dtype=_activation_dtype(following))
    value = out if residual is None and not best else _scratch(programs, torch.float32, out)
    index = _scratch(programs, torch.int32, out) if best else out
    kernels.skinny_linear[(programs,)](
        source,
        low.data if low else weight,
        low.scales if low else source,
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
        KIND=_KINDS[low.kind] if low else 0,
        NORM=normed is not None,
        GATED=gated,
        RESIDUAL=residual is not None,
        BEST=best,
        num_warps=tile.warps,
        **_launch_options(),
    )
    return out, scaled, value, index


def _activation_dtype(following: Matrix) -> torch.dtype:
    """Return the dtype in which few rows enter a product: low-bit weights meet them in float16."""
    return torch.float16 if isinstance(following, LowBitMatrix) else following.dtype


def _scratch(programs: int, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(programs, ROWS, dtype=dtype, device=like.device)


def _product(x: torch.Tensor | Scaled, weight: Matrix) -> torch.Tensor:
    """Return the product of many rows; those in fp8 still lack their own scales."""
    if not isinstance(weight, LowBitMatrix):
        return F.linear(x, weight)
    if weight.kind != "fp8":
        return F.linear(x, _expand(weight))
    return torch._scaled_mm(
        x.values if isinstance(x, Scaled) else x,
        weight.data.t(),
        _one(weight.data.device),
        weight.scales,
        out_dtype=weight.dtype,
        use_fast_accum=True,
    )


@functools.cache
def _one(device: torch.device) -> torch.Tensor:
    return torch.ones((), dtype=torch.float32, device=device)


def _expand(weight: LowBitMatrix) -> torch.Tensor:
    """Return an int8 or int4 matrix as 16-bit numbers, for one product."""
    columns, depth = weight.shape
    out = torch.empty(columns, depth, dtype=weight.dtype, device=weight.data.device)
    block_n, block_k = TILE_ROWS, GROUP
    while weight.kind == "int8" and depth % block_k:
        block_k //= 2
    while weight.kind == "int8" and columns % block_n:
        block_n //= 2
    prompt_kernels.expand[(columns // block_n, depth // block_k)](
        weight.data,
        weight.scales,
        out,
        columns,
        depth,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        KIND=_KINDS[weight.kind],
        num_warps=4,
    )
    return out


def _is_fp8(weight: Matrix) -> bool:
    return isinstance(weight, LowBitMatrix) and weight.kind == "fp8"


def _scale_rows(x: torch.Tensor, *, gated: bool) -> Scaled:
    rows, width = x.shape[0], x.shape[1] // 2 if gated else x.shape[1]
    out = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    prompt_kernels.scale_rows[(rows,)](
        x,
        out,
        scales,
        width,
        GATED=gated,
        BLOCK=triton.next_power_of_2(width),
        num_warps=8,
        **_launch_options(),
    )
    return Scaled(out, scales)


def prompt_norm(x: torch.Tensor, gain: torch.Tensor, eps: float, following: Matrix) -> torch.Tensor:
    """Return rows of a prompt (M, D), normalised for the product with `following`."""
    return _prompt_add_norm(x, None, None, gain, eps, following)[1]


def qkv(x: torch.Tensor | Normed, weight: Matrix) -> torch.Tensor:
    """Return queries, keys and values (M, (H + 2 KV) d) of normalised rows."""
    return _skinny("qkv", x, weight)[0] if isinstance(x, Normed) else _product(x, weight)


def gate_up(x: torch.Tensor | Normed, weight: Matrix) -> torch.Tensor | Scaled:
    """Return silu(gate) * up, (M, I), of normalised rows."""
    if isinstance(x, Normed):
        return _skinny("gate_up", x, weight, gated=True)[0]
    product = _product(x, weight)
    return _scale_rows(product, gated=True) if _is_fp8(weight) else _silu_mul(product)


def output_add_norm(
    x: torch.Tensor,
    weight: Matrix,
    residual: torch.Tensor,
    gain: torch.Tensor,
    eps: float,
    following: Matrix,
) -> tuple[torch.Tensor, torch.Tensor | Normed]:
    """Return residual + weight @ x, (M, D), and that normalised for the product `following`."""
    return _add_norm("output", x, weight, residual, gain, eps, following)


def down_add_norm(
    x: torch.Tensor | Scaled,
    weight: Matrix,
    residual: torch.Tensor,
    gain: torch.Tensor,
    eps: float,
    following: Matrix,
) -> tuple[torch.Tensor, torch.Tensor | Normed]:
    """Return residual + weight @ x, (M, D), and that normalised for the product `following`."""
    return _add_norm("down", x, weight, residual, gain, eps, following)


def _add_norm(
    name: str,
    x: torch.Tensor | Scaled,
    weight: Matrix,
    residual: torch.Tensor,
    gain: torch.Tensor,
    eps: float,
    following: Matrix,
) -> tuple[torch.Tensor, torch.Tensor | Normed]:
    if len(x) <= ROWS:
        out, scaled, squares, _ = _skinny(
            name, x, weight, residual=residual, gain=gain, following=following
        )
        return out, Normed(scaled, squares, eps)
    if _is_fp8(weight) and not isinstance(x, Scaled):
        x = _scale_rows(x, gated=False)
    scales = x.scales if isinstance(x, Scaled) else None
    return _prompt_add_norm(residual, _product(x, weight), scales, gain, eps, following)


def _prompt_add_norm(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    scales: torch.Tensor | None,
    gain: torch.Tensor,
    eps: float,
    following: Matrix,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, width = x.shape
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn if _is_fp8(following) else x.dtype)
    total = x if delta is None else torch.empty_like(x)
    prompt_kernels.add_rms_norm[(rows,)](
        x,
        x if delta is None else delta,
        x if scales is None else scales,
        gain,
        total,
        out,
        width,
        eps,
        ADD=delta is not None,
        SCALE=scales is not None,
        BLOCK=triton.next_power_of_2(width),
        num_warps=4,
        **_launch_options(),
    )
    return total, out


def head(x: Normed, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (M, V) and the lowest id of the highest one, (M,) int64."""
    logits, _, value, index = _skinny("head", x, weight, best=True)
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
    token_ids: torch.Tensor,
    embedding: torch.Tensor,
    gain: torch.Tensor,
    eps: float,
    following: Matrix,
) -> tuple[torch.Tensor, Normed]:
    """Return rows (M, D) of the embedding for (M,) int64 ids, and those on their way to a norm."""
    width = embedding.shape[1]
    out = embedding.new_empty(len(token_ids), width)
    scaled = torch.empty_like(out, dtype=_activation_dtype(following))
    squares = _scratch(1, torch.float32, out)
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
    following: Matrix,
) -> torch.Tensor:
    """Return attention (M, H d) of M new positions, whose keys and values join the cache."""
    kv_heads, capacity, head_dim = keys.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    blocks = triton.cdiv(limit, _BLOCK)
    out = qkv.new_empty(len(qkv), heads * head_dim, dtype=_activation_dtype(following))
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
        num_warps=4,
        enable_fp_fusion=False,
        **_launch_options(),
    )
    return out


@functools.cache
def _counters(heads: int, device: torch.device) -> torch.Tensor:
    """Return zeros (heads,) int32 that every launch leaves as zeros."""
    return torch.zeros(heads, dtype=torch.int32, device=device)


def _silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, (M, I), of alternating columns (M, 2 I)."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    grid = (rows, triton.cdiv(width, 1024))
    prompt_kernels.silu_mul[grid](gate_up, out, width, BLOCK=1024, num_warps=4, **_launch_options())
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
    prompt_kernels.store_prompt[(len(qkv), triton.cdiv(parts, 16))](
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
    prompt_kernels.add_layer_norm[(rows,)](
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
