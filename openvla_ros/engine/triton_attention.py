"""Attention of few new positions over the cache, on an NVIDIA GPU."""

from __future__ import annotations

import functools
from functools import partial

import torch
import triton

from openvla_ros.engine import triton_attention_kernels as kernels
from openvla_ros.engine import triton_choice
from openvla_ros.engine.triton_kernels import ROWS
from openvla_ros.engine.triton_launch import Matrix, activation_dtype, launch_options

_BLOCK = 128  # cached positions per step, or per program
_SLICES, _STAGES, _WARPS = 4, 3, (4, 8)  # by columns: programs of one head, blocks in flight

_Arguments = tuple[torch.Tensor, ...]  # qkv, keys, values, position, cosines, sines


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
    arguments = (qkv, keys, values, position, cosines, sines)
    dtype = activation_dtype(following)
    kv_heads, _, head_dim = keys.shape
    runs = {"by positions": partial(by_positions, arguments, limit, dtype)}
    for warps in _WARPS:
        runs[f"by columns, {warps} warps"] = partial(by_columns, arguments, limit, dtype, warps)
    key = ("attend", qkv.dtype, qkv.shape[1], kv_heads, head_dim, qkv.get_device())
    return runs[triton_choice.choose(key, runs, qkv.device)]()


def by_positions(arguments: _Arguments, limit: int, dtype: torch.dtype) -> torch.Tensor:
    """Return attention whose every head is cut into blocks of positions, then joined."""
    qkv, keys = arguments[:2]
    kv_heads, capacity, head_dim = keys.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    blocks = triton.cdiv(limit, _BLOCK)
    out = qkv.new_empty(len(qkv), heads * head_dim, dtype=dtype)
    part = torch.empty(heads, blocks, ROWS, head_dim, dtype=torch.float32, device=qkv.device)
    weight = torch.empty(heads, blocks, 2, ROWS, dtype=torch.float32, device=qkv.device)
    kernels.attend_cache[(heads, blocks)](
        *arguments,
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


def by_columns(arguments: _Arguments, limit: int, dtype: torch.dtype, warps: int) -> torch.Tensor:
    """Return attention whose every head is cut into columns of what it gives out."""
    qkv, keys = arguments[:2]
    kv_heads, capacity, head_dim = keys.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    out = qkv.new_empty(len(qkv), heads * head_dim, dtype=dtype)
    slice_width = max(head_dim // _SLICES, 16)
    kernels.attend_slices[(heads, head_dim // slice_width)](
        *arguments,
        out,
        len(qkv),
        heads,
        kv_heads,
        capacity,
        triton.cdiv(limit, _BLOCK),
        head_dim**-0.5,
        ROWS=ROWS,
        HALF=head_dim // 2,
        BLOCK=_BLOCK,
        SLICE=slice_width,
        STAGES=_STAGES,
        num_warps=warps,
        enable_fp_fusion=False,
        **launch_options(),
    )
    return out
