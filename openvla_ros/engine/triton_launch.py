"""How the engine's GPU kernels are launched: tiles, measured once, and what the GPU can do."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from openvla_ros.engine.low_bit import GROUP, TILE_ROWS, LowBitMatrix

Matrix = torch.Tensor | LowBitMatrix

#: Programmatic dependent launch came with Hopper.
_HAS_PDL = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


#: _scaled_mm and conversions to e4m3 came with Ada.
_HAS_FP8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)


def tries_new_kernels() -> bool:
    """Return whether kernels that no GPU has run yet may be tried: OPENVLA_ROS_NEW_KERNELS=1."""
    return os.environ.get("OPENVLA_ROS_NEW_KERNELS", "") == "1"


@dataclass(frozen=True)
class Tile:
    """How a skinny product is cut: weights per step, steps in flight, warps.

    With splits, that many warps take a step each and add their sums up at the end.
    """

    block_n: int
    block_k: int
    stages: int
    warps: int
    splits: int = 1


_Tiles = dict[str, tuple[Tile, ...]]

#: Number formats of weights as the kernels know them.
KINDS = {"int8": 1, "fp8": 2, "int4": 3}
#: The first of each was measured in whole passes on an H200, see docs/benchmarks/engine_h200.md.
#: The others follow from counting what keeps it from the read rate; `triton_choice` measures.
TILES: _Tiles = {
    "qkv": (Tile(64, 128, 4, 2),),
    "gate_up": (Tile(64, 128, 3, 2),),
    "output": (Tile(16, 1024, 3, 2), Tile(16, 128, 4, 4, splits=4)),
    "down": (Tile(16, 256, 6, 1), Tile(16, 64, 6, 4, splits=4)),
    "head": (Tile(32, 256, 4, 2),),
}
BYTE_TILES: _Tiles = {
    "qkv": (Tile(64, 256, 4, 2), Tile(32, 64, 6, 4, splits=4)),
    "gate_up": (Tile(64, 256, 3, 2), Tile(64, 64, 4, 4, splits=4)),
    "output": (Tile(16, 512, 5, 1), Tile(16, 128, 4, 4, splits=4), Tile(32, 128, 3, 4, splits=4)),
    "down": (Tile(16, 256, 8, 1), Tile(16, 64, 8, 4, splits=4), Tile(32, 64, 6, 4, splits=4)),
}
_NIBBLES = Tile(TILE_ROWS, GROUP, 8, 2)
NIBBLE_TILES: _Tiles = {
    "qkv": (_NIBBLES, Tile(TILE_ROWS, GROUP, 3, 4, splits=4)),
    "gate_up": (_NIBBLES, Tile(2 * TILE_ROWS, GROUP, 3, 4, splits=4)),
    "output": (_NIBBLES, Tile(TILE_ROWS, GROUP, 4, 8, splits=8)),
    "down": (_NIBBLES, Tile(TILE_ROWS, GROUP, 4, 8, splits=8)),
}
#: By kind of the weights, then by product.
TABLES = {"none": TILES, "int8": BYTE_TILES, "fp8": BYTE_TILES, "int4": NIBBLE_TILES}
_SMALLEST_STEP = 16  # columns: of one tensor-core product


def launch_options() -> dict[str, Any]:
    """Return the arguments that let a kernel start before the one ahead of it has ended."""
    return {"PDL": _HAS_PDL, "launch_pdl": True} if _HAS_PDL else {"PDL": False}


def tiles_of(name: str, weight: Matrix) -> tuple[Tile, ...]:
    """Return the ways to cut a product, made smaller until they divide the matrix."""
    kind = weight.kind if isinstance(weight, LowBitMatrix) else "none"
    columns, depth = weight.shape
    fitting = []
    for tile in TABLES[kind][name]:
        block_n, block_k = tile.block_n, tile.block_k
        while kind != "int4" and depth % (block_k * tile.splits):
            block_k //= 2
        while columns % block_n:
            block_n //= 2
        if block_k >= _SMALLEST_STEP:
            fitting.append(replace(tile, block_n=block_n, block_k=block_k))
    return tuple(fitting)


def takes_fp8(weight: Matrix) -> bool:
    """Return whether products of many rows with this matrix are made in fp8 on this GPU.

    Four bits become bfloat16 first; or e4m3, half as much to write and read, where new kernels are
    tried.
    """
    if not isinstance(weight, LowBitMatrix):
        return False
    return weight.kind == "fp8" or (weight.kind == "int4" and _HAS_FP8 and tries_new_kernels())


def activation_dtype(following: Matrix) -> torch.dtype:
    """Return the dtype in which few rows enter a product: low-bit weights meet them in float16."""
    return torch.float16 if isinstance(following, LowBitMatrix) else following.dtype
