"""The engine's arithmetic on an NVIDIA GPU: cuBLAS for many rows, own kernels for the rest.

The functions are those of `torch_operations`, which says what they return.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from openvla_ros.engine import triton_kernels as kernels
from openvla_ros.engine.torch_operations import attend_prompt
from openvla_ros.engine.triton_kernels import ROWS

__all__ = ["attend_prompt"]

#: (BLOCK_N, BLOCK_K, stages, warps) of a skinny product, measured on an H200; see docs/performance.
_TILE = (32, 256, 4, 2)
_NARROW_TILE = (16, 256, 6, 1)
#: Below so many columns wide tiles leave multiprocessors idle.
_NARROW_COLUMNS = 8192
_HAS_PDL = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def why_unsupported(width: int, head_dim: int) -> str | None:
    """Return why these kernels cannot run a language model of such a shape, or None."""
    if head_dim not in (32, 64, 128):
        return f"heads are {head_dim} wide, not 32, 64 or 128"
    if width % 16:
        return f"its width {width} is not a multiple of 16"
    return None


def _launch_options() -> dict[str, Any]:
    return {"PDL": _HAS_PDL, "launch_pdl": True} if _HAS_PDL else {"PDL": False}


def _tile(columns: int, depth: int) -> tuple[int, int, int, int]:
    block_n, block_k, stages, warps = _TILE if columns > _NARROW_COLUMNS else _NARROW_TILE
    while depth % block_k:
        block_k //= 2
    while columns % block_n:
        block_n //= 2
    return block_n, block_k, stages, warps


def _skinny(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: torch.Tensor | None = None,
    best: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    rows, depth = x.shape
    columns = weight.shape[0]
    block_n, block_k, stages, warps = _tile(columns, depth)
    out = x.new_empty(rows, columns // 2 if gated else columns)
    kernels.skinny_linear[(columns // block_n,)](
        x,
        weight,
        x if norm is None else norm,
        x if residual is None else residual,
        out,
        x if best is None else best[0],
        x if best is None else best[1],
        rows,
        columns,
        depth,
        eps,
        ROWS=ROWS,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        STAGES=stages,
        NORM=norm is not None,
        GATED=gated,
        RESIDUAL=residual is not None,
        BEST=best is not None,
        PREFETCH=stages * block_k * weight.element_size() if _HAS_PDL else 0,
        num_warps=warps,
        **_launch_options(),
    )
    return out


def norm_linear(
    x: torch.Tensor, norm: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Return weight @ rms_norm(x), (M, N), for up to `ROWS` rows."""
    return _skinny(x, weight, norm=norm, eps=eps)


def norm_gate_up(
    x: torch.Tensor, norm: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Return silu(gate) * up of rms_norm(x), (M, I), for up to `ROWS` rows."""
    return _skinny(x, weight, norm=norm, eps=eps, gated=True)


def linear_add(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Return residual + weight @ x, (M, D), for up to `ROWS` rows."""
    return _skinny(x, weight, residual=residual)


def norm_head(
    x: torch.Tensor, norm: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (M, V) and the lowest id of the highest one, (M,) int64."""
    columns, depth = weight.shape
    programs = columns // _tile(columns, depth)[0]
    value = torch.empty(programs, ROWS, dtype=torch.float32, device=x.device)
    index = torch.empty(programs, ROWS, dtype=torch.int32, device=x.device)
    logits = _skinny(x, weight, norm=norm, eps=eps, best=(value, index))
    token = torch.empty(len(x), dtype=torch.int64, device=x.device)
    kernels.pick_best[(len(x),)](
        value,
        index,
        token,
        programs,
        ROWS=ROWS,
        BLOCK=triton.next_power_of_2(programs),
        num_warps=4,
        **_launch_options(),
    )
    return logits, token


def embed(token_ids: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    """Return rows (M, D) of the embedding for (M,) int64 ids."""
    width = embedding.shape[1]
    out = embedding.new_empty(len(token_ids), width)
    block = triton.next_power_of_2(width)
    kernels.embed_rows[(len(token_ids),)](
        token_ids, embedding, out, width, BLOCK=block, num_warps=4, **_launch_options()
    )
    return out


def attend(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
) -> torch.Tensor:
    """Return attention (M, H d) of M new positions, whose keys and values join the cache."""
    kv_heads, capacity, head_dim = keys.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    out = qkv.new_empty(len(qkv), heads * head_dim)
    kernels.attend_cache[(heads,)](
        qkv,
        keys,
        values,
        position,
        cosines,
        sines,
        out,
        len(qkv),
        heads,
        kv_heads,
        capacity,
        head_dim**-0.5,
        ROWS=ROWS,
        HALF=head_dim // 2,
        BLOCK=64,
        STAGES=3,
        PREFETCH=_HAS_PDL,
        num_warps=4,
        **_launch_options(),
    )
    return out


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
    )
    return total, out


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, (M, I), of alternating columns (M, 2 I)."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    kernels.silu_mul[(rows, triton.cdiv(width, 1024))](gate_up, out, width, BLOCK=1024, num_warps=4)
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
    )
    return total, out
