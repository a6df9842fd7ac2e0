"""Correlation, error and size from sums over parts are those of plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_records import TOKENIZER, perfect_records

from openvla_ros.evaluation.diagnosis.evidence import (
    LEAST_CORRELATION,
    PART_STEPS,
    RESAMPLES,
    Fit,
    correlation_of,
    follows,
    steps_of,
)


def pair(seed: int = 0, steps: int = 60, axes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    recorded = random.normal(1.0, [0.01, 1.0, 50.0], (steps, axes))
    return 2.0 * recorded + random.normal(0.0, [0.01, 1.0, 50.0], (steps, axes)), recorded


PARTS = np.arange(60) // 6


def test_all_parts_together_give_the_plain_figures() -> None:
    predicted, recorded = pair()
    fit = Fit(predicted, recorded, PARTS)
    by_axis = [np.corrcoef(predicted[:, a], recorded[:, a])[0, 1] for a in range(3)]
    assert correlation_of(fit) == pytest.approx(np.mean(by_axis))
    error = (np.abs(predicted - recorded) / recorded.std(axis=0)).mean()
    assert fit.error(fit.all_parts)[0] == pytest.approx(error)
    one = Fit(predicted[:, :1], recorded[:, :1], PARTS)
    size = one.amplitude(one.all_parts)
    assert size.factor[0] == pytest.approx(recorded[:, 0].std() / predicted[:, 0].std())
    slope = np.polyfit(predicted[:, 0], recorded[:, 0], 1)[0]
    assert size.least[0] == pytest.approx(slope)
    assert size.least[0] < size.factor[0] < size.most[0]


def test_a_resample_gives_the_figures_of_the_steps_it_draws() -> None:
    predicted, recorded = pair()
    fit = Fit(predicted, recorded, PARTS)
    drawn = fit.resamples(0)
    assert drawn.shape == (RESAMPLES, 10) and (drawn.sum(axis=1) == 10).all()
    rows = np.concatenate(
        [np.tile(np.flatnonzero(p == PARTS), int(n)) for p, n in enumerate(drawn[7])]
    )
    again = Fit(predicted[rows], recorded[rows], np.zeros(len(rows), int))
    assert fit.correlation(drawn)[7] == pytest.approx(correlation_of(again))


def test_correlation_does_not_know_scale_and_offset() -> None:
    predicted, recorded = pair()
    other = Fit(predicted * [5.0, 0.1, 57.3] + [3.0, -1.0, 0.0], recorded, PARTS)
    assert correlation_of(other) == pytest.approx(correlation_of(Fit(predicted, recorded, PARTS)))


def test_steps_without_recording_or_answer_weigh_nothing() -> None:
    predicted, recorded = pair()
    known = Fit(predicted[:42], recorded[:42], PARTS[:42])
    predicted[42:50], recorded[50:] = np.nan, np.nan
    fit = Fit(predicted, recorded, PARTS)
    assert correlation_of(fit) == pytest.approx(correlation_of(known))
    assert not fit.resamples(0)[:, 7:].any()


def test_a_constant_answer_follows_nothing() -> None:
    _, recorded = pair()
    fit = Fit(np.ones_like(recorded), recorded, PARTS)
    assert correlation_of(fit) == 0.0
    size = fit.amplitude(fit.all_parts)
    assert size.least[0] == 0.0 and size.most[0] == np.inf


def test_a_correlation_of_one_part_alone_does_not_count() -> None:
    """The mean is high enough, but without the one part nothing is left of it."""
    random = np.random.default_rng(0)
    recorded, predicted = random.normal(size=(2, 60, 3))
    recorded[:6] *= 5.0
    predicted[:6] = recorded[:6]
    fit = Fit(predicted, recorded, PARTS)
    assert correlation_of(fit) >= LEAST_CORRELATION
    assert not follows(fit, 0)


def test_a_shift_stays_within_its_episode() -> None:
    steps = steps_of(perfect_records(episodes=2, steps=4), TOKENIZER)
    later = steps.shifted(1).recorded
    assert np.array_equal(later[:3], steps.recorded[1:4])
    assert np.isnan(later[[3, 7]]).all()
    earlier = steps.shifted(-2).recorded
    assert np.array_equal(earlier[6:], steps.recorded[4:6])
    assert np.isnan(earlier[[0, 1, 4, 5]]).all()


def test_long_episodes_have_several_parts_and_short_ones_never_share_one() -> None:
    long = steps_of(perfect_records(episodes=1, steps=2 * PART_STEPS + 1), TOKENIZER)
    assert np.bincount(long.parts).tolist() == [PART_STEPS, PART_STEPS, 1]
    short = steps_of(perfect_records(episodes=3, steps=4), TOKENIZER)
    assert np.bincount(short.parts).tolist() == [4, 4, 4]
