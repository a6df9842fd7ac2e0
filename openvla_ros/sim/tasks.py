"""What the arm is told, and when it has done it.

A task is decided from places of things alone, so that it can be checked after every step, in the
node, in replay and in tests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from openvla_ros.control.pose import Pose
from openvla_ros.errors import ConfigurationError
from openvla_ros.sim.scene import BLOCK_SIZE_M, PLATE_RADIUS_M

KINDS = ("reach", "push", "pick", "place")
#: Directions of a push, in the words of the picture → base axes (x, y).
DIRECTIONS = {
    "left": (0.0, -1.0),
    "right": (0.0, 1.0),
    "towards the camera": (1.0, 0.0),
    "away from the camera": (-1.0, 0.0),
}
PHRASES = {
    "reach": (
        "reach the {colour} block",
        "move to the {colour} block",
        "go to the {colour} block",
        "touch the {colour} block",
    ),
    "push": (
        "push the {colour} block {direction}",
        "slide the {colour} block {direction}",
        "move the {colour} block {direction}",
    ),
    "pick": (
        "pick up the {colour} block",
        "grasp the {colour} block",
        "lift the {colour} block",
        "take the {colour} block",
    ),
    "place": (
        "put the {colour} block on the plate",
        "place the {colour} block on the plate",
        "move the {colour} block onto the plate",
    ),
}
NEAREST_SHARE = 0.25  # of drawn targets that are the block nearest to the gripper: below a third

REACH_ABOVE_M = 0.015  # the tool point shall come to this height above the block's top
REACHED_BESIDE_M = 0.025
REACHED_HEIGHT_M = 0.02  # above or below REACH_ABOVE_M
PUSH_M = 0.06
PUSHED_M = 0.05
PUSHED_BESIDE_M = 0.03
LIFTED_M = 0.05
HELD_M = 0.02  # tool point to the block's centre
HELD_OPENING = 0.12  # wider than the block alone would keep the fingers
AT_REST_M = 0.006  # a block lies on the plate when it is not higher than this above it


@dataclass(frozen=True)
class CellState:
    """Where everything is.

    Attributes:
        tool: Pose of the tool point, base frame.
        opening: Of the gripper, measured: 0 closed ... 1 open.
        blocks: (3,) centre per colour, metres.
        start: The same at the reset.
        plate: (3,) centre of the plate's upper face; None without a plate.
        gap_m: Between the fingers at opening 1.
    """

    tool: Pose
    opening: float
    blocks: Mapping[str, np.ndarray]
    start: Mapping[str, np.ndarray]
    plate: np.ndarray | None
    gap_m: float

    def nearest(self) -> str:
        """Colour of the block that is nearest to the tool point."""
        return min(
            self.blocks, key=lambda c: float(np.linalg.norm(self.blocks[c] - self.tool.position))
        )

    def is_held(self, colour: str) -> bool:
        """True when the block is between fingers that are as close as it lets them be."""
        is_closed = self.opening < BLOCK_SIZE_M / self.gap_m + HELD_OPENING
        offset = float(np.linalg.norm(self.blocks[colour] - self.tool.position))
        return is_closed and offset < HELD_M

    def is_reached(self, colour: str) -> bool:
        """True when the tool point is right above the block."""
        offset = self.tool.position - self.blocks[colour]
        height = offset[2] - BLOCK_SIZE_M / 2 - REACH_ABOVE_M
        return bool(
            np.linalg.norm(offset[:2]) < REACHED_BESIDE_M and abs(height) < REACHED_HEIGHT_M
        )


@dataclass(frozen=True)
class Task:
    """What is to be done.

    Attributes:
        kind: One of `KINDS`.
        target: Colour of the block.
        instruction: As a person says it.
        direction: Of a push: a key of `DIRECTIONS`; else "".
    """

    kind: str
    target: str
    instruction: str
    direction: str = ""

    def is_done(self, state: CellState) -> bool:
        """True when the cell is as the instruction wants it."""
        # A message takes nothing but Python's own bool: numpy's True would arrive as False.
        return bool(_DONE[self.kind](self, state))


def phrases(kind: str, target: str, direction: str = "") -> tuple[str, ...]:
    """Return every wording of a task.

    Raises:
        ConfigurationError: Unknown kind.
    """
    _require_kind(kind)
    return tuple(p.format(colour=target, direction=direction) for p in PHRASES[kind])


def read_task(instruction: str, colours: Collection[str]) -> Task | None:
    """Return the task that an instruction in one of our wordings means; None for other words.

    Args:
        instruction: Upper case and a full stop do not matter.
        colours: Of the blocks that are there.
    """
    wanted = " ".join(instruction.lower().split()).rstrip(".!")
    for kind in KINDS:
        for colour in colours:
            for direction in DIRECTIONS if kind == "push" else ("",):
                if wanted in phrases(kind, colour, direction):
                    return Task(kind, colour, instruction, direction)
    return None


def draw_task(
    generator: np.random.Generator,
    kind: str,
    state: CellState,
    target: str = "",
    wording: int | None = None,
) -> Task:
    """Return a task for the cell as it is.

    The target is the block nearest to the gripper in a quarter of the draws.

    Raises:
        ConfigurationError: Unknown kind, or no block of colour `target`.
    """
    _require_kind(kind)
    if target and target not in state.blocks:
        raise ConfigurationError(
            f"this scene has no {target} block; it has: {', '.join(state.blocks)}."
        )
    drawn = _draw_target(generator, state)
    colour = target or drawn
    direction = ""
    if kind == "push":
        direction = str(generator.choice(_free_directions(state, colour)))
    wordings = phrases(kind, colour, direction)
    number = int(generator.integers(len(wordings))) if wording is None else wording
    return Task(kind, colour, wordings[number % len(wordings)], direction)


def _require_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ConfigurationError(f"task '{kind}' is not one of: {', '.join(KINDS)}.")


def _draw_target(generator: np.random.Generator, state: CellState) -> str:
    nearest = state.nearest()
    others = [colour for colour in state.blocks if colour != nearest]
    if not others or generator.random() < NEAREST_SHARE:
        return nearest
    return str(generator.choice(others))


def _free_directions(state: CellState, colour: str) -> list[str]:
    """Directions by how much room there is behind and ahead of the block: the better half."""
    here = state.blocks[colour][:2]
    others = [place[:2] for name, place in state.blocks.items() if name != colour]

    def room(direction: str) -> float:
        along = np.array(DIRECTIONS[direction])
        path = [here + share * along for share in (-0.07, -0.05, 0.05, 0.09)]
        beside = min(
            (float(np.linalg.norm(point - other)) for point in path for other in others),
            default=1.0,
        )
        inside = min(float(np.min(np.minimum(p - _PUSH_MIN_M, _PUSH_MAX_M - p))) for p in path)
        return min(beside - 0.05, inside)

    ordered = sorted(DIRECTIONS, key=room, reverse=True)
    free = [direction for direction in ordered if room(direction) > 0.0]
    return free or ordered[:1]


_PUSH_MIN_M, _PUSH_MAX_M = np.array([0.17, -0.28]), np.array([0.52, 0.28])


def _is_reached(task: Task, state: CellState) -> bool:
    return state.is_reached(task.target)


def _is_pushed(task: Task, state: CellState) -> bool:
    along = np.array(DIRECTIONS[task.direction])
    moved = (state.blocks[task.target] - state.start[task.target])[:2]
    far = float(moved @ along)
    return far >= PUSHED_M and float(np.linalg.norm(moved - far * along)) <= PUSHED_BESIDE_M


def _is_lifted(task: Task, state: CellState) -> bool:
    raised = state.blocks[task.target][2] - BLOCK_SIZE_M / 2
    return state.is_held(task.target) and raised >= LIFTED_M


def _is_on_plate(task: Task, state: CellState) -> bool:
    return not state.is_held(task.target) and is_on_plate(state, task.target)


def is_on_plate(state: CellState, colour: str) -> bool:
    """True when the block's centre is over the plate and the block rests on it."""
    assert state.plate is not None, "a scene without a plate"
    offset = state.blocks[colour] - state.plate
    is_over = float(np.linalg.norm(offset[:2])) < PLATE_RADIUS_M
    return is_over and offset[2] - BLOCK_SIZE_M / 2 < AT_REST_M


_DONE = {"reach": _is_reached, "push": _is_pushed, "pick": _is_lifted, "place": _is_on_plate}
