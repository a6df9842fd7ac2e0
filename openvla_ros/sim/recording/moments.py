"""Scattered moments: independent pictures, each with every instruction that it can be asked.

No physics runs, and neighbouring steps have nothing to do with one another: an episode is only what
was said in one instruction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.expert import expert_action
from openvla_ros.sim.recording.bags import RecordedStep, look, record_step
from openvla_ros.sim.recording.options import RecordingOptions
from openvla_ros.sim.states import Moment, sample_state
from openvla_ros.sim.tasks import Task, phrases

Said = tuple[str, str]  # kind and instruction


@dataclass(frozen=True)
class Answer:
    """What the expert does in one picture under one instruction."""

    task: Task
    step: RecordedStep


def moment_answers(cell: SimCell, options: RecordingOptions, number: int) -> list[Answer]:
    """Return one picture with the instructions that fit it, up to one for each colour.

    Args:
        cell: Its scene and task are replaced.
        options: Of the recording.
        number: Of the picture, from 0.
    """
    seed = options.seed + number
    moment = sample_state(cell, seed, options.kind_of(number))
    jpeg = look(cell, options)
    answers = []
    for task in _tasks(moment, np.random.default_rng([seed, 2])):
        action = expert_action(task, moment.state)
        answers.append(Answer(task, record_step(cell, jpeg, task.target, action, options)))
    return answers


def scattered_episodes(
    pictures: Iterable[list[Answer]], steps_per_episode: int
) -> Iterator[tuple[Said, list[RecordedStep]]]:
    """Yield episodes of one instruction each, as soon as they are full; at the end all others."""
    waiting: dict[Said, list[RecordedStep]] = {}
    for answers in pictures:
        for answer in answers:
            said = answer.task.kind, answer.task.instruction
            steps = waiting.setdefault(said, [])
            steps.append(answer.step)
            if len(steps) == steps_per_episode:
                yield said, waiting.pop(said)
    yield from waiting.items()


def _tasks(moment: Moment, generator: np.random.Generator) -> list[Task]:
    """The task that was drawn, and the same with other colours where the moment fits them too.

    A push has a direction in which its own block is free, the plate is for one block, and a
    block between the fingers is the one that was asked for.
    """
    task, state = moment.task, moment.state
    is_shared = task.kind in ("reach", "pick") and not state.is_held(task.target)
    if not is_shared:
        return [task]
    tasks = []
    for colour in state.blocks:
        wordings = phrases(task.kind, colour)
        words = wordings[int(generator.integers(len(wordings)))]
        tasks.append(dataclasses.replace(task, target=colour, instruction=words))
    return tasks
