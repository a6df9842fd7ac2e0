"""The engine's arithmetic on an NVIDIA GPU: cuBLAS for many rows, own kernels for the rest.

The functions are those of `torch_operations`, which says what they return.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import triton

from openvla_ros.engine import triton_choice
from openvla_ros.engine import triton_kernels as kernels
from openvla_ros.engine.low_bit import LowBitMatrix
from openvla_ros.engine.torch_operations import attend_prompt
from openvla_ros.engine.triton_attention import attend
from openvla_ros.engine.triton_kernels import ROWS
from openvla_ros.engine.triton_launch import (
    KINDS,
    Matrix,
    Tile,
    activation_dtype,
    launch_options,
    takes_fp8,
    tiles_of,
)
from openvla_ros.engine.triton_prompt_operations import (
    Scaled,
    add_layer_norm,
    product,
    prompt_add_norm,
    prompt_norm,
    scale_rows,
    silu_mul,
    store_prompt,
)

__all__ = ["add_layer_norm", "attend", "attend_prompt", "prompt_norm", "store_prompt"]

_HALF_MAX = 65504.0


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


@dataclass(frozen=True)
class _Skinny:
    """One product of few rows and what happens at its edges.

    Attributes:
        name: Which of a layer's products.
        source: (M, K) rows, or those on their way through a norm.
        weight: (N, K).
        gated: Weight rows alternate gate, up; silu(gate) * up comes out.
        residual: (M, N) to add; what the next norm needs then leaves beside the sum.
        gain: (N,) of that norm.
        best: The highest values leave beside the product.
        following: The matrix that takes the result, after the norm.
    """

    name: str
    source: torch.Tensor | Normed
    weight: Matrix
    gated: bool = False
    residual: torch.Tensor | None = None
    gain: torch.Tensor | None = None
    best: bool = False
    following: Matrix | None = None

    def __call__(self) -> tuple[torch.Tensor, ...]:
        """Return the product, and with `residual` or `best` what leaves beside it."""
        tiles = {str(tile): tile for tile in tiles_of(self.name, self.weight)}
        kind = self.weight.kind if isinstance(self.weight, LowBitMatrix) else self.weight.dtype
        key = (self.name, kind, *self.weight.shape, self._rows.get_device())
        runs = {name: partial(self._first_of, tile) for name, tile in tiles.items()}
        return self.run(tiles[triton_choice.choose(key, runs, self._rows.device)])

    def run(self, tile: Tile) -> tuple[torch.Tensor, ...]:
        """Return what a call does, computed in such tiles."""
        x, weight, residual = self._rows, self.weight, self.residual
        normed = self.source if isinstance(self.source, Normed) else None
        low = weight if isinstance(weight, LowBitMatrix) else None
        if low and x.dtype != torch.float16:  # the last rows of a prompt
            x = x.float().clamp(-_HALF_MAX, _HALF_MAX).half()
        rows, (columns, depth) = len(x), weight.shape
        programs = columns // tile.block_n
        shape = (rows, columns // 2 if self.gated else columns)
        out = x.new_empty(shape, dtype=activation_dtype(weight) if self.gated else weight.dtype)
        scaled = out
        if self.following is not None:
            scaled = out.new_empty(shape, dtype=activation_dtype(self.following))
        has_value = residual is not None or self.best
        value = _scratch(programs, torch.float32, out) if has_value else out
        index = _scratch(programs, torch.int32, out) if self.best else out
        kernels.skinny_linear[(programs,)](
            x,
            low.data if low else weight,
            low.scales if low else x,
            normed.squares if normed else x,
            x if residual is None else residual,
            x if self.gain is None else self.gain,
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
            SPLITS=tile.splits,
            STAGES=tile.stages,
            PARTS=triton.next_power_of_2(len(normed.squares)) if normed else 1,
            KIND=KINDS[low.kind] if low else 0,
            NORM=normed is not None,
            GATED=self.gated,
            RESIDUAL=residual is not None,
            BEST=self.best,
            num_warps=tile.warps,
            **launch_options(),
        )
        return out, scaled, value, index

    @property
    def _rows(self) -> torch.Tensor:
        return self.source.scaled if isinstance(self.source, Normed) else self.source

    def _first_of(self, tile: Tile) -> torch.Tensor:
        return self.run(tile)[0]


def _scratch(programs: int, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(programs, ROWS, dtype=dtype, device=like.device)


def qkv(x: torch.Tensor | Normed, weight: Matrix) -> torch.Tensor:
    """Return queries, keys and values (M, (H + 2 KV) d) of normalised rows."""
    return _Skinny("qkv", x, weight)()[0] if isinstance(x, Normed) else product(x, weight)


def gate_up(x: torch.Tensor | Normed, weight: Matrix) -> torch.Tensor | Scaled:
    """Return silu(gate) * up, (M, I), of normalised rows."""
    if isinstance(x, Normed):
        return _Skinny("gate_up", x, weight, gated=True)()[0]
    both = product(x, weight)
    return scale_rows(both, gated=True) if takes_fp8(weight) else silu_mul(both)


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
        out, scaled, squares, _ = _Skinny(
            name, x, weight, residual=residual, gain=gain, following=following
        )()
        return out, Normed(scaled, squares, eps)
    if takes_fp8(weight) and not isinstance(x, Scaled):
        x = scale_rows(x, gated=False)
    scales = x.scales if isinstance(x, Scaled) else None
    return prompt_add_norm(residual, product(x, weight), scales, gain, eps, following)


def head(x: Normed, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (M, V) and the lowest id of the highest one, (M,) int64."""
    logits, _, value, index = _Skinny("head", x, weight, best=True)()
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
    scaled = torch.empty_like(out, dtype=activation_dtype(following))
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
