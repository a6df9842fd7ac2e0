"""Where the things that an instruction talks about are in each recorded picture.

It lies as one file beside the messages of each bag, and training may use it as a second label; no
reader of recordings needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from openvla_ros.data.sources import find_recordings
from openvla_ros.errors import ConfigurationError
from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.cell_model import places_in_picture
from openvla_ros.sim.scene import COLOURS

FILE = "grounding.npz"
_EPISODE = "episode_000000"  # the only one of a bag, as `data.bag_episodes` names it


@dataclass(frozen=True)
class Grounding:
    """Places in the pictures of one episode of T steps, as fractions of width and height.

    x to the right, y down; 0 ... 1 inside the picture, beyond it where something is outside.

    Attributes:
        target: (T, 2) float32, centre of the block that the instruction names.
        tool: (T, 2) float32, the tool point, between the finger tips.
        blocks: (T, 5, 2) float32, centre of every block, in the order of `scene.COLOURS`; NaN for a
            colour that is not in the scene.
        offset: (T, 3) float32, from the tool point to the named block's centre, metres, base axes.
        opening: (T,) float32 of the gripper: 0 closed ... 1 open.
    """

    target: np.ndarray
    tool: np.ndarray
    blocks: np.ndarray
    offset: np.ndarray
    opening: np.ndarray

    def __len__(self) -> int:
        return len(self.target)


def ground(cell: SimCell, target: str, width: int, height: int) -> Grounding:
    """Return the places of one step: T = 1.

    Args:
        cell: As it is in the picture.
        target: Colour of the block that the instruction names.
        width: Of the picture; only its ratio to the height counts.
        height: Of the picture.
    """
    state = cell.state()
    points = np.stack([state.tool.position, *state.blocks.values()])
    tool, *places = places_in_picture(cell.scene, points, width, height).astype(np.float32)
    found = dict(zip(state.blocks, places, strict=True))
    absent = np.full(2, np.nan, np.float32)
    blocks = np.stack([found.get(colour, absent) for colour in COLOURS])
    offset = (state.blocks[target] - state.tool.position).astype(np.float32)
    opening = np.array([state.opening], np.float32)
    return Grounding(found[target][None], tool[None], blocks[None], offset[None], opening)


def join(steps: Sequence[Grounding]) -> Grounding:
    """Return the places of consecutive steps as one."""
    return Grounding(
        *(np.concatenate([getattr(step, f.name) for step in steps]) for f in fields(Grounding))
    )


def write_grounding(bag: Path, grounding: Grounding) -> None:
    """Write it into the folder of a bag."""
    np.savez(bag / FILE, **{f.name: getattr(grounding, f.name) for f in fields(Grounding)})


def read_grounding(folder: Path) -> dict[str, Grounding]:
    """Return the places of every episode of a folder of bags, or of one bag.

    Args:
        folder: What `path` of a source in a fine-tuning file names.

    Returns:
        By the name that the episode has in training (`batch.Origin.episode`), T as its steps; true
        where the settings of the source leave out no step.

    Raises:
        ConfigurationError: A bag has no places, or they cannot be read.
    """
    bags = find_recordings(folder)
    found = {}
    for bag in bags:
        try:
            with np.load(bag / FILE) as arrays:
                grounding = Grounding(*(arrays[f.name] for f in fields(Grounding)))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(
                f"{bag / FILE} cannot be read ({error}). `openvla-ros sim record` writes it."
            ) from error
        # As `training.datasets` tells episodes of several recordings apart.
        prefix = f"{bag.name}_" if len(bags) > 1 else ""
        found[prefix + _EPISODE] = grounding
    return found
