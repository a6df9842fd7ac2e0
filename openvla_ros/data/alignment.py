"""Which images make the steps of an episode, and what else belongs to each of them: time only.

All stamps are int64 nanoseconds, and do not decrease. This file knows no bag and no message.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Resampled:
    """The images that make the steps.

    Attributes:
        picks: (T,) int64: indices of the images, increasing.
        ticks: Steps that there would be, had the camera given an image for each.
    """

    picks: np.ndarray
    ticks: int


def resample(stamps_ns: np.ndarray, rate_hz: float) -> Resampled:
    """Return for every tick of a grid the image nearest to it, and none of them twice.

    The grid begins at the first image, and an image belongs to the one tick within half a period:
    a camera at exactly this rate gives every image once. The nearest, and not the newest: of a
    camera at a multiple of the rate an image lies on the border of two ticks, where a jitter of
    a microsecond would decide which of them it is for. A last image that follows sooner than half
    a period is left out.
    """
    period_ns = 1e9 / rate_hz
    since = (stamps_ns - stamps_ns[0]).astype(np.float64) / period_ns
    tick = np.maximum(np.ceil(since - 0.5), 0.0)
    newest_first = -np.arange(len(since))  # of images that are equally near
    nearest_first = np.lexsort((newest_first, np.abs(since - tick), tick))
    picks = nearest_first[np.append(True, tick[1:] != tick[:-1])]  # ticks do not decrease
    if len(picks) > 1 and stamps_ns[picks[-1]] - stamps_ns[picks[-2]] < period_ns / 2:
        picks = picks[:-1]
    return Resampled(picks, round(float(tick[picks[-1]] - tick[picks[0]])) + 1)


def last_at_or_before(stamps_ns: np.ndarray, times_ns: np.ndarray) -> np.ndarray:
    """(T,) int64: for each time the index of the last stamp at or before it; -1 = there is none."""
    return np.searchsorted(stamps_ns, times_ns, side="right") - 1


def own_of_step(stamps_ns: np.ndarray, step_ns: np.ndarray, period_ns: int) -> np.ndarray:
    """(T,) int64: for each step the index of its own value, -1 where it has none.

    That is the last one at or before the image of the step, and after the image of the step before:
    so no value belongs to two steps. The first step looks back one period.
    """
    index = last_at_or_before(stamps_ns, step_ns)
    since = np.concatenate([[step_ns[0] - period_ns], step_ns[:-1]])
    if not len(stamps_ns):
        return index
    return np.where((index >= 0) & (stamps_ns[index] > since), index, -1)


def recent_at_step(stamps_ns: np.ndarray, step_ns: np.ndarray, max_age_ns: float) -> np.ndarray:
    """(T,) int64: for each step the index of the last value at or before it; -1 = none so new."""
    index = last_at_or_before(stamps_ns, step_ns)
    if not len(stamps_ns):
        return index
    return np.where((index >= 0) & (step_ns - stamps_ns[index] <= max_age_ns), index, -1)


def segment(keys: np.ndarray, is_kept: np.ndarray) -> list[np.ndarray]:
    """Return the indices of each run of images that are kept and agree in every key.

    Args:
        keys: (N, k) int64, one row per image.
        is_kept: (N,) bool.
    """
    if not len(keys):
        return []
    changes = np.any(keys[1:] != keys[:-1], axis=1) | (is_kept[1:] != is_kept[:-1])
    runs = np.split(np.arange(len(keys)), np.flatnonzero(changes) + 1)
    return [run for run in runs if is_kept[run[0]]]


def gap_key(stamps_ns: np.ndarray, gap_s: float) -> np.ndarray:
    """(N,) int64 that rises by one at every pause longer than `gap_s`; 0 s = never."""
    if gap_s <= 0.0 or not len(stamps_ns):
        return np.zeros(len(stamps_ns), np.int64)
    return np.concatenate([[0], np.cumsum(np.diff(stamps_ns) > gap_s * 1e9)])


def step_ends(step_ns: np.ndarray, period_ns: int) -> np.ndarray:
    """(T,) int64: when each step ends: at the next image, the last one after one period."""
    return np.append(step_ns[1:], step_ns[-1] + period_ns)


@dataclass(frozen=True)
class HeldSamples:
    """The samples that act during one step, each held until the next one.

    Attributes:
        indices: Which samples; a slice of all of them.
        durations_s: (k,) how long each one acts within the step.
    """

    indices: slice
    durations_s: np.ndarray


def held_during(
    stamps_ns: np.ndarray, begin_ns: int, end_ns: int, hold_ns: float
) -> HeldSamples | None:
    """Return which samples act from `begin_ns` to `end_ns` and for how long; None = none does.

    A sample acts until the next one comes, and at most `hold_ns`.
    """
    first = max(int(np.searchsorted(stamps_ns, begin_ns, side="right")) - 1, 0)
    last = int(np.searchsorted(stamps_ns, end_ns, side="left"))
    if first >= last:
        return None
    starts = stamps_ns[first:last]
    until = np.append(stamps_ns[first + 1 : last + 1], end_ns)[: last - first]
    ends = np.minimum(np.minimum(until, starts + round(hold_ns)), end_ns)
    durations_ns = np.maximum(ends - np.maximum(starts, begin_ns), 0)
    if not durations_ns.any():
        return None
    return HeldSamples(slice(first, last), durations_ns / 1e9)
