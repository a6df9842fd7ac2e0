"""Arithmetic of evidence: how predicted motion follows recorded motion, and how sure that is.

Every figure is made of sums over parts, so that it can be made again of resampled parts. Steps of
one part resemble one another, and are drawn or left out together. N steps, A axes, P parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.types import Finding

#: Heading of every finding of the diagnosis.
SECTION = "pipeline"

#: Of an action of seven numbers.
MOTION, TRANSLATION, ROTATION, GRIPPER = slice(0, 6), slice(0, 3), slice(3, 6), 6
#: Steps of an episode that are resampled together. Longer episodes give several parts, so that one
#: long bag can be judged too; 25 steps are 5 s at 5 Hz, after which another movement has begun.
PART_STEPS = 25
RESAMPLES = 1000
#: Of more parts, neighbours are drawn together: a thousand episodes take no longer than this many.
MOST_PARTS = 400
#: With less, a correlation of 0.4 comes about by chance: of a policy that follows a little (0.15),
#: one choice in a hundred of five episodes had it over 35 steps at some lag. And resampling fewer
#: than five parts has next to nothing to vary.
LEAST_STEPS, LEAST_PARTS = 40, 5
#: A policy follows the recordings when its correlation is at least the first, and at least the
#: second in all but 2.5 % of the resamples. One that does not cannot tell a sound pipeline from a
#: broken one: its errors are its own.
LEAST_CORRELATION, LEAST_SURE = 0.4, 0.2
#: Of the bootstrap: 95 % of the resamples lie between.
LOW, HIGH = 2.5, 97.5
#: An axis that moves less than this (dataset units, standard deviation) says nothing.
_STILL = 1e-9


@dataclass(frozen=True)
class Steps:
    """All steps of an evaluation, one after another.

    Attributes:
        recorded: (N, n) float64, dataset units; NaN where nothing was recorded.
        predicted: (N, n) float64, dataset units; NaN where the answer was not valid.
        normalized: (N, n) float64 in [-1, 1], NaN likewise.
        episode: (N,) int64 number of the episode.
        step: (N,) int64 step within it.
    """

    recorded: np.ndarray
    predicted: np.ndarray
    normalized: np.ndarray
    episode: np.ndarray
    step: np.ndarray

    @property
    def parts(self) -> np.ndarray:
        """(N,) int64, 0 to P - 1: the part each step belongs to."""
        both = np.stack([self.episode, self.step // PART_STEPS], axis=1)
        numbers = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
        return numbers // -(-(int(numbers.max()) + 1) // MOST_PARTS)

    @property
    def lacks(self) -> str:
        """What is missing for a judgement of motion, in words; "" when nothing is."""
        return self.lacks_of(MOTION)

    def lacks_of(self, axes: slice) -> str:
        """Return what is missing for a judgement of these numbers; "" when nothing is.

        A twist topic has no gripper: of motion it says all.
        """
        known = np.isfinite(self.recorded[:, axes] + self.predicted[:, axes]).all(axis=1)
        count, parts = int(known.sum()), len(np.unique(self.parts[known]))
        if count < LEAST_STEPS:
            return f"{count} recorded and answered steps, {LEAST_STEPS} needed"
        if parts < LEAST_PARTS:
            return (
                f"{parts} episodes or stretches of {PART_STEPS} steps, {LEAST_PARTS} needed: "
                "fewer may resemble each other by chance"
            )
        return ""

    def shifted(self, lag: int) -> Steps:
        """Return the answer to step t beside the action recorded at step t + `lag`.

        NaN where the episode has no such step. Steps must be consecutive.
        """
        source = np.arange(len(self.step)) + lag
        inside = np.clip(source, 0, len(source) - 1)
        exists = (source == inside) & (self.episode[inside] == self.episode)
        return replace(self, recorded=np.where(exists[:, None], self.recorded[inside], np.nan))


def steps_of(records: Sequence[EpisodeRecord], tokenizer: ActionTokenizer) -> Steps:
    """Return the steps of all records; an answer that is not all action tokens is none."""
    lengths = [len(record) for record in records]
    token_ids = np.concatenate([record.token_ids for record in records])
    is_valid = np.concatenate([record.is_valid for record in records])[:, None]
    return Steps(
        recorded=np.concatenate([record.recorded for record in records]),
        predicted=np.where(is_valid, np.concatenate([r.predicted for r in records]), np.nan),
        normalized=np.where(is_valid, tokenizer.decode(token_ids), np.nan),
        episode=np.repeat(np.arange(len(records)), lengths),
        step=np.concatenate([np.arange(length) for length in lengths]),
    )


@dataclass(frozen=True)
class Amplitude:
    """By how much predictions would have to grow to have the size of the recordings.

    Noise in the predictions alone would make the true factor `least`, noise in the recordings
    alone `most`: it lies between. A policy that follows loosely has a wide range, and proves
    nothing.
    """

    factor: np.ndarray
    least: np.ndarray
    most: np.ndarray


class Fit:
    """How predictions follow recordings; every method takes one weight per part and row.

    Args:
        predicted: (N, A); a step with NaN in either is left out.
        recorded: (N, A).
        parts: (N,) int64.
    """

    def __init__(self, predicted: np.ndarray, recorded: np.ndarray, parts: np.ndarray) -> None:
        known = np.isfinite(predicted + recorded).all(axis=1)
        p, r = predicted[known], recorded[known]
        # Moments of centred numbers do not cancel; a few parts have no steps, and weigh nothing.
        self.spread = r.std(axis=0) if len(r) else np.zeros(recorded.shape[1])
        p, r = p - p.mean(axis=0, keepdims=True), r - r.mean(axis=0, keepdims=True)
        distance = abs(predicted - recorded)[known]
        values = np.stack([np.ones_like(p), p, r, p * p, r * r, p * r, distance])
        self._sums = np.zeros((int(parts.max()) + 1, *values.shape[::2]))  # (P, 7, A)
        np.add.at(self._sums, parts[known], values.transpose(1, 0, 2))

    @classmethod
    def of(cls, steps: Steps, axes: slice) -> Fit:
        """Return the fit of some numbers of the actions."""
        return cls(steps.predicted[:, axes], steps.recorded[:, axes], steps.parts)

    @property
    def all_parts(self) -> np.ndarray:
        """(1, P) the weights that take every part once."""
        return np.ones((1, len(self._sums)))

    def resamples(self, seed: int) -> np.ndarray:
        """Return (RESAMPLES, P) how often each part is drawn; the same for the same seed."""
        filled = np.flatnonzero(self._sums[:, 0, 0])
        weights = np.zeros((RESAMPLES, len(self._sums)))
        shares = np.full(len(filled), 1.0 / len(filled))
        weights[:, filled] = np.random.default_rng(seed).multinomial(len(filled), shares, RESAMPLES)
        return weights

    def correlation(self, weights: np.ndarray) -> np.ndarray:
        """Return (B,) Pearson's correlation, mean of the axes that the recordings move.

        It stays when an axis is scaled or offset: wrong units do not change it. An axis on which
        the answer is constant counts as 0.
        """
        _, vp, vr, cov = self._moments(weights)
        scale = np.sqrt(vp * vr)
        by_axis = np.divide(cov, scale, out=np.zeros_like(cov), where=scale > _STILL**2)
        moving = self.spread > _STILL
        return by_axis[:, moving].mean(axis=1) if moving.any() else np.zeros(len(weights))

    def error(self, weights: np.ndarray) -> np.ndarray:
        """Return (B,) mean |predicted - recorded| in standard deviations of the recordings."""
        count, *_ = self._moments(weights)
        moving = self.spread > _STILL
        total = np.tensordot(weights, self._sums[:, 6], axes=1)[:, moving] / self.spread[moving]
        return (total / count[:, moving]).mean(axis=1) if moving.any() else np.zeros(len(weights))

    def amplitude(self, weights: np.ndarray) -> Amplitude:
        """Return the (B,) factors; the axes must share a unit."""
        _, vp, vr, cov = (moment.sum(axis=1) for moment in self._moments(weights))
        with np.errstate(divide="ignore", invalid="ignore"):
            factor, least, most = np.sqrt(vr / vp), cov / vp, vr / cov
        opposite = cov <= 0.0
        return Amplitude(factor, np.where(opposite, 0.0, least), np.where(opposite, np.inf, most))

    def _moments(self, weights: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return (B, A) counts, variances of predictions and recordings, and covariances."""
        sums = np.tensordot(weights, self._sums[:, :6], axes=1)  # (B, 6, A)
        count = np.maximum(sums[:, 0], 1.0)
        p, r, pp, rr, pr = (sums[:, i] / count for i in range(1, 6))
        return count, np.maximum(pp - p * p, 0.0), np.maximum(rr - r * r, 0.0), pr - p * r


def correlation_of(fit: Fit) -> float:
    """Return the correlation over all parts."""
    return float(fit.correlation(fit.all_parts)[0])


def error_of(steps: Steps) -> float:
    """Return the mean error of motion over all parts, in standard deviations of the recordings."""
    fit = Fit.of(steps, MOTION)
    return float(fit.error(fit.all_parts)[0])


def follows(fit: Fit, seed: int, *, looks: int = 1) -> bool:
    """Return whether predictions clearly follow the recordings, whatever their scale.

    Args:
        fit: Of predictions and recordings.
        seed: Of the resamples.
        looks: Alternatives among which this one was chosen: the best of several looks better than
            it is, so resamples may disagree that much less often.
    """
    low = np.percentile(fit.correlation(fit.resamples(seed)), LOW / looks)
    return bool(correlation_of(fit) >= LEAST_CORRELATION and low >= LEAST_SURE)


def follows_better(fit: Fit, other: Fit, seed: int, *, gain: float, looks: int) -> bool:
    """Return whether predictions clearly follow, and with `gain` more correlation than `other`.

    Both must be about the same parts, which are resampled in pairs.
    """
    weights = fit.resamples(seed)
    gains = fit.correlation(weights) - other.correlation(weights)
    return bool(
        follows(fit, seed, looks=looks)
        and correlation_of(fit) - correlation_of(other) >= gain
        and np.percentile(gains, LOW / looks) > 0.0
    )


def not_judged(item: str, why: str) -> Finding:
    """Return the finding that says why there is no verdict."""
    return Finding(SECTION, item, "cannot be judged", why)


def loose(fit: Fit) -> str:
    """Return in words that predictions do not follow the recordings."""
    return (
        f"the policy does not follow these recordings closely enough (correlation "
        f"{correlation_of(fit):.2f}, {LEAST_CORRELATION} needed, and by more than chance)"
    )
