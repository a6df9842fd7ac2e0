"""Moments of a task, each drawn by itself: training data without running any physics.

A policy that is trained on independent moments sees the arm everywhere, not only on the paths that
the expert takes, and neighbouring samples do not repeat one another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openvla_ros.control.displacement import euler_matrix
from openvla_ros.control.pose import Pose
from openvla_ros.sim.arms import TOOL_DOWN
from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.expert import BEHIND_M, GRASP_Z_M, PUSH_Z_M, TRAVEL_Z_M, expert_action
from openvla_ros.sim.scene import BLOCK_SIZE_M
from openvla_ros.sim.tasks import DIRECTIONS, REACH_ABOVE_M, CellState, Task

# Where the tool point may be at a moment: base frame, metres.
ANYWHERE_MIN_M = np.array([0.20, -0.22, 0.06])
ANYWHERE_MAX_M = np.array([0.46, 0.22, 0.24])
NEAR_SHARE = 0.7  # of the moments that are close to where the task is decided
HELD_SHARE = 0.3  # of the moments of "pick" and "place" with the block between the fingers
NEAREST_M, FARTHEST_M = 0.003, 0.15  # of those, evenly on a logarithmic scale: each distance counts
BESIDE_M = 0.06  # on the way down, from `NEAREST_M` on ...
LOWEST_M, HIGHEST_M = 0.001, 0.1  # ... and, independent of that, above where it ends
CLEAR_M = 0.01  # tool point above a block's top where open fingers pass over it
_TRIES = 100


@dataclass(frozen=True)
class Moment:
    """One state of the cell, and what the expert does in it.

    Attributes:
        task: With its instruction.
        state: Where everything is.
        action: (7,), see `expert_action`.
    """

    task: Task
    state: CellState
    action: np.ndarray


def sample_state(
    cell: SimCell, seed: int, kind: str = "reach", *, target: str = "", wording: int | None = None
) -> Moment:
    """Put `cell` into a random moment of a random task; render it with `cell.render`.

    The tool is anywhere above the table, or (in `NEAR_SHARE` of the draws) close to where the task
    is decided; every block can be seen and nothing overlaps. No physics runs.

    Args:
        cell: Its scene and task are replaced.
        seed: Decides everything that the other arguments leave open.
        kind: One of `tasks.KINDS`.
        target: Colour of the block; "" draws one.
        wording: Number of the phrasing; None draws one.

    Raises:
        ConfigurationError: As `SimCell.reset`.
    """
    task = cell.reset(seed, kind, target, wording)
    generator = np.random.default_rng([seed, 1])
    for _ in range(_TRIES):
        state = cell.state()
        is_held = kind in ("pick", "place") and generator.random() < HELD_SHARE
        position = _tool_position(generator, task, state, is_held=is_held)
        # Mostly upright, as after the first steps of a task.
        tilt = generator.uniform(-1.0, 1.0, 3) ** 3
        tilt *= [cell.ranges.tool_tilt_rad, cell.ranges.tool_tilt_rad, cell.ranges.tool_yaw_rad]
        if _is_in_a_block(position, state, task.target if is_held else ""):
            continue
        opening = _opening(generator, kind, position, state, is_held=is_held)
        if not cell.put_tool(Pose(position, euler_matrix(tilt) @ TOOL_DOWN), opening):
            continue
        if is_held:
            cell.put_block(task.target, position, euler_matrix(tilt))
        if not cell.hidden_blocks():
            break
        cell.put_back(task.target)
    else:
        cell.reset(seed, kind, target, wording)
    state = cell.state()
    return Moment(task, state, expert_action(task, state))


def _tool_position(
    generator: np.random.Generator, task: Task, state: CellState, *, is_held: bool
) -> np.ndarray:
    if is_held:
        lowest = [*ANYWHERE_MIN_M[:2], GRASP_Z_M]
        return generator.uniform(lowest, [*ANYWHERE_MAX_M[:2], TRAVEL_Z_M + 0.03])
    if generator.random() >= NEAR_SHARE:
        return generator.uniform(ANYWHERE_MIN_M, ANYWHERE_MAX_M)
    # As often beside another block: or going to the nearest one would nearly always be right.
    others = [colour for colour in state.blocks if colour != task.target]
    is_other = bool(others) and generator.random() < 0.5
    colour = str(generator.choice(others)) if is_other else task.target
    away = _around(generator) if task.kind == "reach" else _above(generator)
    place = _decisive_place(task, state.blocks[colour]) + away
    return np.clip(place, [*ANYWHERE_MIN_M[:2], GRASP_Z_M], ANYWHERE_MAX_M)


def _around(generator: np.random.Generator) -> np.ndarray:
    """An offset in any direction: a reach ends above the block, and so knows a way up."""
    away = generator.normal(0.0, 1.0, 3)
    return away * (_logarithmic(generator, NEAREST_M, FARTHEST_M) / np.linalg.norm(away))


def _above(generator: np.random.Generator) -> np.ndarray:
    """An offset to the side and, independent of it, upwards: where the way down leads through."""
    angle = generator.uniform(-np.pi, np.pi)
    beside = _logarithmic(generator, NEAREST_M, BESIDE_M) * np.array([np.cos(angle), np.sin(angle)])
    return np.array([*beside, _logarithmic(generator, LOWEST_M, HIGHEST_M)])


def _logarithmic(generator: np.random.Generator, least: float, most: float) -> float:
    return float(np.exp(generator.uniform(np.log(least), np.log(most))))


def _decisive_place(task: Task, block: np.ndarray) -> np.ndarray:
    if task.kind == "reach":
        return np.array([*block[:2], block[2] + BLOCK_SIZE_M / 2 + REACH_ABOVE_M])
    if task.kind == "push":
        along = np.array([*DIRECTIONS[task.direction], 0.0])
        return np.array([*(block - BEHIND_M * along)[:2], PUSH_Z_M])
    return np.array([*block[:2], GRASP_Z_M])


def _opening(
    generator: np.random.Generator,
    kind: str,
    tool: np.ndarray,
    state: CellState,
    *,
    is_held: bool,
) -> float:
    if is_held:
        return BLOCK_SIZE_M / state.gap_m
    if kind == "push":
        return float(generator.choice([0.0, 1.0], p=[0.8, 0.2]))
    if kind == "reach":
        return 1.0
    # Low: fingers that are closing. Higher: closed on nothing, a mistake to be noticed.
    narrowest, share = (0.65, 0.5) if tool[2] < BLOCK_SIZE_M + CLEAR_M else (0.0, 0.25)
    return float(generator.uniform(narrowest, 1.0)) if generator.random() < share else 1.0


def _is_in_a_block(tool: np.ndarray, state: CellState, held: str) -> bool:
    """True when the open gripper there would overlap a block that is not between its fingers."""
    for colour, block in state.blocks.items():
        offset = np.abs(tool - block)
        is_low = tool[2] < BLOCK_SIZE_M + CLEAR_M
        is_between = not held and offset[0] < 0.05 and offset[1] < 0.012
        if colour != held and is_low and offset[0] < 0.05 and offset[1] < 0.075 and not is_between:
            return True
    return False
