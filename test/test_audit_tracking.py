"""Actions against states: an arm is simulated that does what it is told, or nearly."""

from __future__ import annotations

import numpy as np
import pytest
from bridge_episodes import WHY_NOT, has_recordings, octo_episodes

from openvla_ros.control.displacement import euler_matrix
from openvla_ros.evaluation.audit.tracking import (
    Tracking,
    judge_tracking,
    measure_tracking,
    reached_displacements,
)
from openvla_ros.types import ActionSpec

BASE = ActionSpec(
    "test",
    translation_frame="base",
    rotation_frame="base",
    translation_unit_m=1.0,
    rotation_unit_rad=1.0,
)
TOOL = ActionSpec("test", translation_frame="ee", rotation_frame="ee")
RATE_HZ = 5.0


def commands(episodes: int = 3, steps: int = 60) -> list[np.ndarray]:
    """Smooth motion as of a hand, with seven numbers per step."""
    rng = np.random.default_rng(1)
    kernel = np.hanning(7) / np.hanning(7).sum()
    scale = [0.02] * 3 + [0.01] * 3  # rotations stay where axes do not mix
    smooth = [
        np.stack([np.convolve(rng.normal(0, s, steps), kernel, "same") for s in scale], 1)
        for _ in range(episodes)
    ]
    return [np.column_stack([episode, np.ones(steps)]) for episode in smooth]


def arm(actions: np.ndarray, lag: float = 0.5, gain: float = 1.0) -> np.ndarray:
    """(T, 7) states of an arm that follows `lag` steps late."""
    steps = np.arange(len(actions))
    moved = np.stack(
        [np.interp(steps - lag, steps, actions[:, i]) * gain for i in range(6)], axis=1
    )
    path = np.concatenate([np.zeros((1, 6)), np.cumsum(moved, axis=0)])[:-1]
    return np.column_stack([path, actions[:, 6]])


def tracked(actions: list[np.ndarray], states: list[np.ndarray]) -> Tracking:
    tracking = measure_tracking(actions, states, RATE_HZ, BASE)
    assert tracking is not None
    return tracking


def raised(tracking: Tracking) -> dict[str, str]:
    return {f.item: f.level for f in judge_tracking(tracking) if f.level != "ok"}


@pytest.mark.parametrize("lag", [-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])
def test_lag_is_measured_between_steps(lag: float) -> None:
    actions = commands()
    tracking = tracked(actions, [arm(episode, lag) for episode in actions])
    assert tracking.lag_steps == pytest.approx(lag, abs=0.15)
    assert tracking.lag_s == pytest.approx(tracking.lag_steps / RATE_HZ)


@pytest.mark.parametrize(("lag", "level"), [(-1.0, "problem"), (0.0, ""), (1.0, ""), (2.0, "warn")])
def test_arm_must_not_move_before_its_command(lag: float, level: str) -> None:
    actions = commands()
    found = raised(tracked(actions, [arm(episode, lag) for episode in actions]))
    assert found.get("action lag", "") == level


def test_several_steps_of_a_fast_recording_are_no_delay() -> None:
    actions = commands()
    states = [arm(episode, 2.0) for episode in actions]
    tracking = measure_tracking(actions, states, 30.0, BASE)
    assert tracking is not None
    assert "action lag" not in raised(tracking)


@pytest.mark.parametrize(("factor", "level"), [(1.5, ""), (2.5, "warn"), (1000.0, "problem")])
def test_gain_is_commanded_per_reached_motion(factor: float, level: str) -> None:
    actions = commands()
    tracking = tracked([factor * a for a in actions], [arm(a, gain=1.0) for a in actions])
    assert tracking.translation_factor == pytest.approx(factor, rel=0.1)
    assert raised(tracking).get("translation gain", "") == level


def test_every_signed_permutation_of_the_axes_is_recognised() -> None:
    actions = commands()
    turned = [episode.copy() for episode in actions]
    for episode in turned:
        episode[:, :3] = np.stack([-episode[:, 2], episode[:, 0], episode[:, 1]], axis=1)
    tracking = tracked(turned, [arm(episode) for episode in actions])
    assert tracking.axis_map == ("-z", "x", "y")
    assert raised(tracking)["frame"] == "problem"


def test_axis_that_does_not_move_is_left_out() -> None:
    actions = commands()
    for episode in actions:
        episode[:, 2] = 0.0
    tracking = tracked(actions, [arm(episode) for episode in actions])
    assert tracking.correlation_by_axis["z"] is None
    assert "translation gain" not in raised(tracking)


def test_states_of_another_arm_are_a_problem() -> None:
    actions = commands()
    tracking = tracked(actions, [arm(episode) for episode in commands(6)[3:]])
    assert raised(tracking)["states follow actions"] == "problem"


def test_missing_actions_do_not_hide_the_rest() -> None:
    actions = commands()
    states = [arm(episode) for episode in actions]
    for episode in actions:
        episode[10:20] = np.nan
    tracking = tracked(actions, states)
    assert raised(tracking) == {}
    assert tracking.steps == 3 * (59 - 10)


def test_too_little_motion_is_not_judged() -> None:
    (actions,) = commands(1, 15)
    assert measure_tracking([actions], [arm(actions)], RATE_HZ, BASE) is None
    still = np.zeros((100, 7))
    assert measure_tracking([still], [still], RATE_HZ, BASE) is None


def test_displacements_are_in_the_frames_of_the_spec() -> None:
    """One step forward along the tool's x, and a turn about it, with the tool turned in space."""
    rpy = np.array([0.3, -0.4, 1.2])
    before = euler_matrix(rpy)
    turn = euler_matrix(np.array([0.1, 0.0, 0.0]))
    after = before @ turn
    after_rpy = [
        np.arctan2(after[2, 1], after[2, 2]),
        -np.arcsin(after[2, 0]),
        np.arctan2(after[1, 0], after[0, 0]),
    ]
    states = np.array([[0, 0, 0, *rpy], [*(before @ [0.02, 0, 0]), *after_rpy]])
    tool = reached_displacements(states, TOOL)
    np.testing.assert_allclose(tool, [[0.02, 0, 0, 0.1, 0, 0]], atol=1e-12)
    base = reached_displacements(states, BASE)
    np.testing.assert_allclose(base[0, :3], before @ [0.02, 0, 0], atol=1e-12)
    np.testing.assert_allclose(base[0, 3:], before @ [0.1, 0, 0], atol=1e-12)


def test_turn_over_half_a_circle_is_taken_the_short_way() -> None:
    states = np.array([[0, 0, 0, 0, 0, 3.1], [0, 0, 0, 0, 0, -3.1]])
    turned = reached_displacements(states, BASE)[0, 5]
    assert turned == pytest.approx(2 * np.pi - 6.2)


@pytest.mark.skipif(not has_recordings(), reason=WHY_NOT)
def test_real_arm_lags_less_than_a_step_and_follows() -> None:
    episodes = octo_episodes()
    tracking = tracked([e.actions for e in episodes], [e.states for e in episodes])
    assert tracking.lag_steps == pytest.approx(0.42, abs=0.02)
    assert max(tracking.correlation_by_lag, key=tracking.correlation_by_lag.get) == 0
    assert tracking.translation_factor == pytest.approx(1.08, abs=0.01)
    assert tracking.rotation_factor == pytest.approx(1.0, abs=0.01)
