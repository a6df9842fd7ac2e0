"""What a recording goes through before it is trained on: steps left out, actions made anew.

Each function takes an episode and returns another one, or None when no step is left; pictures are
still read one at a time, and only when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from openvla_ros.data.episode import Episode
from openvla_ros.data.gripper_labels import POSE_DIM, binarize_gripper, has_gripper
from openvla_ros.errors import ConfigurationError


def drop_first_steps(episode: Episode, count: int) -> Episode | None:
    """Return the episode without its first `count` steps."""
    return _keep(episode, np.arange(count, len(episode)))


def drop_steps_without_action(episode: Episode) -> Episode | None:
    """Return the steps whose action was recorded."""
    return _keep(episode, np.flatnonzero(np.isfinite(episode.actions).all(axis=1)))


def drop_steps(episode: Episode, is_dropped: Callable[[np.ndarray], np.ndarray]) -> Episode | None:
    """Return the steps whose action is not dropped: (T, n) actions to (T,) bool."""
    return _keep(episode, np.flatnonzero(~is_dropped(episode.actions)))


def drop_unlabelled(episode: Episode) -> Episode | None:
    """Return the episode if it has an instruction."""
    return episode if episode.instruction.strip() else None


def derive_actions(episode: Episode) -> Episode | None:
    """Return the episode with what the pose does until the next step in place of the commands.

    The gripper is the recorded command. The last step has no next one and is left out.

    Raises:
        ConfigurationError: No pose was recorded, or the actions are not seven numbers.

    Source: openvla @ c8f03f4, relabel_bridge_actions.
    """
    where = f"{episode.name} of {episode.source}"
    if episode.states is None or episode.states.shape[1] < POSE_DIM:
        raise ConfigurationError(
            f"{where} has no pose of the end effector, and actions: from_states needs it. Name it "
            "(pose_key, or ee_pose in the topic file), or use actions: recorded."
        )
    if episode.actions.shape[1] != POSE_DIM + 1:
        raise ConfigurationError(
            f"{where} has actions of {episode.actions.shape[1]} numbers; actions: from_states "
            f"makes {POSE_DIM + 1}. Use actions: recorded."
        )
    moved = np.diff(episode.states[:, :POSE_DIM], axis=0)
    actions = np.concatenate([moved, episode.actions[:-1, POSE_DIM:]], axis=1)
    return _keep(episode, np.arange(len(episode) - 1), actions)


def binarize_gripper_actions(episode: Episode) -> Episode:
    """Return the episode with a gripper of 0 or 1: one on its way counts as where it arrives.

    Steps without an action stay without one.

    Raises:
        ConfigurationError: The actions have no gripper.
    """
    if not has_gripper(episode.actions.shape[1]):
        raise ConfigurationError(
            f"{episode.name} of {episode.source} has actions of {POSE_DIM} numbers, and none is a "
            "gripper: set binarize_gripper to false."
        )
    actions = episode.actions.copy()
    known = np.isfinite(actions[:, -1])
    actions[known, -1] = binarize_gripper(actions[known, -1])
    return replace(episode, actions=actions)


def drop_idle_steps(episode: Episode, idle_motion: float) -> Episode | None:
    """Return the steps that move, or change the gripper.

    Args:
        episode: Every step with an action.
        idle_motion: Norm of all numbers but the gripper below which a step does not move.

    Source: openvla @ c8f03f4, is_noop in regenerate_libero_dataset.
    """
    motions, gripper = _parts(episode)
    moves = np.linalg.norm(motions, axis=1) >= idle_motion
    kept: list[int] = []
    for step in range(len(episode)):
        changes = bool(kept) and not np.array_equal(gripper[step], gripper[kept[-1]])
        if moves[step] or changes:
            kept.append(step)
    return _keep(episode, np.array(kept, np.int64))


def resample_steps(episode: Episode, rate_hz: float) -> Episode | None:
    """Return the episode at a lower rate: of each group of steps the first picture, all motion.

    Motions add up, rotations too, number by number, as differences of poses do; that is right for
    displacements of six numbers, not for velocities or other forms of a rotation. The gripper is
    the last of the group. A group that the end of the episode cuts short is left out, since its
    motion is not all there; a step without an action makes a group without one.

    Raises:
        ConfigurationError: The rate is higher than the episode's, or the rotation has more than
            three numbers.
    """
    motions, gripper = _parts(episode)
    if motions.shape[1] > POSE_DIM:
        raise ConfigurationError(
            f"{episode.name} of {episode.source} has actions of {episode.actions.shape[1]} "
            "numbers: their rotations do not add up. Leave resample_hz out."
        )
    ratio = episode.rate_hz / rate_hz
    if ratio < 1.0:
        raise ConfigurationError(
            f"{episode.name} of {episode.source} has {episode.rate_hz:g} steps per second; "
            f"resample_hz {rate_hz:g} is more. Give at most {episode.rate_hz:g}."
        )
    bounds = np.rint(np.arange(int(len(episode) / ratio) + 2) * ratio).astype(np.int64)
    bounds = bounds[bounds <= len(episode)]
    if len(bounds) < 2:
        return None
    starts, ends = bounds[:-1], bounds[1:]
    sums = np.add.reduceat(motions[: bounds[-1]], starts, axis=0)
    actions = np.concatenate([sums, gripper[ends - 1]], axis=1)
    thinned = _keep(episode, starts, actions)
    return None if thinned is None else replace(thinned, rate_hz=rate_hz)


@dataclass(frozen=True)
class _KeptImages:
    """The pictures of some steps of an episode; called, it reads anew."""

    open_images: Callable[[], Iterator[np.ndarray]]
    steps: np.ndarray  # (K,) int64, increasing

    def __call__(self) -> Iterator[np.ndarray]:
        """Yield K pictures, (H, W, 3) uint8 RGB, one at a time."""
        images = self.open_images()
        read = 0
        for step in self.steps.tolist():
            yield next(islice(images, step - read, None))
            read = step + 1


def _parts(episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Motions (T, n) and gripper (T, 1), or (T, 0) where there is none."""
    numbers = episode.actions.shape[1]
    split = numbers - 1 if has_gripper(numbers) else numbers
    return episode.actions[:, :split], episode.actions[:, split:]


def _keep(episode: Episode, steps: np.ndarray, actions: np.ndarray | None = None) -> Episode | None:
    """Return the episode with some of its steps; `actions` (K, n) replace theirs when given."""
    if len(steps) == 0:
        return None
    if len(steps) == len(episode) and actions is None:
        return episode
    return replace(
        episode,
        stamps_ns=episode.stamps_ns[steps],
        actions=episode.actions[steps] if actions is None else actions,
        open_images=_KeptImages(episode.open_images, steps),
        states=None if episode.states is None else episode.states[steps],
    )
