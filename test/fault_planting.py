"""Faults of a pipeline, planted one at a time: into recordings, or around a policy.

What `planted_faults.py` measures and `test_planted_faults.py` asserts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from bridge_episodes import EPISODES, octo_episodes

from openvla_ros.data.episode import Episode
from openvla_ros.data.npz_episodes import npz_episodes
from openvla_ros.evaluation.audit.audit_report import audit_episodes
from openvla_ros.evaluation.diagnosis.diagnosis import diagnose
from openvla_ros.evaluation.diagnosis.probes import ProbeResult, run_probes
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.replay.episode_answers import answer_episode
from openvla_ros.model.random_weights import BRIDGE_STATISTICS
from openvla_ros.policy import OpenVLAPolicy
from openvla_ros.ros.frame_sources import shared_data_folder
from openvla_ros.types import PRIMARY, ActionSpec, Finding, Observation, Policy, Prediction

KEY, WRONG_KEY, NEAR_KEY = "bridge_orig", "fractal20220817_data", "octo_debug"
_MASK = [True] * 6 + [False]
#: As published with openvla-7b.
_FRACTAL = {
    "q01": [
        -0.22453527510166169,
        -0.14820013284683228,
        -0.231589707583189,
        -0.3517994859814644,
        -0.4193011274933815,
        -0.43643461108207704,
        0.0,
    ],
    "q99": [
        0.17824687153100965,
        0.14938379630446405,
        0.21842354819178575,
        0.5892666035890578,
        0.35272657424211445,
        0.44796681255102094,
        1.0,
    ],
    "mask": _MASK,
}


def statistics_of_three_datasets() -> dict[str, Any]:
    """Return the key that is right, one of another robot, and one so near that it is no fault.

    The last are the quantiles of the episodes themselves: half of bridge_orig's.
    """
    motion = np.concatenate([episode.actions for episode in octo_episodes()])[:, :6]
    low, high = (np.quantile(motion, share, axis=0).tolist() for share in (0.01, 0.99))
    near = {"q01": [*low, 0.0], "q99": [*high, 1.0], "mask": _MASK}
    return {**BRIDGE_STATISTICS, WRONG_KEY: {"action": _FRACTAL}, NEAR_KEY: {"action": near}}


def recorded_episodes(camera: int = 0) -> list[Episode]:
    """Return the episodes of `octo_episodes`, read as a user's."""
    data = shared_data_folder()
    assert data is not None
    return npz_episodes(data / EPISODES, camera=f"image_{camera}", rate_hz=5.0)


@dataclass(frozen=True)
class Fault:
    """One way in which a pipeline is broken.

    Attributes:
        name: For the table.
        planted: What is done, in words.
        item: Finding of the replay that names it.
        spoil: Makes the faulty recording of a sound one.
        wrap: Makes the faulty policy of a sound one.
        unnorm_key: Statistics that the policy is loaded with.
    """

    name: str
    planted: str
    item: str
    spoil: Callable[[Episode], Episode] = lambda episode: episode
    wrap: Callable[[Policy], Policy] = lambda policy: policy
    unnorm_key: str = KEY


class _Deprived(Policy):
    """A policy whose observations lose something on their way."""

    def __init__(self, policy: Policy, lose: Callable[[Observation], Observation]) -> None:
        self._policy, self._lose = policy, lose

    def predict(self, observation: Observation) -> Prediction:
        return self._policy.predict(self._lose(observation))


class Remembering(Policy):
    """A policy that answers what it was asked before from memory: faults share most questions."""

    def __init__(self, policy: OpenVLAPolicy) -> None:
        self.policy = policy
        self._known: dict[tuple[bytes, str], Prediction] = {}

    def predict(self, observation: Observation) -> Prediction:
        question = (observation.images[PRIMARY].tobytes(), observation.instruction)
        if question not in self._known:
            self._known[question] = self.policy.predict(observation)
        return self._known[question]


def _blind(policy: Policy) -> Policy:
    def lose(seen: Observation) -> Observation:
        return replace(seen, images={PRIMARY: np.zeros_like(seen.images[PRIMARY])})

    return _Deprived(policy, lose)


def _deaf(policy: Policy) -> Policy:
    return _Deprived(policy, lambda seen: replace(seen, instruction="put carrot on plate"))


def _pictures(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Episode], Episode]:
    def spoil(episode: Episode) -> Episode:
        def images() -> Iterator[np.ndarray]:
            return (np.ascontiguousarray(change(image)) for image in episode.open_images())

        return replace(episode, open_images=images)

    return spoil


def _actions(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Episode], Episode]:
    return lambda episode: replace(episode, actions=change(episode.actions.copy()))


def _inverted(actions: np.ndarray) -> np.ndarray:
    actions[:, 6] = 1.0 - actions[:, 6]
    return actions


def _scaled(actions: np.ndarray) -> np.ndarray:
    actions[:, :6] *= 5.0
    return actions


def _delayed(actions: np.ndarray) -> np.ndarray:
    return np.concatenate([np.full_like(actions[:1], np.nan), actions[:-1]])


def _advanced(actions: np.ndarray) -> np.ndarray:
    return np.concatenate([actions[1:], np.full_like(actions[:1], np.nan)])


FAULTS = (
    Fault(
        "BGR",
        "red and blue of every frame exchanged",
        "colour order",
        _pictures(lambda i: i[:, :, ::-1]),
    ),
    Fault(
        "horizontal flip", "frames mirrored", "mirrored picture", _pictures(lambda i: i[:, ::-1])
    ),
    Fault("180°", "frames turned", "upside-down picture", _pictures(lambda i: i[::-1, ::-1])),
    Fault(
        "gripper inverted",
        "recorded gripper g became 1 - g",
        "gripper polarity",
        _actions(_inverted),
    ),
    Fault("wrong key", f"policy loaded with `{WRONG_KEY}`", "statistics key", unnorm_key=WRONG_KEY),
    Fault(
        "actions one step late", "row t holds the action of t - 1", "time shift", _actions(_delayed)
    ),
    Fault(
        "actions one step early",
        "row t holds the action of t + 1",
        "time shift",
        _actions(_advanced),
    ),
    Fault("delta × 5", "recorded motion times 5", "action scale", _actions(_scaled)),
    Fault("blind model", "the policy gets black frames", "sight", wrap=_blind),
    Fault("deaf model", "the policy gets one instruction for all", "hearing", wrap=_deaf),
)


@dataclass(frozen=True)
class Outcome:
    """What both commands say of a set of episodes.

    Attributes:
        replay: Findings of the diagnosis.
        audit: Findings of the audit.
        records: Answers to every step.
        probes: Answers to the probes.
    """

    replay: list[Finding]
    audit: list[Finding]
    records: list[EpisodeRecord]
    probes: ProbeResult

    @property
    def named(self) -> list[str]:
        """Items that the replay calls a problem."""
        return [finding.item for finding in self.replay if finding.level == "problem"]

    @property
    def named_by_audit(self) -> list[str]:
        """Items that the audit calls a problem."""
        return [finding.item for finding in self.audit if finding.level == "problem"]


class Cell:
    """The policy of one checkpoint, with its statistics key right or wrong."""

    def __init__(self, checkpoint: Path, *, seed: int = 0) -> None:
        self.seed = seed
        self._policies = {
            key: Remembering(
                OpenVLAPolicy.from_pretrained(
                    checkpoint, device="cpu", dtype="float32", drafts=False, unnorm_key=key
                )
            )
            for key in (KEY, WRONG_KEY)
        }

    def run(
        self, episodes: Sequence[Episode], fault: Fault | None = None, *, most_frames: int = 64
    ) -> Outcome:
        """Return what is found in episodes with a fault, or without."""
        fault = fault or Fault("none", "nothing", "")
        faulty = [fault.spoil(episode) for episode in episodes]
        sound = self._policies[fault.unnorm_key]
        policy = fault.wrap(sound)
        stats = sound.policy.norm_stats[fault.unnorm_key]
        records = [answer_episode(policy, episode, stats) for episode in faulty]
        probes = run_probes(policy, faulty, seed=self.seed, most_frames=most_frames)
        spec = sound.policy.action_spec
        audit = audit_episodes(faulty, spec, sound.policy.norm_stats, fault.unnorm_key)
        return Outcome(
            self.diagnose(records, probes, fault.unnorm_key), list(audit.findings), records, probes
        )

    def diagnose(
        self, records: Sequence[EpisodeRecord], probes: ProbeResult, key: str = KEY
    ) -> list[Finding]:
        """Return the diagnosis of some answers."""
        policy = self._policies[key].policy
        spec: ActionSpec = policy.action_spec
        return diagnose(
            records,
            probes,
            spec,
            policy.norm_stats,
            key,
            policy.action_tokenizer,
            seed=self.seed,
        )

    def false_alarms(
        self, clean: Outcome, size: int, choices: int
    ) -> tuple[int, list[tuple[str, ...]]]:
        """Return how often a verdict was possible, and the problems named, among some episodes.

        Args:
            clean: Answers to episodes without a fault.
            size: Episodes to draw.
            choices: Draws.
        """
        random = np.random.default_rng(self.seed)
        judged, alarms = 0, []
        for _ in range(choices):
            drawn = random.choice(len(clean.records), size, replace=False)
            records = [clean.records[i] for i in drawn]
            probes = probes_of(clean.probes, {record.episode for record in records})
            findings = self.diagnose(records, probes)
            judged += sum(finding.value != "cannot be judged" for finding in findings)
            named = tuple(finding.item for finding in findings if finding.level == "problem")
            alarms += [named] if named else []
        return judged, alarms


def probes_of(probes: ProbeResult, episodes: set[str]) -> ProbeResult:
    """Return the frames of some episodes."""
    keep = np.array([name in episodes for name in probes.episodes])

    def cut(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: array[keep] for name, array in value.items()}
        if isinstance(value, np.ndarray):
            return value[keep]
        return tuple(x for x, kept in zip(value, keep, strict=True) if kept)

    values = {f.name: getattr(probes, f.name) for f in fields(probes)}
    return ProbeResult(**{n: v if isinstance(v, str) else cut(v) for n, v in values.items()})
