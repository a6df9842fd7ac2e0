"""All steps of all records, one below the other: what every figure is computed from.

Records come in any order; stacked they are in one, so that the same records give the same figures
to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openvla_ros.errors import ActionStatsError, ConfigurationError
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.model.action_stats import ActionStats, normalize
from openvla_ros.model.action_tokenizer import ActionTokenizer


@dataclass(frozen=True)
class Recordings:
    """What was recorded at N steps, n numbers each.

    Attributes:
        episode: (N,) int64: which of the stacked records a step belongs to; not decreasing.
        step: (N,) int64: index of the step in its episode.
        rate_hz: (N,) float64: steps per second of its episode.
        actions: (N, n) float64, dataset units; NaN where a number was not recorded.
        normalized: (N, n) float64 as training shows it to the model; NaN as in `actions`.
        token_ids: (N, n) int64: the label that training would use; means nothing where NaN.
    """

    episode: np.ndarray
    step: np.ndarray
    rate_hz: np.ndarray
    actions: np.ndarray
    normalized: np.ndarray
    token_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.episode)

    def at(self, rows: np.ndarray) -> Recordings:
        """Return the steps that a mask or indices (increasing) name."""
        return Recordings(
            self.episode[rows],
            self.step[rows],
            self.rate_hz[rows],
            self.actions[rows],
            self.normalized[rows],
            self.token_ids[rows],
        )


@dataclass(frozen=True)
class Answers:
    """What a policy, or a baseline, answers to N steps.

    Attributes:
        actions: (N, n) float64, dataset units. Numbers that are not finite have no error.
        normalized: (N, n) float64 in [-1, 1].
        token_ids: (N, n) int64.
        is_valid: (N,) bool: every id is an action token, and every number finite.
    """

    actions: np.ndarray
    normalized: np.ndarray
    token_ids: np.ndarray
    is_valid: np.ndarray

    def at(self, rows: np.ndarray) -> Answers:
        """Return the steps that a mask or indices name."""
        return Answers(
            self.actions[rows], self.normalized[rows], self.token_ids[rows], self.is_valid[rows]
        )


@dataclass(frozen=True)
class StackedRecords:
    """E records of N steps together, by source and name of the episode.

    Attributes:
        records: The E records, in the order of `recordings.episode`.
        recordings: What was recorded.
        answers: What the policy answered.
        stamps_ns: (N,) int64: when the image of each step was taken.
        latency_ms: (N,) float64.
    """

    records: tuple[EpisodeRecord, ...]
    recordings: Recordings
    answers: Answers
    stamps_ns: np.ndarray
    latency_ms: np.ndarray

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def at(self, rows: np.ndarray) -> StackedRecords:
        """Return the steps that a mask or indices (increasing) name, of the same records."""
        return StackedRecords(
            self.records,
            self.recordings.at(rows),
            self.answers.at(rows),
            self.stamps_ns[rows],
            self.latency_ms[rows],
        )


def stack_records(
    records: Sequence[EpisodeRecord], stats: ActionStats, tokenizer: ActionTokenizer
) -> StackedRecords:
    """Return all steps of the records.

    Args:
        records: Of one policy, in any order.
        stats: What the recorded actions are normalised with: the key the policy was asked for.
        tokenizer: That of the checkpoint.

    Raises:
        ActionStatsError: A record has another number of numbers than `stats`.
        ConfigurationError: There is no record.
    """
    if not records:
        raise ConfigurationError("There is no replayed episode to judge; replay one at least.")
    ordered = tuple(sorted(records, key=lambda record: (record.source, record.episode)))
    for record in ordered:
        _require_length(record, stats)
    lengths = [len(record) for record in ordered]
    recorded = np.concatenate([record.recorded for record in ordered]).astype(np.float64)
    predicted = np.concatenate([record.predicted for record in ordered]).astype(np.float64)
    is_valid = np.concatenate([record.is_valid for record in ordered])
    return StackedRecords(
        records=ordered,
        recordings=recordings_of(
            recorded,
            np.repeat(np.arange(len(ordered)), lengths),
            np.concatenate([np.arange(length) for length in lengths]),
            np.repeat([float(record.rate_hz) for record in ordered], lengths),
            stats,
            tokenizer,
        ),
        answers=Answers(
            actions=predicted,
            normalized=np.concatenate([record.normalized for record in ordered]),
            token_ids=np.concatenate([record.token_ids for record in ordered]).astype(np.int64),
            is_valid=is_valid & np.isfinite(predicted).all(axis=1),
        ),
        stamps_ns=np.concatenate([record.stamps_ns for record in ordered]),
        latency_ms=np.concatenate([record.latency_ms for record in ordered]),
    )


def recordings_of(
    actions: np.ndarray,
    episode: np.ndarray,
    step: np.ndarray,
    rate_hz: np.ndarray,
    stats: ActionStats,
    tokenizer: ActionTokenizer,
) -> Recordings:
    """Return recorded actions with what training would make of them; shapes as in `Recordings`.

    Raises:
        ActionStatsError: The actions have another number of numbers than `stats`.
    """
    # What is not finite was not recorded, however its source says so.
    actions = np.where(np.isfinite(actions), actions, np.nan)
    normalized = np.where(np.isnan(actions), np.nan, normalize(actions, stats))
    token_ids = tokenizer.encode(np.nan_to_num(normalized))
    return Recordings(episode, step, rate_hz, actions, normalized, token_ids)


def _require_length(record: EpisodeRecord, stats: ActionStats) -> None:
    for what in ("recorded", "predicted", "normalized", "token_ids"):
        shape = getattr(record, what).shape
        if shape != (len(record), stats.action_dim):
            raise ActionStatsError(
                f"episode {record.episode!r} of {record.source}: {what} has shape {shape}, and "
                f"{len(record)} steps with the statistics key {stats.unnorm_key!r} need "
                f"({len(record)}, {stats.action_dim}). Choose the key the actions belong to."
            )
