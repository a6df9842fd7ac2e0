"""What a scene looks like, drawn at random within stated ranges: no physics, no pictures here.

Base frame of the arm: x away from the arm, y to its left, z up, table top at z = 0. Left and right
in instructions are those of the picture: the camera looks at the arm from the other side of the
table, so left in the picture is base -y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openvla_ros.errors import ConfigurationError

COLOURS = {
    "red": (0.82, 0.10, 0.10),
    "green": (0.10, 0.62, 0.18),
    "blue": (0.10, 0.25, 0.85),
    "yellow": (0.93, 0.82, 0.08),
    "purple": (0.52, 0.14, 0.68),
}
BLOCK_SIZE_M = 0.04
PLATE_RADIUS_M = 0.06
PLATE_HEIGHT_M = 0.008
_TRIES = 2000


@dataclass(frozen=True)
class SceneRanges:
    """Between which bounds `draw_scene` draws; every draw is uniform.

    Attributes:
        blocks: How many blocks, each of another colour.
        block_min_m: Lowest x, y of a block's centre.
        block_max_m: Highest x, y of a block's centre.
        block_gap_m: Least distance between two blocks' centres.
        block_yaw_rad: Blocks are turned by up to this.
        colour_shift: Each of R, G, B of a block differs by up to this from `COLOURS` (0 ... 1).
        tool_min_m: Lowest x, y, z of the tool point at the start.
        tool_max_m: Highest x, y, z of the tool point at the start.
        tool_tilt_rad: The gripper leans by up to this from pointing down, about base x and y.
        tool_yaw_rad: And is turned by up to this about base z.
        table_brightness: Of the table top, 0 ... 1.
        table_tint: How far its R, G, B are apart at most.
        floor_brightness: Of the floor around it.
        light_m: Lowest and highest x, y, z of the lamp.
        lamp: Brightness of the lamp, lowest and highest.
        ambient: Brightness without the lamp, lowest and highest.
        camera_shift_m: The camera is off its place by up to this along each axis.
        camera_turn_rad: And looks past its target by up to this, to each side, and up and down.
    """

    blocks: int = 3
    block_min_m: tuple[float, float] = (0.24, -0.19)
    block_max_m: tuple[float, float] = (0.43, 0.19)
    block_gap_m: float = 0.10
    block_yaw_rad: float = 0.25
    colour_shift: float = 0.06
    tool_min_m: tuple[float, float, float] = (0.22, -0.16, 0.13)
    tool_max_m: tuple[float, float, float] = (0.40, 0.16, 0.22)
    tool_tilt_rad: float = 0.10
    tool_yaw_rad: float = 0.20
    table_brightness: tuple[float, float] = (0.45, 0.80)
    table_tint: float = 0.10
    floor_brightness: tuple[float, float] = (0.25, 0.60)
    light_m: tuple[tuple[float, float, float], tuple[float, float, float]] = (
        (-0.2, -0.8, 1.2),
        (1.0, 0.8, 1.8),
    )
    lamp: tuple[float, float] = (0.35, 0.65)
    ambient: tuple[float, float] = (0.30, 0.50)
    camera_shift_m: float = 0.02
    camera_turn_rad: float = 0.02

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if not 1 <= self.blocks <= len(COLOURS):
            raise ConfigurationError(
                f"a scene of {self.blocks} blocks; 1 to {len(COLOURS)} have a colour of their own."
            )


@dataclass(frozen=True)
class Block:
    """A cube on the table: its colour's name, its looks, and where it stands."""

    colour: str
    rgb: tuple[float, float, float]
    position_m: tuple[float, float]
    yaw_rad: float


@dataclass(frozen=True)
class Scene:
    """One arrangement of the cell at its start; see `SceneRanges` for the meaning of each field."""

    blocks: tuple[Block, ...]
    plate_m: tuple[float, float] | None
    tool_m: tuple[float, float, float]
    tool_rpy: tuple[float, float, float]
    table_rgb: tuple[float, float, float]
    floor_rgb: tuple[float, float, float]
    light_m: tuple[float, float, float]
    lamp: float
    ambient: float
    camera_shift_m: tuple[float, float, float]
    camera_turn_rad: tuple[float, float]

    def position_m(self, colour: str) -> np.ndarray:
        """(2,) x, y of the block of that colour."""
        return np.array(next(b.position_m for b in self.blocks if b.colour == colour))


def draw_scene(generator: np.random.Generator, ranges: SceneRanges, *, has_plate: bool) -> Scene:
    """Return a scene in which nothing overlaps.

    Raises:
        ConfigurationError: The ranges leave no room for that many things.
    """
    places = _places(generator, ranges, has_plate=has_plate)
    names = generator.permutation(list(COLOURS))[: ranges.blocks].tolist()
    blocks = tuple(
        Block(
            colour=name,
            rgb=_three(
                np.clip(COLOURS[name] + _around(generator, ranges.colour_shift, 3), 0.0, 1.0)
            ),
            position_m=(float(x), float(y)),
            yaw_rad=float(_around(generator, ranges.block_yaw_rad)),
        )
        for name, (x, y) in zip(names, places, strict=False)
    )
    turn = _around(generator, ranges.camera_turn_rad, 2)
    tilt = _around(generator, ranges.tool_tilt_rad, 2)
    grey = generator.uniform(*ranges.table_brightness)
    return Scene(
        blocks=blocks,
        plate_m=(float(places[-1][0]), float(places[-1][1])) if has_plate else None,
        tool_m=_three(generator.uniform(ranges.tool_min_m, ranges.tool_max_m)),
        tool_rpy=(*tilt.tolist(), float(_around(generator, ranges.tool_yaw_rad))),
        table_rgb=_three(np.clip(grey + _around(generator, ranges.table_tint / 2, 3), 0.0, 1.0)),
        floor_rgb=_three(np.full(3, generator.uniform(*ranges.floor_brightness))),
        light_m=_three(generator.uniform(*ranges.light_m)),
        lamp=float(generator.uniform(*ranges.lamp)),
        ambient=float(generator.uniform(*ranges.ambient)),
        camera_shift_m=_three(_around(generator, ranges.camera_shift_m, 3)),
        camera_turn_rad=(float(turn[0]), float(turn[1])),
    )


def _places(
    generator: np.random.Generator, ranges: SceneRanges, *, has_plate: bool
) -> list[np.ndarray]:
    """(2,) centres of the blocks, then of the plate: far enough from one another."""
    for _ in range(_TRIES):
        places = list(
            generator.uniform(
                ranges.block_min_m, ranges.block_max_m, (ranges.blocks + has_plate, 2)
            )
        )
        if _are_apart(places[: ranges.blocks], ranges.block_gap_m) and (
            not has_plate or _is_free(places[-1], places[:-1], ranges)
        ):
            return places
    raise ConfigurationError(
        f"{ranges.blocks} blocks at least {ranges.block_gap_m} m apart do not fit between "
        f"{ranges.block_min_m} and {ranges.block_max_m} m."
    )


def _are_apart(places: Sequence[np.ndarray], gap_m: float) -> bool:
    return all(
        np.linalg.norm(a - b) >= gap_m for i, a in enumerate(places) for b in places[i + 1 :]
    )


def _is_free(plate: np.ndarray, blocks: Sequence[np.ndarray], ranges: SceneRanges) -> bool:
    gap = PLATE_RADIUS_M + ranges.block_gap_m - BLOCK_SIZE_M / 2
    return all(np.linalg.norm(plate - block) >= gap for block in blocks)


def _around(generator: np.random.Generator, bound: float, size: int | None = None) -> np.ndarray:
    return np.asarray(generator.uniform(-bound, bound, size))


def _three(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = np.asarray(values, float).tolist()
    return x, y, z
