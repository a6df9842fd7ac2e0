"""The engine's arithmetic on an NVIDIA GPU for the many rows of a prompt: cuBLAS and kernels."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
from torch.nn import functional as F

from openvla_ros.engine import triton_prompt_kernels as kernels
from openvla_ros.engine.low_bit import GROUP, TILE_ROWS, LowBitMatrix
from openvla_ros.engine.triton_launch import KINDS, Matrix, launch_options, takes_fp8


@dataclass(frozen=True)
class Scaled:
    """Rows in fp8 with one scale each: values (M, K) times scales (M,)."""

    values: torch.Tensor
    scales: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)


def product(x: torch.Tensor | Scaled, weight: Matrix) -> torch.Tensor:
    """Return the product of many rows; those in fp8 still lack their own scales."""
    values = x.values if isinstance(x, Scaled) else x
    if not isinstance(weight, LowBitMatrix):
        return F.linear(values, weight)
    if not takes_fp8(weight):
        return F.linear(values, _expand(weight, weight.dtype))
    data = weight.data if weight.kind == "fp8" else _expand(weight, torch.float8_e4m3fn)
    return torch._scaled_mm(
        values,
        data.t(),
        _one(data.device),
        weight.fp8_unit,
        out_dtype=weight.dtype,
        use_fast_accum=True,
    )


@functools.cache
def _one(device: torch.device) -> torch.Tensor:
    return torch.ones((), dtype=torch.float32, device=device)


def _expand(weight: LowBitMatrix, dtype: torch.dtype) -> torch.Tensor:
    """Return an int8 or int4 matrix as 16-bit numbers, or as e4m3 times `fp8_unit`."""
    columns, depth = weight.shape
    out = torch.empty(columns, depth, dtype=dtype, device=weight.data.device)
    block_n, block_k = TILE_ROWS, GROUP
    while weight.kind == "int8" and depth % block_k:
        block_k //= 2
    while weight.kind == "int8" and columns % block_n:
        block_n //= 2
    kernels.expand[(columns // block_n, depth // block_k)](
        weight.data,
        weight.scales,
        weight.fp8_unit if dtype == torch.float8_e4m3fn else weight.scales,
        out,
        columns,
        depth,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        KIND=KINDS[weight.kind],
        num_warps=4,
    )
    return out


def scale_rows(x: torch.Tensor, *, gated: bool) -> Scaled:
    """Return rows (M, K), or silu(gate) * up of alternating ones (M, 2 K), in fp8."""
    rows, width = x.shape[0], x.shape[1] // 2 if gated else x.shape[1]
    out = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    kernels.scale_rows[(rows,)](
        x,
        out,
        scales,
        width,
        GATED=gated,
        BLOCK=triton.next_power_of_2(width),
        num_warps=8,
        **launch_options(),
    )
    return Scaled(out, scales)


def prompt_norm(x: torch.Tensor, gain: torch.Tensor, eps: float, following: Matrix) -> torch.Tensor:
    """Return rows of a prompt (M, D), normalised for the product with `following`."""
    return prompt_add_norm(x, None, None, gain, eps, following)[1]


def prompt_add_norm(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    scales: torch.Tensor | None,
    gain: torch.Tensor,
    eps: float,
    following: Matrix,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x + delta (times scales, (M,)), and that normalised for the product `following`."""
    rows, width = x.shape
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn if takes_fp8(following) else x.dtype)
    total = x if delta is None else torch.empty_like(x)
    kernels.add_rms_norm[(rows,)](
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
        **launch_options(),
    )
    return total, out


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, (M, I), of alternating columns (M, 2 I)."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    grid = (rows, triton.cdiv(width, 1024))
    kernels.silu_mul[grid](gate_up, out, width, BLOCK=1024, num_warps=4, **launch_options())
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
        **launch_options(),
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
        **launch_options(),
    )
    return total, out
