"""How the engine's GPU kernels are launched: tiles, measured once, and what the GPU can do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from openvla_ros.engine.low_bit import GROUP, TILE_ROWS, LowBitMatrix
from openvla_ros.engine.torch_operations import Matrix

#: Programmatic dependent launch came with Hopper.
_HAS_PDL = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


@dataclass(frozen=True)
class Tile:
    """How a skinny product is cut: weights per step, steps in flight, warps."""

    block_n: int
    block_k: int
    stages: int
    warps: int


#: Number formats of weights as the kernels know them.
KINDS = {"int8": 1, "fp8": 2, "int4": 3}
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


def launch_options() -> dict[str, Any]:
    """Return the arguments that let a kernel start before the one ahead of it has ended."""
    return {"PDL": _HAS_PDL, "launch_pdl": True} if _HAS_PDL else {"PDL": False}


def tile_of(name: str, weight: Matrix) -> Tile:
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
