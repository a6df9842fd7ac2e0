"""The engine's arithmetic in plain torch: for CPUs, and for GPUs without Triton.

`triton_operations` has the same functions. M is the number of rows (positions), D the width. What
goes through a norm is passed on as whatever the next product of the same module takes.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from openvla_ros.engine.low_bit import LowBitMatrix
from openvla_ros.engine.packed import PackedInt4, PackedMatrix

Matrix = torch.Tensor | LowBitMatrix | PackedMatrix | PackedInt4

_FEW_ROWS = 16  # torch's int8 product beats expanding the matrix up to about here


def linear(x: torch.Tensor, weight: Matrix) -> torch.Tensor:
    """Return x (M, K) times weight (N, K) transposed."""
    if isinstance(weight, PackedMatrix | PackedInt4):
        return weight.product(x)
    if not isinstance(weight, LowBitMatrix):
        return F.linear(x, weight)
    if weight.kind == "int8" and x.device.type == "cpu":
        scales = weight.scales.to(x.dtype)
        if len(x) <= _FEW_ROWS:
            return torch._weight_int8pack_mm(x, weight.data, scales)
        # Scaling what comes out costs a fraction of scaling the matrix.
        return F.linear(x, weight.data.to(x.dtype)).mul_(scales)
    return F.linear(x, weight.dequantize())


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / rms(x) * weight, (M, D), rounded where the Hugging Face module rounds."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


def prompt_norm(x: torch.Tensor, gain: torch.Tensor, eps: float, following: Matrix) -> torch.Tensor:
    """Return rows of a prompt (M, D), normalised for the product with `following`."""
    return rms_norm(x, gain, eps)


def embed_norm(
    token_ids: torch.Tensor,
    embedding: torch.Tensor,
    gain: torch.Tensor,
    eps: float,
    following: Matrix,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows (M, D) of the embedding for (M,) int64 ids, and those normalised."""
    x = F.embedding(token_ids, embedding)
    return x, rms_norm(x, gain, eps)


def qkv(x: torch.Tensor, weight: Matrix) -> torch.Tensor:
    """Return queries, keys and values (M, (H + 2 KV) d) of normalised rows."""
    return linear(x, weight)


def gate_up(x: torch.Tensor, weight: Matrix) -> torch.Tensor:
    """Return silu(gate) * up, (M, I), of normalised rows."""
    both = linear(x, weight)
    if isinstance(weight, PackedMatrix):
        gate, up = both.chunk(2, dim=-1)
    else:
        gate, up = both.unflatten(-1, (-1, 2)).unbind(-1)
        gate = gate.contiguous()  # or the exponential takes them one by one
    return F.silu(gate) * up


def output_add_norm(
    x: torch.Tensor,
    weight: Matrix,
    residual: torch.Tensor,
    gain: torch.Tensor,
    eps: float,
    following: Matrix,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return residual + weight @ x, (M, D), and that normalised for the product `following`."""
    x = residual + linear(x, weight)
    return x, rms_norm(x, gain, eps)


def down_add_norm(
    x: torch.Tensor,
    weight: Matrix,
    residual: torch.Tensor,
    gain: torch.Tensor,
    eps: float,
    following: Matrix,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return residual + weight @ x, (M, D), and that normalised for the product `following`."""
    return output_add_norm(x, weight, residual, gain, eps, following)


def head(x: torch.Tensor, weight: Matrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (M, V) and the lowest id of the highest one, (M,) int64."""
    logits = linear(x, weight)
    return logits, logits.argmax(dim=-1)


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
    places = torch.arange(len(qkv), device=qkv.device)
    return _store(qkv, keys, values, places, cosines, sines)


def _store(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
) -> torch.Tensor:
    kv_heads, _, head_dim = keys.shape
    parts = qkv.view(len(qkv), -1, head_dim)
    queries, new_keys, new_values = parts.split(
        [parts.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1
    )
    cosines, sines = cosines[places], sines[places]
    keys[:, places] = rotate(new_keys, cosines, sines).transpose(0, 1)
    values[:, places] = new_values.transpose(0, 1)
    return rotate(queries, cosines, sines)


def attend_prompt(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return causal attention (M, H d) of queries (M, H, d) over the first M cached positions."""
    rows = len(queries)
    attended = F.scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        keys[None, :, :rows],
        values[None, :, :rows],
        is_causal=True,
        enable_gqa=queries.shape[1] != len(keys),
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
    following: Matrix,
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
        following: The matrix that takes the result.
    """
    places = position.long() + torch.arange(len(qkv), device=qkv.device)  # (M,)
    queries = _store(qkv, keys, values, places, cosines, sines)
    seen = torch.arange(limit, device=qkv.device)[None] <= places[:, None]  # (M, limit)
    attended = F.scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        keys[None, :, :limit],
        values[None, :, :limit],
        attn_mask=seen[None, None],
        enable_gqa=queries.shape[1] != len(keys),
    )
    return attended[0].transpose(0, 1).reshape(len(qkv), -1)


def add_layer_norm(
    x: torch.Tensor,
    delta: torch.Tensor,
    scale: torch.Tensor | None,
    norm: torch.nn.LayerNorm,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x + scale * delta (LayerScale where there is one), and that normalised."""
    x = x + (delta if scale is None else delta * scale)
    return x, norm(x)
