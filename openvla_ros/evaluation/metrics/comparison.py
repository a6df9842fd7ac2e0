"""Whether one policy is better than another on the same frames, and how sure that is.

Differences are paired: both answered to the same step. Steps of an episode resemble each other, so
whole episodes are drawn again, not steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.metrics.stacked_records import StackedRecords, stack_records
from openvla_ros.evaluation.metrics.step_errors import error_units, step_errors
from openvla_ros.model.action_stats import ActionStats
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.types import ActionSpec

RESAMPLES = 2000
INTERVAL = 95.0  # per cent, between percentiles
#: Below this an interval over episodes is a guess: five draws repeat the same few sums.
FEWEST_EPISODES = 5
#: Two values no further apart are the same: sums of float64 in another order.
ROUNDING = 1e-9
_RESAMPLES_AT_ONCE = 100  # bounds the memory: 100 x 10,000 episodes are 8 MB

BETTER, WORSE, UNDECIDED = "better", "worse", "no difference shown"
EQUAL, TOO_FEW, NO_VERDICT = "equal", "too few episodes", "n/a"
VERDICTS = (BETTER, WORSE, UNDECIDED, EQUAL, TOO_FEW, NO_VERDICT)


@dataclass(frozen=True)
class Metric:
    """One row of a comparison.

    Attributes:
        better: +1 where more is better, -1 where less is, 0 where neither.
        unit: Of the difference; "translation" and "rotation" stand for those of `error_units`.
        note: What to bear in mind, always shown.
    """

    better: int
    unit: str = ""
    note: str = ""


#: Which side is better, for everything that is compared; the order of the rows.
METRICS: Mapping[str, Metric] = {
    "translation_error": Metric(-1, "translation"),
    "rotation_error": Metric(-1, "rotation"),
    "normalized_l1": Metric(-1),
    "direction_cosine": Metric(+1),
    "gripper_accuracy": Metric(+1),
    "tokens_equal": Metric(+1),
    "latency": Metric(-1, "ms", "time says nothing about quality, and depends on the machine"),
    "token_agreement": Metric(
        0, note="ids equal to those of the reference; which is right the other rows say"
    ),
    "action_agreement": Metric(
        0, note="actions with all ids equal to the reference's; which is right the other rows say"
    ),
}
#: Rows on the scale of the statistics: of two scales neither ids nor their distances compare.
SCALED = ("normalized_l1", "tokens_equal", "token_agreement", "action_agreement")
_TWO_SCALES = "the variants have statistics of their own, so their ids do not mean the same motion"


@dataclass(frozen=True)
class Comparison:
    """One metric of one variant beside the reference, on the steps both answered.

    Attributes:
        metric: A key of `METRICS`.
        reference: Name of the first variant.
        variant: Name of the other one.
        difference: Mean over paired steps of variant - reference; None without such a step.
        low: Lower end of its 95 % interval.
        high: Upper end.
        verdict: About the variant; one of `VERDICTS`.
        reference_value: Mean of the reference on the paired steps.
        variant_value: Mean of the variant on the paired steps.
        unit: Of the numbers; "" = none.
        steps: Paired steps to which the metric applies.
        episodes: Episodes that these belong to.
        note: What to bear in mind.
    """

    metric: str
    reference: str
    variant: str
    difference: float | None
    low: float | None
    high: float | None
    verdict: str
    reference_value: float | None
    variant_value: float | None
    unit: str
    steps: int
    episodes: int
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON has it."""
        return dataclasses.asdict(self)


def compare_variants(
    variants: Mapping[str, Sequence[EpisodeRecord]],
    spec: ActionSpec,
    stats: ActionStats,
    tokenizer: ActionTokenizer,
    *,
    own_stats: Mapping[str, ActionStats] | None = None,
    seed: int = 0,
) -> list[Comparison]:
    """Return one row per metric for every variant but the first, which is the reference.

    Steps are paired by source, episode and stamp. The order of records makes no difference, and
    the same seed gives the same intervals.

    Args:
        variants: Name to its records.
        spec: What the actions mean.
        stats: Statistics that the recorded actions are normalised with, for all variants.
        tokenizer: That of the checkpoints.
        own_stats: Name to the statistics in use, where a variant has others than `stats`: what
            depends on their scale gets no verdict.
        seed: Of the bootstrap.

    Raises:
        ActionStatsError: Actions of a variant do not fit `stats`.
        ConfigurationError: A variant has no record, or one episode twice.
    """
    if len(variants) < 2:
        return []
    stacked = {name: stack_records(r, stats, tokenizer) for name, r in variants.items()}
    (reference, first), *others = stacked.items()
    rows = []
    for name, other in others:
        here, there = paired(first, other)
        values = _paired_values(first.at(here), other.at(there), spec, stats)
        is_other_scale = not _same_scale(stats, (own_stats or {}).get(name, stats))
        for metric, (of_reference, of_variant) in values.items():
            if is_other_scale and metric in SCALED:
                of_variant = np.full(len(of_variant), np.nan)
            row = _compared(
                metric, of_reference, of_variant, first.recordings.episode[here], spec, seed
            )
            if is_other_scale and metric in SCALED:
                row = dataclasses.replace(row, note=_TWO_SCALES)
            rows.append(dataclasses.replace(row, reference=reference, variant=name))
    return rows


def _same_scale(one: ActionStats, other: ActionStats) -> bool:
    """Return whether both decode the same ids to the same numbers."""
    names = ("q01", "q99", "mask", "constant")
    return all(np.array_equal(getattr(one, n), getattr(other, n)) for n in names)


def paired(first: StackedRecords, other: StackedRecords) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of `first` and those of `other` that are answers to the same image.

    Raises:
        ConfigurationError: An episode is there twice, so nobody knows which belongs to which.
    """
    rows_of = _rows_by_episode(other)
    here, there = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for key, rows in _rows_by_episode(first).items():
        if key not in rows_of:
            continue
        _, i, j = np.intersect1d(
            first.stamps_ns[rows], other.stamps_ns[rows_of[key]], return_indices=True
        )
        here.append(rows[i])
        there.append(rows_of[key][j])
    return np.concatenate(here), np.concatenate(there)


def _rows_by_episode(stacked: StackedRecords) -> dict[tuple[str, str], np.ndarray]:
    rows: dict[tuple[str, str], np.ndarray] = {}
    ends = np.cumsum([len(record) for record in stacked.records])
    for record, end in zip(stacked.records, ends.tolist(), strict=True):
        key = (record.source, record.episode)
        if key in rows:
            raise ConfigurationError(
                f"episode {record.episode!r} of {record.source} was replayed twice; name every "
                "source once."
            )
        rows[key] = np.arange(end - len(record), end)
    return rows


def _paired_values(
    first: StackedRecords, other: StackedRecords, spec: ActionSpec, stats: ActionStats
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric to its (N,) values of the reference and of the variant; NaN = does not apply."""
    a = step_errors(first.answers, first.recordings, spec, stats)
    b = step_errors(other.answers, other.recordings, spec, stats)
    same = first.answers.token_ids == other.answers.token_ids  # (N, n)
    itself = np.ones(len(same))
    return {
        "translation_error": (a.translation, b.translation),
        "rotation_error": (a.rotation, b.rotation),
        "normalized_l1": (a.normalized_l1, b.normalized_l1),
        "direction_cosine": (a.cosine, b.cosine),
        "gripper_accuracy": (a.gripper_right, b.gripper_right),
        "tokens_equal": (a.tokens_equal, b.tokens_equal),
        "latency": (first.latency_ms, other.latency_ms),
        # The reference agrees with itself: a difference of -0.02 is 2 % of ids that are others.
        "token_agreement": (itself, same.mean(axis=1)),
        "action_agreement": (itself, same.all(axis=1).astype(np.float64)),
    }


def _compared(
    name: str,
    of_reference: np.ndarray,
    of_variant: np.ndarray,
    episode: np.ndarray,
    spec: ActionSpec,
    seed: int,
) -> Comparison:
    metric, known = METRICS[name], np.isfinite(of_reference) & np.isfinite(of_variant)
    row = Comparison(
        metric=name,
        reference="",
        variant="",
        difference=None,
        low=None,
        high=None,
        verdict=NO_VERDICT,
        reference_value=None,
        variant_value=None,
        unit=error_units(spec).get(metric.unit, metric.unit),
        steps=int(known.sum()),
        episodes=len(np.unique(episode[known])),
        note=metric.note,
    )
    if not known.any():
        return dataclasses.replace(row, note="no step that both answered has this metric")
    differences = of_variant[known] - of_reference[known]
    low, high = bootstrap_interval(differences, episode[known], seed=seed)
    if row.episodes == 1:
        note = "one episode: its steps were drawn, which makes the interval too narrow"
        row = dataclasses.replace(row, note=f"{metric.note}; {note}" if metric.note else note)
    return dataclasses.replace(
        row,
        difference=float(differences.mean()),
        low=low,
        high=high,
        verdict=_verdict(differences, low, high, row.episodes, metric.better),
        reference_value=float(of_reference[known].mean()),
        variant_value=float(of_variant[known].mean()),
    )


def _verdict(differences: np.ndarray, low: float, high: float, episodes: int, better: int) -> str:
    if np.abs(differences).max() <= ROUNDING:
        return EQUAL
    if better == 0:
        return NO_VERDICT
    if episodes < FEWEST_EPISODES:
        return TOO_FEW
    if low <= 0.0 <= high:
        return UNDECIDED
    return BETTER if (low > 0.0) == (better > 0) else WORSE


def bootstrap_interval(
    differences: np.ndarray, episode: np.ndarray, *, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of differences, episodes drawn again.

    Every draw takes as many episodes as there are, each with all its steps: the mean of a draw is
    that of its steps. With one episode, steps are drawn.

    Args:
        differences: (N,), N >= 1, finite.
        episode: (N,) int64: which episode each belongs to.
        seed: Of the draws.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    _, cluster = np.unique(episode, return_inverse=True)
    if cluster.max() == 0:
        cluster = np.arange(len(differences))
    sums = np.bincount(cluster, weights=differences)
    counts = np.bincount(cluster).astype(np.float64)
    random = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES // _RESAMPLES_AT_ONCE):
        drawn = random.integers(len(sums), size=(_RESAMPLES_AT_ONCE, len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    tail = (100.0 - INTERVAL) / 2.0
    low, high = np.percentile(np.concatenate(means), [tail, 100.0 - tail])
    return float(low), float(high)
