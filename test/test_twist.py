"""Displacement and streaming: what is published never goes further than the action."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openvla_ros.control.displacement import (
    StepLimits,
    displacement,
    euler_matrix,
    rotation_vector,
)
from openvla_ros.control.pose import exponential_map
from openvla_ros.control.slew import SpeedLimits
from openvla_ros.control.twist import StreamSettings, TwistStreamer
from openvla_ros.errors import MotionError
from openvla_ros.mock_policy import ACTION_SPEC
from openvla_ros.types import ActionSpec

TICK_S = 0.02
FAST = SpeedLimits(linear_m_s=100.0, angular_rad_s=100.0)
NO_CLIP = StepLimits(position_m=100.0, rotation_rad=3.0)
angles = st.floats(-3.1, 3.1, allow_nan=False)
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


def spec_with(**changes: object) -> ActionSpec:
    return ActionSpec(**{**ACTION_SPEC.__dict__, **changes})


# Displacement ----------------------------------------------------------------------------------


def test_translation_is_in_base_axes_and_metres() -> None:
    moves = displacement(
        np.array([[0.01, -0.02, 0.03, 0, 0, 0, 1]]), ACTION_SPEC, limits=StepLimits()
    )
    np.testing.assert_array_equal(moves.steps, [[0.01, -0.02, 0.03, 0, 0, 0]])
    assert moves.clip_mask == 0


def test_unit_of_the_dataset_scales_translation_and_rotation() -> None:
    spec = spec_with(translation_unit_m=0.075, rotation_unit_rad=0.15, kind="eef_velocity")
    moves = displacement(np.array([[0.5, 0, 0, 0, 0, 1.0, 1]]), spec, limits=StepLimits())
    np.testing.assert_allclose(moves.steps, [[0.0375, 0, 0, 0, 0, 0.15]], rtol=1e-12)


@pytest.mark.parametrize(
    ("rpy", "expected"),
    [
        ([0.2, 0.0, 0.0], [0.2, 0.0, 0.0]),
        ([0.0, -0.3, 0.0], [0.0, -0.3, 0.0]),
        ([0.0, 0.0, 1.5], [0.0, 0.0, 1.5]),
        # By hand: Rz(90°) Rx(90°) maps x→y→z→x, a turn of 120° about (1, 1, 1).
        ([np.pi / 2, 0.0, np.pi / 2], np.full(3, 2 * np.pi / 3 / np.sqrt(3))),
    ],
)
def test_rotation_vector_equals_hand_computed_cases(rpy: list[float], expected: object) -> None:
    np.testing.assert_allclose(rotation_vector(euler_matrix(np.array(rpy))), expected, atol=1e-12)


@given(st.tuples(angles, angles, angles))
@settings(max_examples=500, deadline=None)
def test_rotation_vector_and_composition_agree(rpy: tuple[float, float, float]) -> None:
    roll, pitch, yaw = rpy
    about = [exponential_map(np.array(v)) for v in ([0, 0, yaw], [0, pitch, 0], [roll, 0, 0])]
    composed = about[0] @ about[1] @ about[2]
    np.testing.assert_allclose(euler_matrix(np.array(rpy)), composed, atol=1e-12)
    vector = rotation_vector(composed)
    assert np.linalg.norm(vector) <= np.pi + 1e-9
    error = np.abs(exponential_map(vector) - composed).max()
    assert error < 1e-9, f"rotation log is off by {error}"


@pytest.mark.parametrize("angle", [np.pi, np.pi - 1e-9, 1e-9, 0.0])
def test_rotation_vector_is_exact_at_half_turns_and_at_zero(angle: float) -> None:
    axis = np.array([1.0, -2.0, 0.5]) / np.linalg.norm([1.0, -2.0, 0.5])
    matrix = exponential_map(axis * angle)
    np.testing.assert_allclose(exponential_map(rotation_vector(matrix)), matrix, atol=1e-9)


def test_an_axis_beyond_its_limit_is_cut_and_flagged() -> None:
    action = np.array([[0.06, -0.06, 0.04, 0.0, -0.3, 0.3, 1.0]])
    moves = displacement(action, ACTION_SPEC, limits=StepLimits(0.05, 0.25))
    np.testing.assert_array_equal(moves.steps[0, 0:3], [0.05, -0.05, 0.04])
    expected = rotation_vector(euler_matrix(np.array([0.0, -0.25, 0.25])))
    np.testing.assert_allclose(moves.steps[0, 3:6], expected, atol=1e-15)
    assert moves.clip_mask == 0b110011


def test_scale_comes_after_the_clip() -> None:
    action = np.array([[1.0, 0, 0, 0, 0, 1.0, 1]])
    moves = displacement(
        action, ACTION_SPEC, limits=StepLimits(0.05, 0.25), linear_scale=0.5, angular_scale=0.2
    )
    np.testing.assert_allclose(moves.steps, [[0.025, 0, 0, 0, 0, 0.05]], rtol=1e-12)


def test_base_rotation_turns_translation_and_rotation_axes() -> None:
    turn = euler_matrix(np.array([0.0, 0.0, np.pi / 2]))  # dataset x is our y
    action = np.array([[0.01, 0, 0, 0.1, 0, 0, 1]])
    moves = displacement(action, ACTION_SPEC, limits=StepLimits(), base_rotation=turn)
    np.testing.assert_allclose(moves.steps, [[0, 0.01, 0, 0, 0.1, 0]], atol=1e-12)


@given(st.tuples(angles, angles, angles), st.tuples(angles, angles, angles))
@settings(max_examples=200, deadline=None)
def test_base_rotation_equals_a_change_of_basis(
    rpy: tuple[float, float, float], turn_rpy: tuple[float, float, float]
) -> None:
    turn, rotation = euler_matrix(np.array(turn_rpy)), euler_matrix(np.array(rpy) * 0.9)
    action = np.concatenate([[0.0, 0.0, 0.0], np.array(rpy) * 0.9, [1.0]])[None]
    moves = displacement(action, ACTION_SPEC, limits=NO_CLIP, base_rotation=turn)
    np.testing.assert_allclose(
        exponential_map(moves.steps[0, 3:6]), turn @ rotation @ turn.T, atol=1e-9
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"translation_unit_m": None},
        {"rotation_form": None},
        {"translation_frame": "camera"},
        {"rotation_frame": "camera"},
        {"rotation_form": "quaternion"},
    ],
)
def test_an_action_of_unknown_or_foreign_meaning_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(MotionError, match=next(iter(changes))):
        displacement(np.zeros((1, 7)), spec_with(**changes), limits=StepLimits())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(MotionError, match="finite"):
        displacement(np.array([[0, 0, bad, 0, 0, 0, 1.0]]), ACTION_SPEC, limits=StepLimits())


# Streaming -------------------------------------------------------------------------------------


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


def test_a_chunk_at_15_hz_loses_neither_displacement_nor_time_to_the_ticks() -> None:
    """A step of 67 ms is 3.3 ticks: rounding each up would make the arm a fifth too slow."""
    stream = streamer(mode="exact")
    steps = np.zeros((8, 6))
    steps[:, 0] = 0.005
    stream.accept(steps, 1 / 15, 0.0)
    ticks = round(8 / 15 / TICK_S) + 2
    np.testing.assert_allclose(moved(stream, 0.0, [TICK_S] * ticks), steps.sum(0), rtol=1e-9)


def test_hold_of_a_step_that_the_limits_stretch_is_not_longer_than_hold_max() -> None:
    """It used to be held for as much longer as the step took."""
    stream = streamer(mode="hold", hold_max_s=0.1, limits=SpeedLimits(0.1, 1.0))
    stream.accept(np.array([[0.05, 0, 0, 0, 0, 0]]), 0.1, 0.0)
    total = moved(stream, 0.0, [TICK_S] * 100)
    np.testing.assert_allclose(total[0], 0.05 + 0.1 * 0.1, rtol=1e-9)


def test_what_a_limit_held_back_is_added_to_the_next_step() -> None:
    stream = streamer(mode="exact", limits=SpeedLimits(0.1, 1.0), carries_over=True)
    stream.accept(np.array([[0.03, 0, 0, 0, 0, 0]]), 0.2, 0.0)  # needs 0.3 s
    total = moved(stream, 0.0, [TICK_S] * 10)
    stream.accept(np.array([[0.0, 0.01, 0, 0, 0, 0]]), 0.2, 0.2)
    total += moved(stream, 0.2, [TICK_S] * 30)
    np.testing.assert_allclose(total[0:2], [0.03, 0.01], rtol=1e-9)
    assert stream.slowed_steps == 1


def test_no_more_is_taken_over_than_full_speed_covers_in_one_step() -> None:
    stream = streamer(mode="exact", limits=SpeedLimits(0.1, 1.0), carries_over=True)
    stream.accept(np.array([[0.2, 0, 0, 0, 0, 0]]), 0.2, 0.0)  # needs 2 s
    moved(stream, 0.0, [TICK_S] * 10)
    stream.accept(np.zeros((1, 6)), 0.2, 0.2)
    total = moved(stream, 0.2, [TICK_S] * 100)
    np.testing.assert_allclose(total[0], 0.1 * 0.2, rtol=1e-9)


def test_a_policy_faster_than_the_dataset_takes_nothing_over() -> None:
    """Else it would drive the arm at twice the speed of the demonstrations."""
    stream = streamer(carries_over=True)
    for k in range(6):
        stream.accept(np.array([[0.02, 0, 0, 0, 0, 0]]), 0.2, 0.1 * k)
        total = moved(stream, 0.1 * k, [TICK_S] * 5)
    np.testing.assert_allclose(total[0], 0.01, rtol=1e-9)


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
