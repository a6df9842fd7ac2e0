"""Which episodes and steps a report shows, found in one pass over all records."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.report.metric_table import ROTATION, TRANSLATION
from openvla_ros.evaluation.report.results import Results

MOST_EPISODES = 6  # with time series and path; as many as this are all shown
MOST_FRAMES = 9  # of one variant
MOST_OF_ONE_EPISODE = 2
_POOL = 60  # candidates from which the frames are chosen
_JPEG_BEGINS = b"\xff\xd8"

EpisodeKey = tuple[str, str]  # source and name: a name is unique within its source only


@dataclass(frozen=True)
class WorstStep:
    """One step that is far off, with its picture.

    Attributes:
        episode: Name of its episode.
        source: What the episode was read from.
        instruction: What the policy was told.
        step: Which one.
        recorded: (n,) dataset units.
        predicted: (n,) dataset units.
        is_valid: Whether the answer is an action.
        distance: How far off, see `distances`.
        jpeg: The picture.
    """

    episode: str
    source: str
    instruction: str
    step: int
    recorded: np.ndarray
    predicted: np.ndarray
    is_valid: bool
    distance: float
    jpeg: bytes


@dataclass(frozen=True)
class Digest:
    """What the report needs of all records of one variant.

    Attributes:
        latency_ms: (N,) of all steps.
        late: Share of answers that took longer than a step of their episode; None without steps.
        step_ms: The lengths of a step that occur.
        worst: The steps furthest off, worst first, of different episodes as far as possible.
        files: Episode to its record.
    """

    latency_ms: np.ndarray
    late: float | None
    step_ms: tuple[float, ...]
    worst: tuple[WorstStep, ...]
    files: Mapping[EpisodeKey, Path]


def digest(results: Results, variant: str) -> Digest:
    """Return what the report needs of the records of one variant; one is in memory at a time.

    Raises:
        ConfigurationError: A record is damaged.
    """
    latencies: list[np.ndarray] = []
    files: dict[EpisodeKey, Path] = {}
    late = 0
    lengths: set[float] = set()
    pool: list[tuple[float, int, WorstStep]] = []
    figures = results.figures(variant)
    for path, record in results.records(variant):
        files[record.source, record.episode] = path
        latencies.append(record.latency_ms)
        step_ms = 1000.0 / record.rate_hz
        lengths.add(round(step_ms, 1))
        late += int(np.count_nonzero(record.latency_ms > step_ms))
        for worst in _worst_of(record, distances(record, figures, results)):
            # Of equal ones the earlier stays: the count makes every entry different.
            heapq.heappush(pool, (worst.distance, -len(files) * 100 - worst.step, worst))
            if len(pool) > _POOL:
                heapq.heappop(pool)
    every = np.concatenate(latencies) if latencies else np.zeros(0)
    worst_first = [entry[2] for entry in sorted(pool, key=lambda entry: entry[:2], reverse=True)]
    return Digest(
        latency_ms=every,
        late=late / len(every) if len(every) else None,
        step_ms=tuple(sorted(lengths)),
        worst=tuple(_of_different_episodes(worst_first)),
        files=files,
    )


def distances(record: EpisodeRecord, figures: Mapping[str, Any], results: Results) -> np.ndarray:
    """Return how far each step is off: (T,), NaN where nothing was recorded.

    Translation and rotation error, each divided by its mean over all steps, and the difference of
    the gripper: so metres, radians and the gripper count alike.
    """
    difference = results.units.shown(record.predicted) - results.units.shown(record.recorded)
    parts = [np.abs(difference[:, 6:]).sum(axis=1)]
    for axes, metric in ((slice(0, 3), TRANSLATION), (slice(3, 6), ROTATION)):
        mean = metric.of(figures)
        parts.append(np.linalg.norm(difference[:, axes], axis=1) / (mean or 1.0))
    # (3, T); a number that was not recorded does not count, a step without any is NaN
    each = np.array(parts)
    return np.where(np.isnan(each).all(axis=0), np.nan, np.nansum(each, axis=0))


def _worst_of(record: EpisodeRecord, distance: np.ndarray) -> list[WorstStep]:
    """Return the steps of one episode whose pictures were kept and can be shown."""
    steps = []
    for step, frame in zip(record.worst_steps.tolist(), record.worst_frames, strict=True):
        jpeg = frame.tobytes()
        if jpeg.startswith(_JPEG_BEGINS) and np.isfinite(distance[step]):
            steps.append(
                WorstStep(
                    episode=record.episode,
                    source=record.source,
                    instruction=record.instruction,
                    step=step,
                    recorded=record.recorded[step],
                    predicted=record.predicted[step],
                    is_valid=bool(record.is_valid[step]),
                    distance=float(distance[step]),
                    jpeg=jpeg,
                )
            )
    return steps


def _of_different_episodes(worst_first: Sequence[WorstStep]) -> list[WorstStep]:
    chosen: list[WorstStep] = []
    seen: Counter[EpisodeKey] = Counter()
    for worst in worst_first:
        key = (worst.source, worst.episode)
        if len(chosen) < MOST_FRAMES and seen[key] < MOST_OF_ONE_EPISODE:
            chosen.append(worst)
            seen[key] += 1
    return chosen


@dataclass(frozen=True)
class ShownEpisode:
    """An episode with time series and path, and why it was chosen."""

    key: EpisodeKey
    why: str


def chosen_episodes(rows: Sequence[Mapping[str, Any]]) -> list[ShownEpisode]:
    """Return the episodes to show: all if they are few, or the worst, the middle and the best.

    Args:
        rows: `per_episode` of the reference variant.
    """
    ranked = ranked_rows(rows)
    order = {id(row): place for place, row in enumerate(ranked)}
    if len(rows) <= MOST_EPISODES:
        chosen = {id(row): _place_word(order[id(row)], len(rows)) for row in rows}
        rows_shown: Sequence[Mapping[str, Any]] = rows
    else:
        judged = [row for row in ranked if _error(row) is not None] or list(ranked)
        middle = len(judged) // 2
        words = {len(judged) - 1: "best", middle: "median", middle + 1: "median"}
        words |= {1: "second worst", 2: "third worst", 0: "worst"}
        chosen = {id(judged[place]): why for place, why in words.items() if place < len(judged)}
        rows_shown = [row for row in ranked if id(row) in chosen]
    return [ShownEpisode((row["source"], row["episode"]), chosen[id(row)]) for row in rows_shown]


def ranked_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return `per_episode`, the largest translation error first, those without one last."""
    return sorted(rows, key=lambda row: -(_error(row) if _error(row) is not None else -1.0))


def _place_word(place: int, of: int) -> str:
    return {0: "worst", of - 1: "best"}.get(place, "") if of > 1 else ""


def _error(row: Mapping[str, Any]) -> Any:
    return row["translation_error"]
