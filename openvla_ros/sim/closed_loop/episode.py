"""One episode: a scene, an instruction, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from openvla_ros.config import NodeConfig
from openvla_ros.errors import ConfigurationError
from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.closed_loop.drivers import TRAINING_SEED, Driver, PictureDriver
from openvla_ros.sim.closed_loop.node_motion import NodeMotion
from openvla_ros.sim.expert import STEP_S
from openvla_ros.sim.tasks import CellState, Task
from openvla_ros.types import Prediction

PICTURE_PIXELS = 224
#: Steps of 0.2 s after which an episode counts as failed.
STEP_LIMITS = {"reach": 40, "push": 60, "pick": 60, "place": 90}


@dataclass(frozen=True)
class Assignment:
    """What the policy is told in a scene, and what it might have been told.

    Attributes:
        seed: Of the scene.
        task: The one that the policy is told.
        original: The one that the seed draws; another one only with swapped instructions.
        nearest: Colour of the block nearest to the gripper at the start.
        others: The same thing done with each of the other blocks, by colour.
    """

    seed: int
    task: Task
    original: Task
    nearest: str
    others: dict[str, Task]


@dataclass(frozen=True)
class Moment:
    """What the policy saw and answered: (H, W, 3) uint8 RGB, and where everything was."""

    picture: np.ndarray
    state: CellState
    prediction: Prediction


@dataclass
class EpisodeResult:
    """What came of an episode.

    Attributes:
        seed: Of the scene.
        instruction: What the policy was told.
        target: Colour that was named.
        original: Colour that the seed draws; another one only with swapped instructions.
        nearest: Colour of the block nearest to the gripper at the start.
        succeeded: Whether the task was done at any moment before the limit.
        steps: Steps of 0.2 s until then, or the limit.
        done_with: Colours with which the task was done, in order; the named one is the last.
        answers: Answers of the policy.
        refused: Answers that the motion stage did not execute, by reason.
        moments: For the gallery: every answer of a failed episode; else empty.
    """

    seed: int
    instruction: str
    target: str
    original: str
    nearest: str
    succeeded: bool = False
    steps: float = 0.0
    done_with: list[str] = field(default_factory=list)
    answers: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the moments, as JSON types."""
        return {name: value for name, value in vars(self).items() if name != "moments"}


def assign(cell: SimCell, kind: str, seed: int, *, is_swapped: bool = False) -> Assignment:
    """Draw the scene and the task of a seed; `cell` is ready to start.

    Args:
        cell: Reset.
        kind: One of `tasks.KINDS`.
        seed: Below `TRAINING_SEED`.
        is_swapped: The policy is told to do it with another block of the same scene.

    Raises:
        ConfigurationError: Unknown kind, a seed that belongs to training, or a swap in a scene
            with one block.
    """
    if seed >= TRAINING_SEED:
        raise ConfigurationError(
            f"seed {seed} is one of those that demonstrations are drawn from: evaluate with seeds "
            f"below {TRAINING_SEED}."
        )
    task = original = cell.reset(seed, kind)
    nearest = cell.state().nearest()
    colours = [block.colour for block in cell.scene.blocks]
    if is_swapped:
        choices = [colour for colour in colours if colour != original.target]
        if not choices:
            raise ConfigurationError("instructions can be swapped only where there are two blocks.")
        task = cell.reset(seed, kind, choices[seed % len(choices)])
    others = {colour: replace(task, target=colour) for colour in colours if colour != task.target}
    return Assignment(seed, task, original, nearest, others)


class Watch:
    """Looks at every tick which block the task has been done with."""

    def __init__(self, assignment: Assignment) -> None:
        """Begin an episode."""
        self._assignment = assignment
        self.result = EpisodeResult(
            assignment.seed,
            assignment.task.instruction,
            assignment.task.target,
            assignment.original.target,
            assignment.nearest,
        )

    def look(self, state: CellState, now_s: float, *, is_done: bool | None = None) -> bool:
        """Return True once the named task is done.

        Args:
            state: Where everything is.
            now_s: Seconds since the episode began.
            is_done: What somebody else says about the named task; None = look at the state.
        """
        for colour, task in self._assignment.others.items():
            if colour not in self.result.done_with and task.is_done(state):
                self.result.done_with.append(colour)
        task = self._assignment.task
        if not self.result.succeeded and (task.is_done(state) if is_done is None else is_done):
            self.result.done_with.append(task.target)
            self.result.succeeded, self.result.steps = True, round(now_s / STEP_S, 3)
        return self.result.succeeded

    def finish(self, limit: int) -> EpisodeResult:
        """Return the result; `limit` is what a failed episode was given, in steps."""
        if self.result.succeeded:
            self.result.moments.clear()
        else:
            self.result.steps = float(limit)
        return self.result


def run_episode(
    cell: SimCell,
    driver: Driver,
    assignment: Assignment,
    config: NodeConfig,
    *,
    latency_s: float = 0.0,
    step_limit: int = 0,
    keeps_moments: bool = False,
) -> EpisodeResult:
    """Return what comes of a driver's answers; `cell` has just been reset by `assign`.

    Time is simulated: what the driver takes to compute does not count, `latency_s` does. The task
    is looked at 50 times a second, as the node `sim_cell` publishes it.

    Args:
        cell: Simulated.
        driver: Answers.
        assignment: What it is told.
        config: Parameters of the node, see `EVALUATION_PARAMETERS`.
        latency_s: From picture to answer.
        step_limit: Steps of 0.2 s; 0 = `STEP_LIMITS`.
        keeps_moments: Keep pictures of an episode that fails.

    Raises:
        ConfigurationError: The driver's actions cannot become motion.
    """
    watch = Watch(assignment)
    result, task = watch.result, assignment.task
    motion = NodeMotion(driver.spec, config, latency_s)
    motion.instruct(task.instruction)
    if isinstance(driver, PictureDriver):
        driver.begin()

    def ask() -> Prediction:
        return _ask(cell, driver, task, result.moments if keeps_moments else None)

    limit = step_limit or STEP_LIMITS[task.kind]
    ticks = round(limit * STEP_S / motion.tick_s)
    is_done = watch.look(cell.state(), 0.0)
    for tick in range(ticks):
        if is_done:
            break
        twist = motion.tick(tick * motion.tick_s, cell.ee_pose(), ask)
        cell.step(twist, motion.opening, motion.tick_s)
        is_done = watch.look(cell.state(), (tick + 1) * motion.tick_s)
    result.answers, result.refused = motion.answers, motion.refused
    return watch.finish(limit)


def _ask(cell: SimCell, driver: Driver, task: Task, moments: list[Moment] | None) -> Prediction:
    is_picture_needed = isinstance(driver, PictureDriver) or moments is not None
    side = PICTURE_PIXELS
    picture = cell.render(side, side) if is_picture_needed else np.zeros((0, 0, 3), np.uint8)
    prediction = answer_of(driver, picture, task, cell)
    if moments is not None:
        moments.append(Moment(picture, cell.state(), prediction))
    return prediction


def answer_of(driver: Driver, picture: np.ndarray, task: Task, cell: SimCell) -> Prediction:
    """Return a driver's answer: to the picture and the text, or to the state."""
    if isinstance(driver, PictureDriver):
        return driver.answer(picture, task.instruction)
    return driver.answer(task, cell.state())
