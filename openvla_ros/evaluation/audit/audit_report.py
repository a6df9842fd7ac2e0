"""What is wrong with a recording, before a policy learns it or is judged by it.

Every check is a measurement (numbers) and a judgement of it (findings), one file per noun. This
file brings the episodes to them: it reads each one once, and of its frames it keeps a few sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from openvla_ros.data.episode import Episode
from openvla_ros.errors import ActionStatsError, ConfigurationError
from openvla_ros.evaluation.audit import (
    gripper,
    language,
    motion,
    pictures,
    scale,
    timing,
    tracking,
)
from openvla_ros.evaluation.audit.pictures import PictureFacts
from openvla_ros.evaluation.audit.recording import (
    EpisodeRow,
    Recording,
    episode_rows,
    judge_recording,
)
from openvla_ros.model.action_stats import ActionStats, resolve_unnorm_key
from openvla_ros.types import ActionSpec, Finding

FORMAT = 1  # of audit.json
MOST_SAMPLES = 4  # frames in the report
NO_EEF = "These actions are not x y z roll pitch yaw gripper."


@dataclass(frozen=True)
class AuditReport:
    """What an audit has found.

    Attributes:
        unnorm_key: The key that the spec and the scale are of; "" = none was chosen.
        findings: In the order of the sections.
        episodes: One row each, in the order of reading.
        measured: Check to the numbers that were judged; None for a check that was not possible.
        samples: One frame of up to four episodes, (H, W, 3) uint8 RGB, with the episode's name.
    """

    unnorm_key: str
    findings: tuple[Finding, ...]
    episodes: tuple[EpisodeRow, ...]
    measured: Mapping[str, Any]
    samples: tuple[tuple[str, np.ndarray], ...] = ()

    @property
    def has_problems(self) -> bool:
        """Whether something is wrong beyond a drawback."""
        return any(finding.level == "problem" for finding in self.findings)

    @property
    def steps(self) -> int:
        """Of all episodes."""
        return sum(row.steps for row in self.episodes)

    def to_dict(self) -> dict[str, Any]:
        """Return what audit.json holds (docs/audit.md); arrays and NaN are left to the writer."""
        return {
            "format": FORMAT,
            "unnorm_key": self.unnorm_key or None,
            "usable": not self.has_problems,
            "episodes": len(self.episodes),
            "steps": self.steps,
            "findings": [asdict(finding) for finding in self.findings],
            "measured": dict(self.measured),
            "per_episode": [asdict(row) for row in self.episodes],
        }


@dataclass
class _Collected:
    """What is kept of the episodes while they are read."""

    episodes: list[Episode]
    pictures: list[PictureFacts] = field(default_factory=list)
    samples: list[tuple[str, np.ndarray]] = field(default_factory=list)


def audit_episodes(
    episodes: Iterable[Episode],
    spec: ActionSpec,
    norm_stats: Mapping[str, ActionStats],
    unnorm_key: str | None,
    *,
    on_episode: Callable[[str], None] | None = None,
) -> AuditReport:
    """Return what can be found out about a recording.

    Args:
        episodes: Read once; of the frames one at a time is in memory.
        spec: What the actions mean. A field that is None leaves out the checks that need it.
        norm_stats: Statistics of a checkpoint; {} leaves out the check of scale.
        unnorm_key: The key to compare with; None = a sole one.
        on_episode: Told the name of every episode whose frames were read.

    Raises:
        ConfigurationError: There is no episode, or actions of different lengths.
        ActionStatsError: The key is unknown, or its actions have another length.
        OpenVLAError: An image cannot be read.
    """
    collected = _Collected(list(episodes))
    # Before the pictures, which may take minutes.
    stats = _stats(norm_stats, unnorm_key, _require_one_length(collected.episodes))
    for episode in collected.episodes:
        collected.pictures.append(pictures.look_at(_first_kept(episode, collected)))
        if on_episode is not None:
            on_episode(episode.name)
    recording = Recording(collected.episodes, collected.pictures, spec)
    measured: dict[str, Any] = {}
    findings = [
        *judge_recording(recording),
        *_timing(recording, measured),
        *_motion(recording, measured),
        *_gripper(recording, measured),
        *_scale(recording, norm_stats, stats, measured),
        *_tracking(recording, measured),
        *_pictures(recording, measured),
        *_language(recording, measured),
    ]
    return AuditReport(
        unnorm_key=stats.unnorm_key if stats is not None else spec.unnorm_key,
        findings=tuple(findings),
        episodes=tuple(episode_rows(recording)),
        measured=measured,
        samples=tuple(collected.samples),
    )


def _first_kept(episode: Episode, collected: _Collected) -> Iterable[np.ndarray]:
    """The frames of an episode; the first one is kept for the report, of a few episodes."""
    for index, image in enumerate(episode.open_images()):
        if index == 0 and len(collected.samples) < MOST_SAMPLES:
            collected.samples.append((episode.name, image.copy()))
        yield image


def _require_one_length(episodes: list[Episode]) -> int:
    if not episodes:
        raise ConfigurationError(
            "there is no episode to audit. Check the source, and how episodes are split."
        )
    by_length = {episode.actions.shape[1]: episode.name for episode in episodes}
    if len(by_length) > 1:
        listed = ", ".join(f"{length} ({name})" for length, name in sorted(by_length.items()))
        raise ConfigurationError(
            f"episodes have actions of different lengths: {listed}. Audit these sources one by one."
        )
    return next(iter(by_length))


def _stats(
    norm_stats: Mapping[str, ActionStats], unnorm_key: str | None, action_dim: int
) -> ActionStats | None:
    if not norm_stats:
        return None
    stats = norm_stats[resolve_unnorm_key(norm_stats, unnorm_key)]
    if stats.action_dim != action_dim:
        raise ActionStatsError(
            f"the recorded actions have {action_dim} numbers, and the statistics key "
            f"{stats.unnorm_key!r} has {stats.action_dim}. Choose the key of this robot, or name "
            "the columns of the action in the topic file."
        )
    return stats


def _not_possible(section: str, item: str, why: str) -> Finding:
    return Finding(section, item, "n/a", why)


def _timing(recording: Recording, measured: dict[str, Any]) -> list[Finding]:
    stamps = [episode.stamps_ns for episode in recording.episodes]
    facts = timing.measure_timing(stamps, recording.rates_hz)
    measured["timing"] = asdict(facts)
    return timing.judge_timing(facts, recording.spec.action_hz)


def _motion(recording: Recording, measured: dict[str, Any]) -> list[Finding]:
    measured["idle"] = None
    if not recording.is_eef:
        return [_not_possible(motion.SECTION, "idle share", NO_EEF)]
    if not recording.knows_units:
        why = "The units of a step are not known: give --unnorm-key of a described dataset."
        return [_not_possible(motion.SECTION, "idle share", why)]
    idle = motion.measure_idle(
        recording.names, recording.actions, recording.rates_hz, recording.spec
    )
    measured["idle"] = {
        "share": idle.share,
        "longest_s": idle.longest_s,
        "episodes": [asdict(row) for row in idle.episodes],
    }
    return motion.judge_idle(idle)


def _gripper(recording: Recording, measured: dict[str, Any]) -> list[Finding]:
    measured["gripper"] = None
    if not recording.is_eef:
        return [_not_possible(gripper.SECTION, "gripper polarity", NO_EEF)]
    if not recording.knows_gripper:
        why = "What open and closed are is not known: give --unnorm-key of a described dataset."
        return [_not_possible(gripper.SECTION, "gripper polarity", why)]
    column = gripper.GRIPPER
    facts = gripper.measure_gripper(
        recording.names,
        [actions[:, column] for actions in recording.actions],
        [
            episode.states[:, column]
            if episode.states is not None and episode.states.shape[1] > column
            else None
            for episode in recording.episodes
        ],
        recording.rates_hz,
        recording.spec,
    )
    if facts is None:
        why = "No action was recorded."
        return [_not_possible(gripper.SECTION, "gripper polarity", why)]
    measured["gripper"] = asdict(facts)
    return gripper.judge_gripper(facts, recording.spec)


def _scale(
    recording: Recording,
    norm_stats: Mapping[str, ActionStats],
    stats: ActionStats | None,
    measured: dict[str, Any],
) -> list[Finding]:
    measured["scale"] = None
    if stats is None:
        why = "Give --checkpoint: the folder whose statistics the actions must fit."
        return [_not_possible(scale.SECTION, "action scale", why)]
    actions = recording.finite_actions()
    if not len(actions):
        return [_not_possible(scale.SECTION, "action scale", "No action was recorded.")]
    facts = scale.measure_scale(actions, norm_stats, stats.unnorm_key)
    measured["scale"] = asdict(facts)
    return scale.judge_scale(facts, len(actions))


def _tracking(recording: Recording, measured: dict[str, Any]) -> list[Finding]:
    measured["tracking"] = None
    pairs = [
        (episode.actions, episode.states)
        for episode in recording.episodes
        if episode.states is not None and episode.states.shape[1] >= motion.EEF_DIM - 1
    ]
    item = "states follow actions"
    if not recording.is_eef:
        return [_not_possible(tracking.SECTION, item, NO_EEF)]
    if not pairs:
        why = "The recording has no pose of the end effector (state in the topic file)."
        return [_not_possible(tracking.SECTION, item, why)]
    facts = tracking.measure_tracking(
        [actions for actions, _ in pairs],
        [states for _, states in pairs],
        float(np.median(recording.rates_hz)),
        recording.spec,
    )
    if facts is None:
        why = f"At least {tracking.LEAST_STEPS} steps of motion are needed."
        return [_not_possible(tracking.SECTION, item, why)]
    measured["tracking"] = asdict(facts)
    return tracking.judge_tracking(facts)


def _pictures(recording: Recording, measured: dict[str, Any]) -> list[Finding]:
    facts = recording.pictures
    colours = pictures.measure_colours(facts)
    measured["colours"] = None if colours is None else asdict(colours)
    if colours is None:
        return [_not_possible(pictures.SECTION, "colour order", "There are no frames.")]
    indices = range(len(facts))
    return [
        pictures.judge_sizes(facts),
        *pictures.judge_repeats(
            recording.names,
            [row.is_repeated for row in facts],
            [recording.moving(i)[: len(facts[i].is_repeated)] for i in indices],
            recording.rates_hz,
        ),
        pictures.judge_colours(colours, pictures.colour_reference()),
    ]


def _language(recording: Recording, measured: dict[str, Any]) -> list[Finding]:
    facts = language.measure_language(
        recording.names,
        [episode.instruction for episode in recording.episodes],
        [len(episode) for episode in recording.episodes],
    )
    measured["language"] = asdict(facts)
    return language.judge_language(facts)
