"""Time: which images make the steps, what belongs to each, and how long a velocity acts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openvla_ros.data.alignment import (
    gap_key,
    held_during,
    last_at_or_before,
    own_of_step,
    recent_at_step,
    resample,
    segment,
    step_ends,
)

MS = 1_000_000
PERIOD = 200 * MS


def ms(*values: float) -> np.ndarray:
    return np.array([round(value * MS) for value in values], np.int64)


def test_a_camera_at_the_rate_gives_every_image_once_in_spite_of_jitter() -> None:
    jitter = np.random.default_rng(0).integers(-60 * MS, 60 * MS, 200)
    jitter[0] = 0
    resampled = resample(np.arange(200) * PERIOD + jitter, 5.0)
    np.testing.assert_array_equal(resampled.picks, np.arange(200))
    assert resampled.ticks == 200


def test_a_fast_camera_gives_the_nearest_image_at_each_tick() -> None:
    stamps = np.arange(0, 3001) * 10 * MS  # 100 Hz
    picks = resample(stamps, 5.0).picks
    np.testing.assert_array_equal(stamps[picks], np.arange(len(picks)) * PERIOD)
    np.testing.assert_array_equal(resample(ms(0, 130, 190, 240, 390, 420), 5.0).picks, [0, 2, 4])


@pytest.mark.parametrize("camera_hz", [10, 20, 30, 60])
def test_jitter_of_a_fast_camera_does_not_choose_other_images(camera_hz) -> None:
    """Took the newest image within half a period, where one lies on the border: 165 to 235 ms."""
    stamps = np.arange(20 * camera_hz + 1) * 1e9 / camera_hz
    stamps += np.random.default_rng(0).uniform(-MS, MS, len(stamps))
    picks = resample(stamps.astype(np.int64), 5.0).picks
    np.testing.assert_array_equal(np.diff(picks), camera_hz // 5)


def test_a_lost_image_leaves_a_hole_and_is_not_replaced_by_the_one_before() -> None:
    resampled = resample(ms(0, 200, 600, 800), 5.0)
    np.testing.assert_array_equal(resampled.picks, [0, 1, 2, 3])
    assert resampled.ticks == 5


def test_the_rest_of_a_period_makes_no_step() -> None:
    np.testing.assert_array_equal(resample(ms(0, 200, 450, 520), 5.0).picks, [0, 1, 2])
    np.testing.assert_array_equal(resample(ms(0, 200, 400, 520), 5.0).picks, [0, 1, 2, 3])


def test_a_stamp_far_away_costs_no_memory() -> None:
    resampled = resample(np.array([0, 2**61], np.int64), 1000.0)
    assert len(resampled.picks) == 2


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=60),
    st.sampled_from([1.0, 4.0, 5.0, 15.0, 30.0]),
)
def test_picks_increase_and_are_no_closer_than_the_grid_allows(gaps_ms, rate_hz) -> None:
    stamps = np.cumsum(gaps_ms).astype(np.int64) * MS
    resampled = resample(stamps, rate_hz)
    assert (np.diff(resampled.picks) > 0).all()
    assert (np.diff(stamps[resampled.picks]) > 0).all()
    assert 1 <= len(resampled.picks) <= resampled.ticks
    span_s = (stamps[-1] - stamps[0]) / 1e9
    assert resampled.ticks <= span_s * rate_hz + 1.5 + 1e-6


def test_a_value_pairs_with_the_step_whose_image_comes_next() -> None:
    np.testing.assert_array_equal(last_at_or_before(ms(0, 200), ms(-1, 0, 199, 200)), [-1, 0, 0, 1])
    np.testing.assert_array_equal(own_of_step(ms(0, 150, 410), ms(0, 200, 400), PERIOD), [0, 1, -1])


def test_no_value_belongs_to_two_steps() -> None:
    steps = ms(0, 200, 400, 600)
    np.testing.assert_array_equal(own_of_step(ms(0, 200, 600), steps, PERIOD), [0, 1, -1, 2])
    np.testing.assert_array_equal(own_of_step(ms(-150), steps, PERIOD), [0, -1, -1, -1])
    np.testing.assert_array_equal(own_of_step(ms(-200), steps, PERIOD), [-1, -1, -1, -1])
    np.testing.assert_array_equal(own_of_step(ms(), steps, PERIOD), [-1, -1, -1, -1])


def test_a_state_that_is_too_old_is_not_known() -> None:
    steps = ms(0, 200, 400, 600)
    np.testing.assert_array_equal(recent_at_step(ms(0), steps, 300 * MS), [0, 0, -1, -1])
    np.testing.assert_array_equal(recent_at_step(ms(), steps, 300 * MS), [-1] * 4)


def test_episodes_end_where_a_key_changes_or_something_is_left_out() -> None:
    keys = np.array([[0, 0], [0, 0], [0, 1], [1, 1], [1, 1], [1, 1]])
    runs = segment(keys, np.array([True, True, True, True, False, True]))
    assert [run.tolist() for run in runs] == [[0, 1], [2], [3], [5]]
    assert segment(np.zeros((0, 2), np.int64), np.zeros(0, bool)) == []


def test_a_pause_longer_than_the_gap_splits_and_zero_never_does() -> None:
    np.testing.assert_array_equal(gap_key(ms(0, 1000, 2001, 2002), 1.0), [0, 0, 1, 1])
    np.testing.assert_array_equal(gap_key(ms(0, 90_000), 0.0), [0, 0])


def test_the_last_step_lasts_one_period() -> None:
    np.testing.assert_array_equal(step_ends(ms(0, 250), PERIOD), ms(250, 450))


@pytest.mark.parametrize(
    ("stamps", "hold_ms", "expected"),
    [
        ((0, 200), 300, {0: 0.2}),  # one for each step
        ((-50, 100), 300, {0: 0.1, 1: 0.1}),  # that of the step before acts until the next one
        ((0, 50, 100, 150), 300, {0: 0.05, 1: 0.05, 2: 0.05, 3: 0.05}),
        ((0,), 60, {0: 0.06}),  # the stream stops: so does the robot
        ((-100,), 300, {0: 0.2}),
        ((-100,), 100, None),
        ((150,), 300, {0: 0.05}),  # the stream begins
        ((200,), 300, None),
        ((), 300, None),
    ],
)
def test_a_velocity_acts_until_the_next_one(stamps, hold_ms, expected) -> None:
    held = held_during(ms(*stamps), 0, PERIOD, hold_ms * MS)
    if expected is None:
        assert held is None
        return
    acting = {
        index: duration
        for index, duration in zip(
            range(held.indices.start, held.indices.stop), held.durations_s, strict=True
        )
        if duration > 0
    }
    assert acting == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=40), st.integers(1, 20))
def test_steps_side_by_side_share_the_time_without_gap_or_overlap(gaps_ms, count) -> None:
    stamps = np.cumsum(gaps_ms).astype(np.int64) * MS
    edges = np.linspace(0, stamps[-1] + PERIOD, count + 1).astype(np.int64)
    pieces = [held_during(stamps, int(a), int(b), 100 * MS) for a, b in itertools.pairwise(edges)]
    total = sum(float(held.durations_s.sum()) for held in pieces if held)
    whole = (stamps[-1] - stamps[0] + 100 * MS) / 1e9
    assert total == pytest.approx(whole, abs=1e-9)
