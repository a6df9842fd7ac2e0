"""OpenVLA's LIBERO evaluation as a loop: what is shown to the policy, sent, waited for and counted.

This file knows no simulator; `environment` brings LIBERO's, and tests bring one of their own.
Source: openvla @ c8f03f4, experiments/robot/libero/run_libero_eval.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from openvla_ros.errors import ActionStatsError, ConfigurationError
from openvla_ros.evaluation.metrics.wilson import wilson_interval
from openvla_ros.model.image_options import ImageOptions
from openvla_ros.types import PRIMARY, Observation, Policy

#: Steps that the policy has: a little more than the longest demonstration of the suite.
MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
}
WAIT_STEPS = 10  # the simulator drops the objects, and they come to rest
WAIT_COMMAND = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)  # no motion, gripper open
EPISODES_PER_TASK = 50
STEP_NS = 50_000_000  # 20 Hz
ACTION_DIM = 7


class Environment(Protocol):
    """One task in a simulator. Images are (256, 256, 3) uint8 RGB, upside down as LIBERO draws."""

    def begin(self, episode: int) -> np.ndarray:
        """Set the stored initial state of that number; return what the camera sees."""
        ...

    def step(self, command: Sequence[float]) -> tuple[np.ndarray, bool]:
        """Apply (7,) for 50 ms, gripper -1 open, +1 closed; return image and "goal reached"."""
        ...

    def close(self) -> None:
        """Give the simulator's memory back."""
        ...


class Task(Protocol):
    """A task of a suite, not yet simulated."""

    @property
    def instruction(self) -> str:
        """As the reference gives it to the policy."""
        ...

    @property
    def initial_states(self) -> int:
        """How many are stored."""
        ...

    def open(self) -> Environment:
        """Start its simulator."""
        ...


@dataclass(frozen=True)
class Episode:
    """How one episode ended.

    Attributes:
        instruction: Of its task.
        number: Of its initial state, from 0.
        is_success: Whether the goal was reached within the steps that the policy had.
        steps: Actions that were executed.
        invalid_actions: Of these, actions with an id outside the action range; executed all the
            same, as in the reference.
        error: What the simulator raised, or "". Such an episode is a failure, as in the reference.
    """

    instruction: str
    number: int
    is_success: bool
    steps: int
    invalid_actions: int = 0
    error: str = ""


def camera_path(center_crop: bool) -> ImageOptions:
    """Return the steps between LIBERO's picture and the processor.

    Args:
        center_crop: For a checkpoint that was trained with augmentation; all published ones were.
    """
    return ImageOptions(
        rotate_180=True, jpeg_round_trip=True, lanczos3=True, center_crop=center_crop
    )


def choose_unnorm_key(available: Collection[str], suite: str) -> str:
    """Return the statistics key of a suite: its name, or its name and `_no_noops`.

    Raises:
        ActionStatsError: The checkpoint has neither.
    """
    candidates = (suite, f"{suite}_no_noops")
    for key in candidates:
        if key in available:
            return key
    raise ActionStatsError(
        f"The checkpoint has no statistics {' or '.join(candidates)}: it was not trained on this "
        f"suite. It has: {', '.join(sorted(available))}. Give the checkpoint of the suite, or the "
        "key with --unnorm-key."
    )


def to_command(action: np.ndarray) -> list[float]:
    """Return the command that LIBERO executes for an action of the policy.

    Args:
        action: (7,) in the units of LIBERO's controller; gripper 0 closed, 1 open.

    Returns:
        (7,) with the gripper binarised and turned round: -1 open, +1 closed; exactly between, 0.

    Raises:
        ActionStatsError: It has not 7 numbers.
    """
    if action.shape != (ACTION_DIM,):
        raise ActionStatsError(
            f"LIBERO's arm takes {ACTION_DIM} numbers, this policy's actions have {action.shape}."
        )
    command = np.array(action, dtype=np.float64)
    command[-1] = -np.sign(2 * command[-1] - 1)
    return [float(number) for number in command]


def run_suite(
    tasks: Sequence[Task],
    policy: Policy,
    max_steps: int,
    episodes_per_task: int = EPISODES_PER_TASK,
    report: Callable[[Episode], None] = lambda episode: None,
) -> list[Episode]:
    """Return all episodes, task by task; each is reported as soon as it ends.

    Raises:
        ConfigurationError: A task has fewer initial states than episodes are asked for.
    """
    for task in tasks:
        if task.initial_states < episodes_per_task:
            raise ConfigurationError(
                f"{episodes_per_task} episodes per task are asked for, and "
                f"{task.instruction!r} has {task.initial_states} initial states."
            )
    episodes = []
    for task in tasks:
        environment = task.open()
        try:
            for number in range(episodes_per_task):
                episode = _run_episode(environment, policy, task.instruction, number, max_steps)
                report(episode)
                episodes.append(episode)
        finally:
            environment.close()
    return episodes


def _run_episode(
    environment: Environment, policy: Policy, instruction: str, number: int, max_steps: int
) -> Episode:
    image = environment.begin(number)
    policy.begin_episode()
    steps, invalid = 0, 0

    def ended(is_success: bool, error: str = "") -> Episode:
        return Episode(instruction, number, is_success, steps, invalid, error)

    for tick in range(WAIT_STEPS + max_steps):
        command: Sequence[float] = WAIT_COMMAND
        is_waiting = tick < WAIT_STEPS
        if not is_waiting:
            seen = Observation({PRIMARY: image}, instruction, stamp_ns=tick * STEP_NS)
            prediction = policy.predict(seen)
            invalid += not prediction.is_valid
            command = to_command(prediction.action)
        try:
            image, is_done = environment.step(command)
        except Exception as error:  # physics that became unstable, whatever it is called
            return ended(False, f"{type(error).__name__}: {error}")
        steps += not is_waiting
        if is_done and not is_waiting:  # the reference does not look while it waits
            return ended(True)
    return ended(False)


def summarize(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Return success rates with their 95 % intervals, of all episodes and of every instruction."""
    by_instruction: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_instruction.setdefault(episode.instruction, []).append(episode)
    return {
        **_rate(episodes),
        "per_instruction": {text: _rate(group) for text, group in by_instruction.items()},
        "invalid_actions": sum(episode.invalid_actions for episode in episodes),
        "simulator_errors": [episode.error for episode in episodes if episode.error],
    }


def _rate(episodes: Sequence[Episode]) -> dict[str, Any]:
    successes = sum(episode.is_success for episode in episodes)
    return {
        "success_rate": successes / len(episodes) if episodes else None,
        "successes": successes,
        "episodes": len(episodes),
        "interval": list(wilson_interval(successes, len(episodes))),
    }
