"""The figures of one policy over all replayed episodes, and of the baselines on the same steps.

docs/replay_metrics.md defines each of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.metrics.baselines import mean_action, previous_action, zero_action
from openvla_ros.evaluation.metrics.figures import (
    DirectionFigures,
    ErrorFigures,
    Figures,
    GripperFigures,
    LatencyFigures,
    PreviousActionFigures,
    TokenFigures,
)
from openvla_ros.evaluation.metrics.gripper_events import GripperEvent, match_events
from openvla_ros.evaluation.metrics.stacked_records import (
    Answers,
    Recordings,
    StackedRecords,
    stack_records,
)
from openvla_ros.evaluation.metrics.step_errors import StepErrors, recorded_columns, step_errors
from openvla_ros.evaluation.metrics.token_metrics import compare_tokens
from openvla_ros.model.action_stats import ActionStats
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.types import ActionSpec


@dataclass(frozen=True)
class VariantMetrics:
    """One policy.

    Attributes:
        episodes: How many were replayed.
        steps: Of all episodes.
        steps_without_recording: Steps where nothing was recorded: answered, not judged.
        metrics: Of the policy.
        latency_ms: Of the policy, all steps.
        zero: Of the baseline that does not move.
        mean_action: Of the best constant.
        previous_action: None where no step follows another.
        per_episode: One row per episode, by source and name.
    """

    episodes: int
    steps: int
    steps_without_recording: int
    metrics: Figures
    latency_ms: LatencyFigures
    zero: Figures
    mean_action: Figures
    previous_action: PreviousActionFigures | None
    per_episode: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return what metrics.json holds about a variant, except its policy."""
        return {
            "episodes": self.episodes,
            "steps": self.steps,
            "steps_without_recording": self.steps_without_recording,
            "metrics": {
                **self.metrics.to_dict(),
                "latency_ms": dataclasses.asdict(self.latency_ms),
            },
            "baselines": {
                "zero": self.zero.to_dict(with_events=False),
                "mean_action": self.mean_action.to_dict(with_events=False),
                "previous_action": self._previous(),
            },
            "per_episode": self.per_episode,
        }

    def _previous(self) -> dict[str, Any] | None:
        previous = self.previous_action
        if previous is None:
            return None
        return {
            **previous.figures.to_dict(with_events=False),
            "steps": previous.steps,
            "policy_on_same_steps": previous.policy_on_same_steps.to_dict(with_events=False),
        }


def summarize(
    records: Sequence[EpisodeRecord],
    spec: ActionSpec,
    stats: ActionStats,
    tokenizer: ActionTokenizer,
) -> VariantMetrics:
    """Return the figures of one policy; the order of the records makes no difference.

    Args:
        records: Of all episodes it answered to.
        spec: What its actions mean.
        stats: The statistics it was asked for, which the recorded actions are normalised with.
        tokenizer: That of the checkpoint.

    Raises:
        ActionStatsError: Recorded or predicted actions do not fit `stats`.
        ConfigurationError: There is no record.
    """
    stacked = stack_records(records, stats, tokenizer)
    recordings, answers = stacked.recordings, stacked.answers
    judge = _Judge(stacked, spec, stats, tokenizer)
    errors = step_errors(answers, recordings, spec, stats)
    previous, follows = previous_action(recordings)
    return VariantMetrics(
        episodes=len(stacked.records),
        steps=len(stacked),
        steps_without_recording=int(np.isnan(recordings.actions).all(axis=1).sum()),
        metrics=judge.figures(answers, recordings, errors),
        latency_ms=latency_figures(stacked.latency_ms),
        zero=judge.figures(zero_action(recordings, spec, stats, tokenizer), recordings),
        mean_action=judge.figures(mean_action(recordings, stats), recordings),
        previous_action=PreviousActionFigures(
            figures=judge.figures(previous, recordings.at(follows)),
            steps=int(follows.sum()),
            policy_on_same_steps=judge.figures(answers.at(follows), recordings.at(follows)),
        )
        if follows.any()
        else None,
        per_episode=_per_episode(stacked, errors),
    )


def latency_figures(latency_ms: np.ndarray) -> LatencyFigures:
    """Return percentiles of (N,) milliseconds."""
    known = latency_ms[np.isfinite(latency_ms)]
    if not len(known):
        return LatencyFigures(None, None, None, None)
    p50, p90, p99 = np.percentile(known, [50, 90, 99])
    return LatencyFigures(float(p50), float(p90), float(p99), float(known.max()))


def mean_or_none(values: np.ndarray) -> float | None:
    """Return the mean of the numbers that are not NaN; None when all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


class _Judge:
    """Makes figures of answers to steps of the same records."""

    def __init__(
        self,
        stacked: StackedRecords,
        spec: ActionSpec,
        stats: ActionStats,
        tokenizer: ActionTokenizer,
    ) -> None:
        self._records = stacked.records
        self._spec = spec
        self._stats = stats
        self._tokenizer = tokenizer

    def figures(
        self, answers: Answers, recordings: Recordings, errors: StepErrors | None = None
    ) -> Figures:
        """Return the figures of answers to these steps; `errors` saves computing them again."""
        errors = errors or step_errors(answers, recordings, self._spec, self._stats)
        return Figures(
            translation_error=_error_figures(errors.translation, errors.translation_by_axis),
            rotation_error=_error_figures(errors.rotation, errors.rotation_by_axis),
            direction_cosine=DirectionFigures(
                mean=mean_or_none(errors.cosine), steps=int((~np.isnan(errors.cosine)).sum())
            ),
            normalized_l1=mean_or_none(errors.normalized_l1),
            gripper=self._gripper(recordings, errors),
            clip_rate=mean_or_none(errors.is_clipped),
            invalid_rate=mean_or_none((~answers.is_valid).astype(np.float64)),
            tokens=self._tokens(answers, recordings),
        )

    def _gripper(self, recordings: Recordings, errors: StepErrors) -> GripperFigures:
        if np.isnan(errors.gripper_right).all():
            return GripperFigures(None, None, None, None, None, None, None, None, [])
        both = ~np.isnan(errors.gripper_right)
        recorded, answered = errors.recorded_closed[both] > 0, errors.answered_closed[both] > 0
        right = int((recorded & answered).sum())
        events, answered_changes = match_events(
            recordings.episode,
            recordings.step,
            recordings.rate_hz,
            errors.recorded_closed,
            errors.answered_closed,
        )
        delays = np.array([e.delay_s for e in events if e.delay_s is not None])
        return GripperFigures(
            accuracy=mean_or_none(errors.gripper_right),
            precision=_share(right, int(answered.sum())),
            recall=_share(right, int(recorded.sum())),
            f1=_share(2 * right, int(recorded.sum()) + int(answered.sum())),
            recorded_events=len(events),
            predicted_events=answered_changes,
            matched_events=len(delays) if events else None,
            mean_delay_s=mean_or_none(delays),
            events=[self._event_row(event) for event in events],
        )

    def _event_row(self, event: GripperEvent) -> dict[str, Any]:
        return {
            "episode": self._records[event.episode].episode,
            "source": self._records[event.episode].source,
            "step": event.step,
            "kind": event.kind,
            "delay_steps": event.delay_steps,
            "delay_s": event.delay_s,
        }

    def _tokens(self, answers: Answers, recordings: Recordings) -> TokenFigures:
        known = recorded_columns(recordings)
        whole = ~np.isnan(recordings.actions[:, known]).any(axis=1)
        by_dimension: list[float | None] = [None] * len(known)
        if not known.any() or not whole.any():
            return TokenFigures(0, None, None, None, None, by_dimension)
        agreement = compare_tokens(
            answers.token_ids[whole][:, known],
            recordings.token_ids[whole][:, known],
            self._tokenizer,
        )
        shares = agreement.tokens_equal_by_dimension.tolist()
        for column, share in zip(np.flatnonzero(known), shares, strict=True):
            by_dimension[column] = share
        return TokenFigures(
            steps=agreement.actions,
            equal=agreement.tokens_equal,
            actions_equal=agreement.actions_equal,
            mean_bins=agreement.mean_bins,
            p99_bins=agreement.p99_bins,
            equal_by_dimension=by_dimension,
        )


def _error_figures(errors: np.ndarray, by_axis: np.ndarray) -> ErrorFigures:
    known = errors[~np.isnan(errors)]
    median, p90 = np.percentile(known, [50, 90]).tolist() if len(known) else (None, None)
    return ErrorFigures(
        mean=mean_or_none(errors),
        median=median,
        p90=p90,
        by_axis=[mean_or_none(column) for column in by_axis.T],
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _per_episode(stacked: StackedRecords, errors: StepErrors) -> list[dict[str, Any]]:
    """One row of means per record."""
    episode, count = stacked.recordings.episode, len(stacked.records)
    columns = {
        "translation_error": errors.translation,
        "rotation_error": errors.rotation,
        "direction_cosine": errors.cosine,
        "gripper_accuracy": errors.gripper_right,
        "tokens_equal": errors.tokens_equal,
    }
    means = {name: episode_means(values, episode, count) for name, values in columns.items()}
    return [
        {
            "episode": record.episode,
            "source": record.source,
            "instruction": record.instruction,
            "steps": len(record),
            **{name: column[i] for name, column in means.items()},
        }
        for i, record in enumerate(stacked.records)
    ]


def episode_means(values: np.ndarray, episode: np.ndarray, episodes: int) -> list[float | None]:
    """Return the mean of each episode's numbers that are not NaN; None when it has none."""
    known = ~np.isnan(values)
    sums = np.bincount(episode[known], weights=values[known], minlength=episodes)
    counts = np.bincount(episode[known], minlength=episodes)
    return [s / n if n else None for s, n in zip(sums.tolist(), counts.tolist(), strict=True)]
