"""Who says what the arm does: the policy under test, and what it is compared with.

The policy gets a picture and a text, and its type says so. The others may look at the state of the
cell: the expert, and two that ignore the text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from openvla_ros.action_specs import load_action_spec
from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.motion.motion_replay import as_prediction
from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.expert import STEP_S, action_twist, expert_action
from openvla_ros.sim.tasks import CellState, Task
from openvla_ros.types import PRIMARY, ActionSpec, Observation, Policy, Prediction

#: (H, W, 3) uint8 RGB and the instruction → the answer. Nothing else goes in.
PicturePolicy = Callable[[np.ndarray, str], Prediction]
#: What is to be done and where everything is → the answer.
StatePolicy = Callable[[Task, CellState], Prediction]

CONTROLS = ("expert", "constant", "nearest")
EXPERT_KEY = "bridge_orig"  # `expert_action` gives the actions of BridgeData
TRAINING_SEED = 1_000_000  # seeds from here on are for demonstrations, those below for evaluation
MEAN_EPISODES = 20
LONGEST_STEPS = 90


@dataclass(frozen=True)
class PictureDriver:
    """The policy under test.

    Attributes:
        answer: Gets the picture and the text.
        spec: What the numbers of its actions mean.
        begin: Called before every episode.
        self_test: Raises when the policy does not look at its picture.
    """

    answer: PicturePolicy
    spec: ActionSpec
    begin: Callable[[], None] = lambda: None
    self_test: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class StateDriver:
    """A teacher or a baseline, which may look at the state.

    Attributes:
        answer: Gets the task and the state.
        spec: What the numbers of its actions mean.
    """

    answer: StatePolicy
    spec: ActionSpec


Driver = PictureDriver | StateDriver


def policy_driver(policy: Policy) -> PictureDriver:
    """Return the driver of a loaded policy."""
    stamps = count(1)

    def answer(picture: np.ndarray, instruction: str) -> Prediction:
        # With a stamp it is a frame and not a trial: the last action may serve as a draft.
        stamp_ns = round(next(stamps) * STEP_S * 1e9)
        return policy.predict(
            Observation(images={PRIMARY: picture}, instruction=instruction, stamp_ns=stamp_ns)
        )

    return PictureDriver(answer, policy.action_spec, policy.begin_episode, policy.self_test)


def blackened(driver: Driver) -> PictureDriver:
    """Return a driver whose pictures are black; it must fail.

    Raises:
        ConfigurationError: `driver` does not look at pictures.
    """
    if not isinstance(driver, PictureDriver):
        raise ConfigurationError(
            "black pictures change nothing for a policy that looks at the state: give a checkpoint."
        )
    seeing = driver.answer
    return replace(driver, answer=lambda picture, text: seeing(np.zeros_like(picture), text))


def control_driver(name: str, cell: SimCell, kind: str) -> StateDriver:
    """Return what a policy is compared with.

    Args:
        name: "expert" does the task; "nearest" does it with the block nearest to the gripper,
            whatever the text says; "constant" repeats the mean action of the expert.
        cell: Used for the mean; its scene and task are replaced.
        kind: One of `tasks.KINDS`.

    Raises:
        ConfigurationError: No control of that name.
    """
    spec = load_action_spec(EXPERT_KEY)
    if name == "expert":
        return StateDriver(lambda task, state: _answer(expert_action(task, state)), spec)
    if name == "nearest":
        return StateDriver(lambda task, state: _answer(_nearest_action(task, state)), spec)
    if name == "constant":
        mean = mean_expert_action(cell, kind, MEAN_EPISODES)
        return StateDriver(lambda task, state: _answer(mean), spec)
    raise ConfigurationError(f"policy '{name}' is not one of: checkpoint, {', '.join(CONTROLS)}.")


def mean_expert_action(cell: SimCell, kind: str, episodes: int) -> np.ndarray:
    """Return the (7,) mean of what the expert does in episodes of training seeds; no pictures."""
    actions = []
    for seed in range(TRAINING_SEED, TRAINING_SEED + episodes):
        task = cell.reset(seed, kind)
        for _ in range(LONGEST_STEPS):
            if task.is_done(cell.state()):
                break
            action = expert_action(task, cell.state())
            cell.step(action_twist(action), action[6], STEP_S)
            actions.append(action)
    return np.asarray(np.mean(actions, axis=0))


def _nearest_action(task: Task, state: CellState) -> np.ndarray:
    return expert_action(replace(task, target=state.nearest()), state)


def _answer(action: np.ndarray) -> Prediction:
    return as_prediction(action, EXPERT_KEY)
