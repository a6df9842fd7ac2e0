"""The engine's arithmetic on an NVIDIA GPU: cuBLAS for many rows, own kernels for the rest.

The functions are those of `torch_operations`, which says what they return.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton

from openvla_ros.engine import triton_kernels as kernels
from openvla_ros.engine.low_bit import LowBitMatrix
from openvla_ros.engine.torch_operations import Matrix, attend_prompt
from openvla_ros.engine.triton_kernels import ROWS
from openvla_ros.engine.triton_launch import KINDS, launch_options, tile_of
from openvla_ros.engine.triton_prompt_operations import (
    Scaled,
    add_layer_norm,
    is_fp8,
    product,
    prompt_add_norm,
    prompt_norm,
    scale_rows,
    silu_mul,
    store_prompt,
)

__all__ = ["add_layer_norm", "attend_prompt", "prompt_norm", "store_prompt"]

_HALF_MAX = 65504.0
_BLOCK = 128  # cached positions per program


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


def why_unsupported(width: int, head_dim: int) -> str | None:
    """Return why these kernels cannot run a language model of such a shape, or None."""
    if head_dim not in (32, 64, 128):
        return f"heads are {head_dim} wide, not 32, 64 or 128"
    if width % 16:
        return f"its width {width} is not a multiple of 16"
    return None


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
    source = x.scaled if isinstance(x, Normed) else x
    low = weight if isinstance(weight, LowBitMatrix) else None
    if low and source.dtype != torch.float16:  # the last rows of a prompt
        source = source.float().clamp(-_HALF_MAX, _HALF_MAX).half()
    rows, (columns, depth) = len(source), weight.shape
    tile = tile_of(name, weight)
    programs = columns // tile.block_n
    dtype = low.dtype if low else weight.dtype
    shape = (rows, columns // 2 if gated else columns)
    out = source.new_empty(shape, dtype=_activation_dtype(weight) if gated else dtype)
    scaled = out if following is None else out.new_empty(shape, dtype=_activation_dtype(following))
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
        KIND=KINDS[low.kind] if low else 0,
        NORM=normed is not None,
        GATED=gated,
        RESIDUAL=residual is not None,
        BEST=best,
        num_warps=tile.warps,
        **launch_options(),
    )
    return out, scaled, value, index


def _activation_dtype(following: Matrix) -> torch.dtype:
    """Return the dtype in which few rows enter a product: low-bit weights meet them in float16."""
    return torch.float16 if isinstance(following, LowBitMatrix) else following.dtype


def _scratch(programs: int, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(programs, ROWS, dtype=dtype, device=like.device)


def qkv(x: torch.Tensor | Normed, weight: Matrix) -> torch.Tensor:
    """Return queries, keys and values (M, (H + 2 KV) d) of normalised rows."""
    return _skinny("qkv", x, weight)[0] if isinstance(x, Normed) else product(x, weight)


def gate_up(x: torch.Tensor | Normed, weight: Matrix) -> torch.Tensor | Scaled:
    """Return silu(gate) * up, (M, I), of normalised rows."""
    if isinstance(x, Normed):
        return _skinny("gate_up", x, weight, gated=True)[0]
    both = product(x, weight)
    return scale_rows(both, gated=True) if is_fp8(weight) else silu_mul(both)


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
    if not isinstance(x, Scaled) and len(x) <= ROWS:
        out, scaled, squares, _ = _skinny(
            name, x, weight, residual=residual, gain=gain, following=following
        )
        return out, Normed(scaled, squares, eps)
    if is_fp8(weight) and not isinstance(x, Scaled):
        x = scale_rows(x, gated=False)
    scales = x.scales if isinstance(x, Scaled) else None
    return prompt_add_norm(residual, product(x, weight), scales, gain, eps, following)


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
        **launch_options(),
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
        **launch_options(),
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
        **launch_options(),
    )
    return out


@functools.cache
def _counters(heads: int, device: torch.device) -> torch.Tensor:
    """Return zeros (heads,) int32 that every launch leaves as zeros."""
    return torch.zeros(heads, dtype=torch.int32, device=device)
