"""The engine's arithmetic in bfloat16 on a CPU: the functions of `torch_operations`, sooner.

Attention is two oneDNN products and a softmax, rounded where Hugging Face's eager attention rounds:
torch's fused attention takes two to four times as long on a CPU. What is written to the cache is
copied, not indexed.
"""

from __future__ import annotations

import functools
import math

import torch

from openvla_ros.engine.torch_operations import (
    Matrix,
    add_layer_norm,
    down_add_norm,
    embed_norm,
    gate_up,
    head,
    output_add_norm,
    prompt_norm,
    qkv,
    rotate,
)

__all__ = [
    "add_layer_norm",
    "down_add_norm",
    "embed_norm",
    "gate_up",
    "head",
    "output_add_norm",
    "prompt_norm",
    "qkv",
]

_KEPT_MASKS = 64  # a prompt length has one for its prompt, and one for each of its ids


def store_prompt(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
) -> torch.Tensor:
    """Return rotated queries (M, H, d), and cache keys and values: see `torch_operations`."""
    return _store(qkv, keys, values, 0, cosines, sines)


def _store(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    first: int,
    cosines: torch.Tensor,
    sines: torch.Tensor,
) -> torch.Tensor:
    heads, _, head_dim = keys.shape
    end = first + len(qkv)
    parts = qkv.view(len(qkv), 3 * heads, head_dim)
    turned = rotate(parts[:, : 2 * heads], cosines[first:end], sines[first:end])
    keys[:, first:end].copy_(turned[:, heads:].transpose(0, 1))
    values[:, first:end].copy_(parts[:, 2 * heads :].transpose(0, 1))
    return turned[:, :heads]


def attend_prompt(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return causal attention (M, H d) of queries (M, H, d) over the first M cached positions."""
    rows, _, head_dim = queries.shape
    scores = torch.baddbmm(
        _mask(0, rows, rows, queries.dtype).transpose(1, 2),
        queries.transpose(0, 1),
        keys[:, :rows].transpose(1, 2),
        alpha=1 / math.sqrt(head_dim),
    )  # (H, M, M)
    return _mix(scores, values[:, :rows])


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
    """Return attention (M, H d) of M new positions, cached too: see `torch_operations`."""
    first = int(position)
    queries = _store(qkv, keys, values, first, cosines, sines)
    scores = torch.baddbmm(
        _mask(first, len(qkv), limit, qkv.dtype),
        keys[:, :limit],  # on the left: oneDNN would have to arrange them anew on the right
        queries.permute(1, 2, 0),
        alpha=1 / math.sqrt(keys.shape[2]),
    )  # (H, limit, M)
    return _mix(scores.transpose(1, 2), values[:, :limit])


def _mix(scores: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return (M, H d): values (H, N, d) weighted by the softmax of scores (H, M, N)."""
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    return torch.bmm(shares, values).transpose(0, 1).flatten(1)


@functools.lru_cache(_KEPT_MASKS)
def _mask(first: int, rows: int, limit: int, dtype: torch.dtype) -> torch.Tensor:
    """Return (1, limit, M): minus infinity where a key stands behind the query, else 0."""
    behind = torch.arange(limit)[:, None] > torch.arange(first, first + rows)
    return torch.zeros(1, limit, rows, dtype=dtype).masked_fill_(behind, -math.inf)
