"""Trajectories: the expert drives the cell through its physics until the task is done.

An expert that is never off its way teaches nothing about the way back. So the arm is pushed now
and then: for some steps it is told something else than what is recorded, which stays what the
expert would do there.
Source: Laskey et al., DART: Noise Injection for Robust Imitation Learning, CoRL 2017.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.expert import (
    MAX_STEP_M,
    MAX_STEP_RAD,
    STEP_S,
    action_twist,
    expert_action,
)
from openvla_ros.sim.recording.bags import RecordedStep, look, record_step
from openvla_ros.sim.recording.options import RecordingOptions
from openvla_ros.sim.tasks import Task

MOST_STEPS = {"reach": 60, "push": 100, "pick": 100, "place": 150}  # 1.5 times the expert's alone
STEPS_AFTER = 3  # the expert stays where it is done
PUSH_STEPS = (2, 4)  # fewest and most steps of one push
LOWEST_M = 0.03  # a push ends above the table


@dataclass(frozen=True)
class Trajectory:
    """One episode.

    Attributes:
        task: With its instruction.
        steps: In order, 0.2 s apart.
        is_done: The task was done within `MOST_STEPS`.
    """

    task: Task
    steps: list[RecordedStep]
    is_done: bool


def expert_trajectory(cell: SimCell, options: RecordingOptions, number: int) -> Trajectory:
    """Let the expert do one task; what is recorded is what it answers to each picture.

    Args:
        cell: Its scene and task are replaced.
        options: Of the recording.
        number: Of the episode, from 0.
    """
    seed = options.seed + number
    task = cell.reset(seed, options.kind_of(number))
    generator = np.random.default_rng([seed, 3])
    pushes = _Pushes(generator, options.pushes)
    steps: list[RecordedStep] = []
    steps_left = MOST_STEPS[task.kind]
    is_done = False
    while steps_left > 0:
        action = _with_noise(expert_action(task, cell.state()), generator, options.label_noise)
        step = record_step(cell, look(cell, options), task.target, action, options)
        is_calm = is_done or len(steps) == 0
        executed = action if is_calm else pushes.instead_of(action, step.tool.position[2])
        steps.append(replace(step, is_pushed=executed is not action))
        cell.step(action_twist(executed), executed[6], STEP_S)
        steps_left -= 1
        if not is_done and task.is_done(cell.state()):
            is_done, steps_left = True, STEPS_AFTER
    return Trajectory(task, steps, is_done)


class _Pushes:
    """When the arm is pushed, and where to."""

    def __init__(self, generator: np.random.Generator, chance: float) -> None:
        self._generator, self._chance = generator, chance
        self._steps_left = 0
        self._motion = np.zeros(6)

    def instead_of(self, action: np.ndarray, height_m: float) -> np.ndarray:
        """Return what the arm is told: `action`, or with its gripper another motion."""
        if self._steps_left == 0 and self._generator.random() < self._chance:
            self._steps_left = int(self._generator.integers(PUSH_STEPS[0], PUSH_STEPS[1] + 1))
            direction = self._generator.normal(size=3)
            direction /= np.linalg.norm(direction)
            self._motion[:3] = self._generator.uniform(0.5, 1.0) * MAX_STEP_M * direction
        if self._steps_left == 0:
            return action
        self._steps_left -= 1
        pushed = np.append(self._motion, action[6])
        pushed[2] = max(pushed[2], min(LOWEST_M - height_m, MAX_STEP_M))
        return pushed


def _with_noise(action: np.ndarray, generator: np.random.Generator, share: float) -> np.ndarray:
    """A hand is not exact: without this, zeros would tell that the expert is done."""
    scale = np.array([MAX_STEP_M] * 3 + [MAX_STEP_RAD] * 3)
    noisy = action.copy()
    noisy[:6] += generator.normal(size=6) * scale * share
    return noisy
