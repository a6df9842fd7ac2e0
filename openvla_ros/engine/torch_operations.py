"""The engine's arithmetic in plain torch: for CPUs, and for GPUs without Triton.

`triton_operations` has the same functions. M is the number of rows (positions), D the width.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / rms(x) * weight, (M, D), rounded where the Hugging Face module rounds."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x + delta, and that normalised."""
    x = x + delta
    return x, rms_norm(x, weight, eps)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, (M, I), of alternating columns (M, 2 I)."""
    gate, up = gate_up.unflatten(-1, (-1, 2)).unbind(-1)
    return F.silu(gate) * up


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Return (M, heads, d) rotated by the tables' rows (M, d)."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines[:, None] + torch.cat([-second, first], dim=-1) * sines[:, None]


def store_prompt(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
) -> torch.Tensor:
    """Return rotated queries (M, H, d) of positions 0 .. M - 1, and cache their keys and values.

    Args:
        qkv: (M, (H + 2 KV) d).
        keys: (KV, capacity, d), written.
        values: (KV, capacity, d), written.
        cosines: (positions, d).
        sines: (positions, d).
    """
    rows, (kv_heads, _, head_dim) = qkv.shape[0], keys.shape
    heads = qkv.view(rows, -1, head_dim)
    queries, new_keys, new_values = heads.split(
        [heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1
    )
    cosines, sines = cosines[:rows], sines[:rows]
    keys[:, :rows] = rotate(new_keys, cosines, sines).transpose(0, 1)
    values[:, :rows] = new_values.transpose(0, 1)
    return rotate(queries, cosines, sines)


def attend_prompt(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Return causal attention (M, H d) of queries (M, H, d) over the first M cached positions."""
    rows = queries.shape[0]
    attended = F.scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        keys[None, :, :rows],
        values[None, :, :rows],
        is_causal=True,
        enable_gqa=queries.shape[1] != keys.shape[0],
    )
    return attended[0].transpose(0, 1).reshape(rows, -1)


def attend(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    limit: int,
) -> torch.Tensor:
    """Return attention (M, H d) of M new positions, whose keys and values join the cache.

    Args:
        qkv: (M, (H + 2 KV) d).
        keys: (KV, capacity, d), written at the new positions.
        values: (KV, capacity, d), written at the new positions.
        position: (1,) int32, the first new position.
        cosines: (positions, d).
        sines: (positions, d).
        limit: No position is as high as this.
    """
    rows, (kv_heads, _, head_dim) = qkv.shape[0], keys.shape
    heads = qkv.view(rows, -1, head_dim)
    queries, new_keys, new_values = heads.split(
        [heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1
    )
    places = position.long() + torch.arange(rows, device=qkv.device)  # (M,)
    cosines, sines = cosines[places], sines[places]
    keys[:, places] = rotate(new_keys, cosines, sines).transpose(0, 1)
    values[:, places] = new_values.transpose(0, 1)
    seen = torch.arange(limit, device=qkv.device)[None] <= places[:, None]  # (M, limit)
    attended = F.scaled_dot_product_attention(
        rotate(queries, cosines, sines).transpose(0, 1)[None],
        keys[None, :, :limit],
        values[None, :, :limit],
        attn_mask=seen[None, None],
        enable_gqa=queries.shape[1] != kv_heads,
    )
    return attended[0].transpose(0, 1).reshape(rows, -1)


def embed_norm(
    token_ids: torch.Tensor, embedding: torch.Tensor, gain: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows (M, D) of the embedding for (M,) int64 ids, and those normalised.

    The second is whatever `qkv`, `gate_up` and `head` of the same module take.
    """
    x = F.embedding(token_ids, embedding)
    return x, rms_norm(x, gain, eps)


def qkv(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return weight @ normalised rows, (M, (H + 2 KV) d), for few rows."""
    return F.linear(x, weight)


def gate_up(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up of normalised rows, (M, I), for few rows."""
    return silu_mul(F.linear(x, weight))


def output_add_norm(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, gain: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return residual + weight @ x, (M, D), and that normalised, for few rows."""
    return add_rms_norm(residual, F.linear(x, weight), gain, eps)


def down_add_norm(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, gain: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return residual + weight @ x, (M, D), and that normalised, for few rows."""
    return add_rms_norm(residual, F.linear(x, weight), gain, eps)


def head(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (M, V) and the lowest id of the highest one, (M,) int64, for few rows."""
    logits = F.linear(x, weight)
    return logits, logits.argmax(dim=-1)


def add_layer_norm(
    x: torch.Tensor,
    delta: torch.Tensor,
    scale: torch.Tensor | None,
    norm: torch.nn.LayerNorm,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x + scale * delta (LayerScale where there is one), and that normalised."""
    x = x + (delta if scale is None else delta * scale)
    return x, norm(x)
