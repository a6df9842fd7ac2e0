"""The interval of a success rate: published values, bounds, and how often it covers the truth."""

from math import comb

import pytest

from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.metrics.wilson import wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_published_values(successes, trials, expected):
    assert wilson_interval(successes, trials) == pytest.approx(expected, abs=5e-5)


def test_successes_and_failures_mirror_each_other():
    lower, upper = wilson_interval(3, 17)
    assert wilson_interval(14, 17) == pytest.approx((1 - upper, 1 - lower))


def test_bounds_are_exact_where_all_or_none_succeed():
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_more_confidence_is_wider():
    lower, upper = wilson_interval(8, 10)
    wider_lower, wider_upper = wilson_interval(8, 10, confidence=0.99)
    assert wider_lower < lower < 0.8 < upper < wider_upper


def test_covers_the_true_rate_about_as_often_as_it_says():
    trials, rate = 100, 0.8
    covered = sum(
        comb(trials, k) * rate**k * (1 - rate) ** (trials - k)
        for k in range(trials + 1)
        if wilson_interval(k, trials)[0] <= rate <= wilson_interval(k, trials)[1]
    )
    assert covered == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("successes", "trials"), [(3, 2), (-1, 2), (0, -1)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ConfigurationError, match="cannot be"):
        wilson_interval(successes, trials)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_impossible_confidence_is_refused(confidence):
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        wilson_interval(1, 2, confidence)
