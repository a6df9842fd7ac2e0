"""The recordings of a run, edited, split and with their statistics: what `loader` draws from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros.action_specs import load_action_spec
from openvla_ros.config.folders import cache_folder
from openvla_ros.data.episode import Episode
from openvla_ros.data.episode_edits import (
    binarize_gripper_actions,
    derive_actions,
    drop_first_steps,
    drop_idle_steps,
    drop_steps,
    drop_steps_without_action,
    drop_unlabelled,
    resample_steps,
)
from openvla_ros.data.fingerprint import fingerprint
from openvla_ros.data.gripper_labels import has_gripper
from openvla_ros.data.oxe_mixtures import dataset_folder, named_mixture
from openvla_ros.data.oxe_transforms import VELOCITY, named_transform
from openvla_ros.data.sources import find_recordings, open_episodes
from openvla_ros.data.statistics import cached_statistics
from openvla_ros.data.topics import read_topic_file
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.action_stats import STATISTICS_FILE, ActionStats, parse_action_stats
from openvla_ros.training.config import DataConfig, SourceConfig

_log = logging.getLogger(__name__)

_GRIPPER_MARGIN, _GRIPPER_SPAN = 0.05, 0.5

Edit = Callable[[Episode], Episode | None]


@dataclass(frozen=True)
class TrainingSet:
    """One source, ready to be trained on.

    Attributes:
        name: Statistics key.
        weight: Relative weight in the mixture, before it is multiplied by the number of steps.
        episodes: Trained on; every step has an action.
        held_out: Never trained on.
        entry: Statistics entry over all episodes, unlabelled ones too, as it is written into the
            result.
        stats: The same, parsed.
        identity: What the steps and pictures come from, as a hash: content and settings.
        dropped: Why steps were left out -> how many; "episodes" counts those with none left.
    """

    name: str
    weight: float
    episodes: Sequence[Episode]
    held_out: Sequence[Episode]
    entry: dict[str, Any]
    stats: ActionStats
    identity: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps that are trained on."""
        return sum(len(episode) for episode in self.episodes)


def open_training_sets(data: DataConfig, seed: int) -> list[TrainingSet]:
    """Return what a run is trained on, in the order of its sources.

    Args:
        data: Sources or a mixture, and what is held out.
        seed: Decides which episodes are held out.

    Raises:
        ConfigurationError: A source that cannot be read, has no step left, or has actions of
            another length than the others.
        StorageError: The cache cannot be written.
    """
    sets = [_open_set(source, data, seed) for source in training_sources(data)]
    lengths = {one.name: one.stats.action_dim for one in sets}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ConfigurationError(
            f"data: the sources have actions of different lengths ({told}). One run trains one "
            "length: leave the others out."
        )
    return sets


def training_sources(data: DataConfig) -> tuple[SourceConfig, ...]:
    """Return the sources of a run; those of a mixture are RLDS datasets of their published names.

    Raises:
        ConfigurationError: A dataset of the mixture is not in its folder.
    """
    if not data.mixture:
        return data.sources
    folder = Path(data.mixture_folder).expanduser()
    return tuple(
        SourceConfig(
            path=str(dataset_folder(folder, name)),
            name=name,
            weight=weight,
            transform=name,
            skip_unlabelled=True,
        )
        for name, weight in named_mixture(data.mixture)
    )


def prepared_folder(data: DataConfig) -> Path:
    """Return where prepared pictures and statistics are kept."""
    return (
        Path(data.cache_folder).expanduser() if data.cache_folder else cache_folder() / "training"
    )


def edits_of(source: SourceConfig) -> list[tuple[str, Edit]]:
    """Return what each episode of a source goes through: what it is called, and the edit.

    Motions add up before idle steps go, so that what a slow step moved is not lost. The gripper is
    binarised while the last step is there, which may be the one that says where it arrives.

    Raises:
        ConfigurationError: The source's actions are velocities, which do not add up.
    """
    edits: list[tuple[str, Edit]] = []
    if source.drop_first_steps:
        edits.append(("first", partial(drop_first_steps, count=source.drop_first_steps)))
    if source.binarize_gripper:
        edits.append(("", binarize_gripper_actions))
    if source.actions == "from_states":
        edits.append(("without a next state", derive_actions))
    if source.resample_hz is not None:
        _require_displacements(source)
        edits.append(("resampled", partial(resample_steps, rate_hz=source.resample_hz)))
    edits.append(("without an action", drop_steps_without_action))
    if source.drop_idle:
        edits.append(("idle", partial(drop_idle_steps, idle_motion=source.idle_motion)))
    return edits


def filters_of(source: SourceConfig) -> list[tuple[str, Edit]]:
    """Return what leaves out steps that count in the statistics all the same, as the reference."""
    filters: list[tuple[str, Edit]] = []
    if source.skip_unlabelled:
        filters.append(("without an instruction", drop_unlabelled))
    is_idle = named_transform(source.transform).is_idle if source.transform else None
    if is_idle is not None:
        filters.append(("idle", partial(drop_steps, is_dropped=is_idle)))
    return filters


def edit_episodes(
    episodes: Sequence[Episode], edits: Sequence[tuple[str, Edit]]
) -> tuple[list[Episode], dict[str, int]]:
    """Return what is left of episodes, and how many steps, and whole "episodes", are not."""
    kept, dropped = [], dict.fromkeys([name for name, _ in edits if name] + ["episodes"], 0)
    for episode in episodes:
        edited: Episode | None = episode
        for name, edit in edits:
            assert edited is not None
            before, edited = len(edited), edit(edited)
            if name:
                dropped[name] += before - (0 if edited is None else len(edited))
            if edited is None:
                dropped["episodes"] += 1
                break
        if edited is not None:
            kept.append(edited)
    return kept, {name: count for name, count in dropped.items() if count}


def split_episodes(
    episodes: Sequence[Episode], share: float, seed: int
) -> tuple[list[Episode], list[Episode]]:
    """Return the episodes to train on and those held out, each in the order they were recorded.

    Of two or more, at least one is held out when a share is asked for, and at least one trained on.
    """
    count = min(max(1, round(share * len(episodes))), len(episodes) - 1) if share else 0
    chosen = set(np.random.default_rng(seed).permutation(len(episodes))[:count].tolist())
    return (
        [episode for i, episode in enumerate(episodes) if i not in chosen],
        [episode for i, episode in enumerate(episodes) if i in chosen],
    )


def _open_set(source: SourceConfig, data: DataConfig, seed: int) -> TrainingSet:
    recorded = _recorded_episodes(source)
    counted, dropped = edit_episodes(recorded, edits_of(source))
    episodes, not_trained = edit_episodes(counted, filters_of(source))
    dropped = {
        name: dropped.get(name, 0) + not_trained.get(name, 0) for name in {**dropped, **not_trained}
    }
    if not episodes:
        raise ConfigurationError(
            f"data.sources, {source.name}: of {len(recorded)} episodes in {source.path} no step is "
            f"left to train on ({_told(dropped)}). Check drop_first_steps, drop_idle and "
            "resample_hz, and that actions and instructions were recorded."
        )
    actions = _joined_actions(counted, source.name)
    mask = np.ones(actions.shape[1], bool)
    if has_gripper(len(mask)):
        mask[-1] = False
        _warn_of_gripper(actions[:, -1], source.name)
    entry = cached_statistics(actions, len(counted), mask, prepared_folder(data) / "statistics")
    training, held_out = split_episodes(episodes, data.held_out, seed)
    _log.info(
        "%s: %d steps of %d episodes to train on, %d episodes held out; steps left out: %s",
        source.name,
        sum(map(len, training)),
        len(training),
        len(held_out),
        _told(dropped),
    )
    return TrainingSet(
        name=source.name,
        weight=source.weight,
        episodes=training,
        held_out=held_out,
        entry=entry,
        stats=parse_action_stats(source.name, entry, STATISTICS_FILE),
        identity=_identity(source),
        dropped=dropped,
    )


def _recorded_episodes(source: SourceConfig) -> list[Episode]:
    """The episodes of all recordings of a source, by names that differ."""
    recordings = find_recordings(Path(source.path).expanduser())
    topics = read_topic_file(Path(source.topics).expanduser()) if source.topics else None
    recorded = []
    for path in recordings:
        episodes = open_episodes(
            path,
            topics=topics,
            camera=source.camera,
            rate_hz=source.rate_hz,
            pose_key=source.pose_key,
            keep_unlabelled=source.skip_unlabelled,
            transform=source.transform,
            jpeg_as_tensorflow=source.jpeg_as_tensorflow,
        )
        prefix = f"{path.name}_" if len(recordings) > 1 else ""
        recorded += [replace(episode, name=prefix + episode.name) for episode in episodes]
    return recorded


def _joined_actions(episodes: Sequence[Episode], name: str) -> np.ndarray:
    """(N, n) of all steps."""
    lengths = {episode.actions.shape[1]: episode.name for episode in episodes}
    if len(lengths) > 1:
        told = ", ".join(f"{length} in {episode}" for length, episode in lengths.items())
        raise ConfigurationError(
            f"data.sources, {name}: the actions are of different lengths ({told}). Make a source "
            "of each kind, and train on one of them."
        )
    return np.concatenate([episode.actions for episode in episodes])


def _warn_of_gripper(gripper: np.ndarray, name: str) -> None:
    """It is not normalised, so that its unit is the policy's: a width in metres is always 0."""
    low, high = float(gripper.min()), float(gripper.max())
    if low < -_GRIPPER_MARGIN or high > 1.0 + _GRIPPER_MARGIN or 0.0 < high - low < _GRIPPER_SPAN:
        _log.warning(
            "%s: the gripper goes from %g to %g. It is trained as it is, and OpenVLA's goes from 0 "
            "(closed) to 1 (open): see openvla-ros audit.",
            name,
            low,
            high,
        )


def _require_displacements(source: SourceConfig) -> None:
    is_velocity = load_action_spec(source.name).kind == "eef_velocity"
    if source.transform:
        is_velocity = VELOCITY in named_transform(source.transform).features
    if is_velocity and source.actions == "recorded":
        raise ConfigurationError(
            f"data.sources, {source.name}: resample_hz adds motions up, and these actions are "
            "velocities. Leave it out, or use actions: from_states."
        )


def _identity(source: SourceConfig) -> str:
    """A hash of the content of a source and of all settings that decide about its steps."""
    apart = ("path", "name", "weight", "action_spec")
    settings = {k: v for k, v in asdict(source).items() if k not in apart}
    if source.topics:
        settings["topics"] = fingerprint(Path(source.topics).expanduser())
    content = fingerprint(Path(source.path).expanduser())
    return hashlib.sha256(f"{content} {sorted(settings.items())}".encode()).hexdigest()


def _told(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in dropped.items()) or "none"
