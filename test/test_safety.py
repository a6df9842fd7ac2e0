"""The last look at a twist: finite, within the limits, direction kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openvla_ros.control.safety import SafetyFilter, SpeedLimits

LIMITS = SpeedLimits(linear_m_s=0.25, angular_rad_s=1.0)
twists = st.lists(st.floats(-50, 50), min_size=6, max_size=6).map(np.array)


@given(twists)
def test_a_twist_keeps_its_direction_and_stays_within_the_limits(twist: np.ndarray) -> None:
    passed = SafetyFilter(LIMITS).apply(twist)
    assert np.linalg.norm(passed[0:3]) <= 0.25 + 1e-12
    assert np.linalg.norm(passed[3:6]) <= 1.0 + 1e-12
    assert np.linalg.norm(passed) <= np.linalg.norm(twist) + 1e-12
    parallel = np.outer(passed, twist) - np.outer(twist, passed)
    assert np.abs(parallel).max() <= 1e-9 * (1.0 + np.abs(twist).max() ** 2)
    assert passed @ twist >= 0.0


def test_a_slow_twist_passes_unchanged_and_uncounted() -> None:
    safety = SafetyFilter(LIMITS)
    twist = np.array([0.1, 0.1, 0.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(safety.apply(twist), twist)
    assert (safety.slowed, safety.refused) == (0, 0)


def test_translation_and_rotation_are_slowed_by_the_same_factor() -> None:
    safety = SafetyFilter(LIMITS)
    passed = safety.apply(np.array([0.5, 0.0, 0.0, 0.0, 0.0, 0.4]))
    np.testing.assert_allclose(passed, [0.25, 0.0, 0.0, 0.0, 0.0, 0.2])
    assert safety.slowed == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", range(6))
def test_a_twist_that_is_not_finite_becomes_zero(bad: float, axis: int) -> None:
    safety = SafetyFilter(LIMITS)
    twist = np.full(6, 0.1)
    twist[axis] = bad
    np.testing.assert_array_equal(safety.apply(twist), np.zeros(6))
    assert safety.refused == 1


def test_the_shortest_time_of_a_step_is_that_of_its_slower_half() -> None:
    assert LIMITS.shortest_time_s(np.array([0.03, 0.04, 0, 0, 0, 0.1])) == pytest.approx(0.2)
    assert LIMITS.shortest_time_s(np.array([0.03, 0.04, 0, 0, 0, 0.5])) == pytest.approx(0.5)
