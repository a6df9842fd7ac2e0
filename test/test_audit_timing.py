"""Rate, jitter, holes and stamps that stand still."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openvla_ros.evaluation.audit.timing import Timing, judge_timing, measure_timing


def stamps(times_s: np.ndarray | list[float]) -> np.ndarray:
    return np.rint(np.asarray(times_s) * 1e9).astype(np.int64)


def timed(*episodes: np.ndarray | list[float], rate_hz: float = 5.0) -> Timing:
    return measure_timing([stamps(episode) for episode in episodes], [rate_hz] * len(episodes))


def raised(timing: Timing, action_hz: float | None = None) -> dict[str, str]:
    return {f.item: f.level for f in judge_timing(timing, action_hz) if f.level != "ok"}


@given(st.floats(0.5, 100), st.integers(2, 60))
def test_regular_stamps_have_their_rate_and_nothing_else(rate_hz: float, steps: int) -> None:
    timing = timed(np.arange(steps) / rate_hz, rate_hz=rate_hz)
    assert timing.measured_hz == pytest.approx(rate_hz, rel=1e-6)
    assert timing.jitter_p99_ms < 1e-3
    assert (timing.dropped_steps, timing.duplicate_stamps) == (0, 0)


@pytest.mark.parametrize(
    ("rate_hz", "item"), [(3.0, "rate"), (5.0, ""), (10.0, ""), (30.0, "rate")]
)
def test_only_rates_outside_the_advice_are_noted(rate_hz: float, item: str) -> None:
    found = raised(timed(np.arange(50) / rate_hz, rate_hz=rate_hz))
    assert found == ({item: "warn"} if item else {})


def test_pause_between_episodes_is_no_hole() -> None:
    assert raised(timed(np.arange(10) / 5, 1000 + np.arange(10) / 5)) == {}


def test_holes_are_counted_in_steps() -> None:
    timing = timed(np.delete(np.arange(100) / 5, [20, 21, 22, 50]))
    assert (timing.dropped_steps, timing.longest_gap_s) == (4, pytest.approx(0.8))
    assert raised(timing) == {"dropped steps": "warn"}
    assert timing.jitter_p99_ms < 1e-3, "a hole is no jitter"


def test_jitter_is_measured_against_the_period() -> None:
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, 200)
    assert raised(timed(np.arange(200) / 5 + noise)) == {}
    assert raised(timed(np.arange(200) / 5 + 3 * noise)) == {"jitter": "warn"}


def test_stamps_that_stand_still_or_run_back_are_a_problem() -> None:
    timing = timed([0.0, 0.2, 0.2, 0.4, 0.3, 0.6])
    assert timing.duplicate_stamps == 2
    assert raised(timing)["duplicate stamps"] == "problem"


def test_stated_rate_must_be_that_of_the_stamps() -> None:
    assert raised(timed(np.arange(20) / 10, rate_hz=5.0)) == {"stated rate": "warn"}
    mixed = measure_timing([stamps(np.arange(9) / 5), stamps(np.arange(9) / 10)], [5.0, 10.0])
    assert raised(mixed)["stated rate"] == "warn"


def test_rate_of_the_key_is_compared_where_it_is_published() -> None:
    timing = timed(np.arange(20) / 10, rate_hz=10.0)
    assert raised(timing, 10.0) == {} == raised(timing, None)
    assert raised(timing, 5.0) == {"rate of the key": "warn"}


def test_single_steps_cannot_be_measured_and_are_no_fault() -> None:
    timing = timed([0.0], [7.0])
    assert timing.measured_hz is None
    assert raised(timing) == {}
