"""Streaming: what is published never goes further than the action, and never for longer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openvla_ros.control.slew import SpeedLimits
from openvla_ros.control.twist import StreamSettings, TwistStreamer

TICK_S = 0.02
FAST = SpeedLimits(linear_m_s=100.0, angular_rad_s=100.0)
steps_of = st.lists(st.floats(-0.05, 0.05), min_size=6, max_size=6).map(np.array)


def streamer(**changes: object) -> TwistStreamer:
    return TwistStreamer(StreamSettings(**{"tick_s": TICK_S, "limits": FAST, **changes}))


def moved(stream: TwistStreamer, start_s: float, ticks_s: list[float]) -> np.ndarray:
    """Integral of the twist, held constant from each tick to the next, m and rad."""
    total, now_s = np.zeros(6), start_s
    for interval_s in ticks_s:
        total += stream.sample(now_s) * interval_s
        now_s += interval_s
    return total


def test_velocity_is_displacement_over_step_time() -> None:
    """A bridge that publishes the step itself is five times too slow at 5 Hz."""
    stream = streamer()
    stream.accept(np.array([[0.02, 0, 0, 0, 0, 0.1]]), 0.2, 0.0)
    np.testing.assert_allclose(stream.sample(0.0), [0.1, 0, 0, 0, 0, 0.5], rtol=1e-12)


@pytest.mark.parametrize("mode", ["stretch", "exact"])
def test_a_whole_step_is_executed_and_then_the_arm_stops(mode: str) -> None:
    stream = streamer(mode=mode)
    step = np.array([0.02, -0.01, 0.0, 0.0, 0.0, 0.1])
    stream.accept(step[None], 0.2, 0.0)
    np.testing.assert_allclose(moved(stream, 0.0, [TICK_S] * 15), step, rtol=1e-9)
    assert not stream.is_moving
    np.testing.assert_array_equal(stream.sample(0.3), np.zeros(6))


def test_a_late_answer_never_repeats_the_last_action() -> None:
    """Peers publish the last action for ever when inference stops."""
    stream = streamer()
    stream.accept(np.array([[0.02, 0, 0, 0, 0, 0]]), 0.2, 0.0)
    total = moved(stream, 0.0, [TICK_S] * 500)
    np.testing.assert_allclose(total[0], 0.02, rtol=1e-9)


def test_stretch_slows_down_to_the_measured_period() -> None:
    stream = streamer()
    for k in range(4):
        stream.accept(np.array([[0.02, 0, 0, 0, 0, 0]]), 0.2, 0.5 * k)
    np.testing.assert_allclose(stream.sample(1.5)[0], 0.02 / 0.5, rtol=1e-9)


def test_stretch_shares_the_measured_period_among_the_steps_of_a_chunk() -> None:
    """Four steps of 0.2 s every second: 0.25 s each."""
    stream = streamer()
    for k in range(3):
        stream.accept(np.full((4, 6), 0.02), 0.2, 1.0 * k)
    np.testing.assert_allclose(stream.sample(2.0), np.full(6, 0.02 / 0.25), rtol=1e-9)


def test_stretch_is_never_faster_than_the_dataset() -> None:
    stream = streamer()
    for k in range(4):
        stream.accept(np.array([[0.02, 0, 0, 0, 0, 0]]), 0.2, 0.05 * k)
    np.testing.assert_allclose(stream.sample(0.15)[0], 0.02 / 0.2, rtol=1e-9)


def test_one_outlier_does_not_change_the_measured_period() -> None:
    stream = streamer()
    for now_s in (0.0, 0.2, 0.4, 3.0, 3.2, 3.4):
        stream.accept(np.zeros((1, 6)), 0.2, now_s)
    assert stream.period_s == pytest.approx(0.2)


def test_a_pause_is_not_a_period() -> None:
    stream = streamer()
    stream.accept(np.zeros((1, 6)), 0.2, 0.0)
    stream.accept(np.zeros((1, 6)), 0.2, 0.2)
    stream.fade(0.3)
    stream.accept(np.zeros((1, 6)), 0.2, 60.0)
    assert stream.period_s == pytest.approx(0.2)


def test_exact_ignores_the_measured_period() -> None:
    stream = streamer(mode="exact")
    for k in range(4):
        stream.accept(np.array([[0.02, 0, 0, 0, 0, 0]]), 0.2, 0.5 * k)
    np.testing.assert_allclose(stream.sample(1.5)[0], 0.1, rtol=1e-9)


def test_hold_keeps_the_velocity_for_hold_max_and_not_longer() -> None:
    stream = streamer(mode="hold", hold_max_s=0.1)
    stream.accept(np.array([[0.02, 0, 0, 0, 0, 0]]), 0.2, 0.0)
    total = moved(stream, 0.0, [TICK_S] * 100)
    np.testing.assert_allclose(total[0], 0.02 * (1 + 0.1 / 0.2), rtol=1e-9)


def test_hold_is_no_longer_for_a_step_that_the_speed_limit_stretches() -> None:
    """It used to last hold_max in units of the unstretched step: twice as long in this case."""
    limits = SpeedLimits(linear_m_s=0.1, angular_rad_s=1.0)
    stream = streamer(mode="hold", hold_max_s=0.1, limits=limits)
    stream.accept(np.array([[0.04, 0, 0, 0, 0, 0]]), 0.2, 0.0)  # 0.4 s at this speed
    total = moved(stream, 0.0, [TICK_S] * 60)
    assert total[0] == pytest.approx(0.1 * (0.4 + 0.1), rel=1e-6)


def test_a_step_beyond_the_speed_limit_takes_longer_in_the_same_direction() -> None:
    stream = streamer(limits=SpeedLimits(linear_m_s=0.1, angular_rad_s=1.0))
    step = np.array([0.03, 0.04, 0.0, 0.0, 0.0, 0.02])  # 0.05 m in 0.2 s would be 0.25 m/s
    stream.accept(step[None], 0.2, 0.0)
    first = stream.sample(0.0)
    assert np.linalg.norm(first[0:3]) == pytest.approx(0.1)
    np.testing.assert_allclose(first / np.linalg.norm(first), step / np.linalg.norm(step))
    np.testing.assert_allclose(moved(stream, 0.0, [TICK_S] * 60), step, rtol=1e-9)


def test_a_new_chunk_replaces_what_is_left() -> None:
    stream = streamer()
    stream.accept(np.array([[0.02, 0, 0, 0, 0, 0]]), 0.2, 0.0)
    first = moved(stream, 0.0, [TICK_S] * 5)
    stream.accept(np.array([[0.0, 0.02, 0, 0, 0, 0]]), 0.2, 0.1)
    second = moved(stream, 0.1, [TICK_S] * 20)
    np.testing.assert_allclose(first, [0.01, 0, 0, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(second, [0, 0.02, 0, 0, 0, 0], atol=1e-9)


@pytest.mark.parametrize("action_hz", [7.3, 15.0, 30.0])
@pytest.mark.parametrize("jitter", [1.0, 0.7, 0.3])
def test_a_chunk_takes_its_displacement_and_its_time_whatever_the_ticks(
    action_hz: float, jitter: float
) -> None:
    """At 30 Hz a step is 1.7 ticks of 20 ms; one tick each made the arm 67 % too fast."""
    stream = streamer(mode="exact")
    steps = np.zeros((8, 6))
    steps[:, 0], steps[::2, 1] = 0.005, 0.003
    stream.accept(steps, 1.0 / action_hz, 0.0)
    total, now_s = np.zeros(6), 0.0
    while now_s < 8.0 / action_hz + 30 * TICK_S:
        total += stream.sample(now_s) * TICK_S * jitter
        now_s += TICK_S * jitter
        ahead_s = total[0] / 0.005 / action_hz - min(now_s, 8.0 / action_hz)
        assert -TICK_S <= ahead_s <= 1e-9, f"{ahead_s} s ahead after {now_s} s"
    np.testing.assert_allclose(total, steps.sum(0), atol=1e-8)
    assert not stream.is_moving


def test_a_late_tick_adds_what_it_is_late_and_the_arm_does_not_come_back() -> None:
    stream = streamer(mode="exact")
    stream.accept(np.array([[0.02, 0, 0, 0, 0, 0]]), 0.2, 0.0)
    total = moved(stream, 0.0, [TICK_S] * 9 + [TICK_S * 2] + [TICK_S] * 5)
    np.testing.assert_allclose(total[0], 0.02 + 0.1 * TICK_S, rtol=1e-9)
    assert not stream.is_moving


def test_a_late_tick_within_a_step_is_made_good_before_its_end() -> None:
    stream = streamer(mode="exact")
    stream.accept(np.array([[0.02, 0, 0, 0, 0, 0]]), 0.2, 0.0)
    total = moved(stream, 0.0, [TICK_S, TICK_S * 3, TICK_S * 1.5] + [TICK_S] * 15)
    np.testing.assert_allclose(total[0], 0.02, rtol=1e-9)


def test_a_late_tick_at_a_corner_leads_back_to_the_path_within_the_limits() -> None:
    stream = streamer(mode="exact", limits=SpeedLimits(0.1, 1.0))
    steps = np.array([[0.01, 0, 0, 0, 0, 0], [-0.01, 0, 0, 0, 0, 0]])
    stream.accept(steps, 0.1, 0.0)
    twists = [stream.sample(t) for t in (0.0, 0.02, 0.04, 0.06, 0.08, 0.16, 0.18)]
    assert max(np.abs(twist[0]) for twist in twists) <= 0.1 + 1e-12
    assert twists[-1][0] == pytest.approx(-0.1)


def test_hold_of_a_step_that_the_limits_stretch_is_not_longer_than_hold_max() -> None:
    """It used to be held for as much longer as the step took."""
    stream = streamer(mode="hold", hold_max_s=0.1, limits=SpeedLimits(0.1, 1.0))
    stream.accept(np.array([[0.05, 0, 0, 0, 0, 0]]), 0.1, 0.0)
    total = moved(stream, 0.0, [TICK_S] * 100)
    np.testing.assert_allclose(total[0], 0.05 + 0.1 * 0.1, rtol=1e-9)


def test_what_a_limit_held_back_is_dropped_with_its_action() -> None:
    """The policy has seen where the arm was: adding the rest to its answer would count it twice."""
    stream = streamer(mode="exact", limits=SpeedLimits(0.1, 1.0))
    stream.accept(np.array([[0.03, 0, 0, 0, 0, 0]]), 0.2, 0.0)  # needs 0.3 s
    total = moved(stream, 0.0, [TICK_S] * 10)
    stream.accept(np.array([[0.0, 0.01, 0, 0, 0, 0]]), 0.2, 0.2)
    total += moved(stream, 0.2, [TICK_S] * 30)
    np.testing.assert_allclose(total[0:2], [0.02, 0.01], rtol=1e-9)
    assert stream.slowed_steps == 1


def test_a_policy_faster_than_the_dataset_does_not_drive_faster_than_it() -> None:
    stream = streamer()
    for k in range(6):
        stream.accept(np.array([[0.02, 0, 0, 0, 0, 0]]), 0.2, 0.1 * k)
        total = moved(stream, 0.1 * k, [TICK_S] * 5)
    np.testing.assert_allclose(total[0], 0.01, rtol=1e-9)


def test_the_same_answer_twice_at_once_moves_once() -> None:
    stream = streamer()
    for _ in range(2):
        stream.accept(np.array([[0.02, 0, 0, 0, 0, 0]]), 0.2, 0.0)
    np.testing.assert_allclose(moved(stream, 0.0, [TICK_S] * 30)[0], 0.02, rtol=1e-9)


def test_a_pending_chunk_is_forgotten_by_a_stop() -> None:
    stream = streamer()
    stream.accept(np.array([[0.02, 0, 0, 0, 0, 0]]), 0.2, 0.0)
    stream.stop()
    np.testing.assert_array_equal(stream.sample(0.0), np.zeros(6))
    stream.accept(np.array([[0.02, 0, 0, 0, 0, 0]]), 0.2, 0.1)
    stream.fade(0.1)
    assert not moved(stream, 0.1, [TICK_S] * 20).any()


def test_stop_is_zero_at_the_next_tick() -> None:
    stream = streamer()
    stream.accept(np.array([[0.02, 0, 0, 0, 0, 0]]), 0.2, 0.0)
    assert stream.sample(0.0)[0] > 0.0
    stream.stop()
    np.testing.assert_array_equal(stream.sample(0.02), np.zeros(6))


def test_fade_ramps_to_zero_within_the_decay_time() -> None:
    stream = streamer(decay_s=0.1)
    stream.accept(np.array([[0.05, 0, 0, 0, 0, 0]]), 1.0, 0.0)
    stream.sample(0.0)
    stream.fade(0.02)
    speeds = [stream.sample(0.02 + k * TICK_S)[0] for k in range(6)]
    np.testing.assert_allclose(speeds, [0.05, 0.04, 0.03, 0.02, 0.01, 0.0], atol=1e-12)
    assert not stream.is_moving


@given(
    steps=st.lists(steps_of, min_size=1, max_size=8),
    step_s=st.floats(0.02, 0.3),
    stop_at_s=st.floats(0.0, 1.0),
)
@settings(max_examples=200, deadline=None)
def test_a_stream_that_was_stopped_stays_zero(
    steps: list[np.ndarray], step_s: float, stop_at_s: float
) -> None:
    stream = streamer()
    stream.accept(np.stack(steps), step_s, 0.0)
    moved(stream, 0.0, [TICK_S] * int(stop_at_s / TICK_S))
    stream.stop()
    for k in range(20):
        np.testing.assert_array_equal(stream.sample(stop_at_s + k * TICK_S), np.zeros(6))


def test_a_clock_that_stands_still_or_runs_back_moves_nothing_extra() -> None:
    stream = streamer()
    stream.accept(np.array([[0.02, 0, 0, 0, 0, 0]]), 0.2, 10.0)
    for now_s in (10.0, 10.0, 9.0, 9.0):
        assert stream.sample(now_s)[0] <= 0.1 + 1e-12
    total = moved(stream, 9.0, [TICK_S] * 100)
    assert total[0] <= 0.02 + 1e-12
