"""The episodes of an audit as columns, and what was recorded at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from openvla_ros.data.episode import Episode
from openvla_ros.evaluation.audit import gripper, motion
from openvla_ros.evaluation.audit.pictures import PictureFacts
from openvla_ros.types import ActionSpec, Finding

SECTION = "Recording"
LISTED = 5  # episodes named in a finding


@dataclass(frozen=True)
class EpisodeRow:
    """One line of the table of episodes.

    Attributes:
        episode: Name.
        source: What it was read from.
        instruction: As recorded.
        steps: How many.
        steps_without_action: Those whose action was not recorded.
        idle_share: Of the steps that are pauses; None where the units are not known.
        longest_pause_s: Likewise.
        gripper_events: Changes between open and closed; None where the gripper is not known.
        repeated_frames: Frames that equal the one before.
    """

    episode: str
    source: str
    instruction: str
    steps: int
    steps_without_action: int
    idle_share: float | None
    longest_pause_s: float | None
    gripper_events: int | None
    repeated_frames: int


class Recording:
    """All episodes as columns: what the checks take."""

    def __init__(
        self, episodes: Sequence[Episode], pictures: Sequence[PictureFacts], spec: ActionSpec
    ) -> None:
        self.episodes, self.pictures, self.spec = episodes, pictures, spec
        self.names = _unique_names(episodes)
        self.actions = [episode.actions for episode in episodes]
        self.rates_hz = [episode.rate_hz for episode in episodes]
        self.is_eef = episodes[0].actions.shape[1] == motion.EEF_DIM

    @property
    def knows_units(self) -> bool:
        """Whether an action is a displacement in metres and radians."""
        spec = self.spec
        return self.is_eef and None not in (spec.translation_unit_m, spec.rotation_unit_rad)

    @property
    def knows_gripper(self) -> bool:
        """Whether it is known which number is open and which closed."""
        spec = self.spec
        return self.is_eef and None not in (spec.gripper_open, spec.gripper_closed)

    def pauses(self, index: int) -> np.ndarray:
        """(T,) bool; without units, only what is exactly zero is a pause."""
        actions = self.actions[index]
        if self.knows_units:
            return motion.find_pauses(actions, self.rates_hz[index], self.spec)
        return (actions == 0).all(axis=1)

    def moving(self, index: int) -> np.ndarray:
        """(T,) bool: an action before this frame has moved the arm."""
        moves = ~self.pauses(index) & np.isfinite(self.actions[index]).all(axis=1)
        return np.concatenate([[False], moves[:-1]])

    def finite_actions(self) -> np.ndarray:
        """(N, n): those that were recorded whole."""
        actions = np.concatenate(self.actions)
        return actions[np.isfinite(actions).all(axis=1)]


def _unique_names(episodes: Sequence[Episode]) -> list[str]:
    """The names of the episodes; with their source where several are audited as one."""
    if len({episode.source for episode in episodes}) < 2:
        return [episode.name for episode in episodes]
    return [f"{episode.source}: {episode.name}" for episode in episodes]


def judge_recording(recording: Recording) -> list[Finding]:
    """Return what is to be said about steps without an action."""
    actions = np.concatenate(recording.actions)
    absent = np.isnan(actions).all(axis=1)
    damaged = ~np.isfinite(actions).all(axis=1) & ~absent
    value = f"{len(actions)} steps in {len(recording.episodes)} episodes"
    findings = [Finding(SECTION, "episodes", value)]
    if absent.any():
        reason = (
            "Their images have no action. Without any, nothing can be trained or compared; is the "
            "action topic named, and did it publish?"
        )
        level = "problem" if absent.all() else "warn"
        value = f"{int(absent.sum())} of {len(actions)} steps"
        findings.append(Finding(SECTION, "steps without action", value, reason, level))
    if damaged.any():
        names = [
            name
            for name, episode in zip(recording.names, recording.episodes, strict=True)
            if (np.isnan(episode.actions).any(1) ^ np.isnan(episode.actions).all(1)).any()
            or np.isinf(episode.actions).any()
        ]
        reason = f"They hold NaN or infinity beside numbers. In: {', '.join(names[:LISTED])}."
        value = f"{int(damaged.sum())} of {len(actions)} steps"
        findings.append(Finding(SECTION, "damaged actions", value, reason, "problem"))
    return findings


def episode_rows(recording: Recording) -> Iterator[EpisodeRow]:
    """Yield the table of episodes, in the order of reading."""
    for index, episode in enumerate(recording.episodes):
        pauses = recording.pauses(index) if recording.knows_units else None
        yield EpisodeRow(
            episode=episode.name,
            source=episode.source,
            instruction=episode.instruction,
            steps=len(episode),
            steps_without_action=int((~np.isfinite(episode.actions)).any(axis=1).sum()),
            idle_share=None if pauses is None else float(pauses.mean()),
            longest_pause_s=None
            if pauses is None
            else motion.longest_run(pauses) / episode.rate_hz,
            gripper_events=_events(episode, recording) if recording.knows_gripper else None,
            repeated_frames=int(recording.pictures[index].is_repeated.sum()),
        )


def _events(episode: Episode, recording: Recording) -> int:
    spec = recording.spec
    assert spec.gripper_open is not None and spec.gripper_closed is not None
    span = spec.gripper_open - spec.gripper_closed
    opening = (episode.actions[:, gripper.GRIPPER] - spec.gripper_closed) / span
    return len(gripper.gripper_changes(opening))
