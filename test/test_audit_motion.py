"""Pauses: what counts as one, and when they are too many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openvla_ros.action_specs import load_action_spec
from openvla_ros.evaluation.audit.motion import (
    find_pauses,
    judge_idle,
    longest_run,
    measure_idle,
)

SPEC = load_action_spec("bridge_orig")
RATE_HZ = 5.0


def moving(steps: int) -> np.ndarray:
    actions = np.zeros((steps, 7))
    actions[:, 0] = 0.01  # 5 cm/s
    return actions


def raised(*episodes: np.ndarray) -> dict[str, str]:
    names = [f"e{i}" for i in range(len(episodes))]
    idle = measure_idle(names, episodes, [RATE_HZ] * len(episodes), SPEC)
    return {f.item: f.level for f in judge_idle(idle) if f.level != "ok"}


def test_pause_is_slow_in_translation_and_rotation_with_a_still_gripper() -> None:
    actions = np.zeros((5, 7))
    actions[1, 1] = 0.0021  # 1.05 cm/s
    actions[2, 4] = 0.021  # 0.105 rad/s
    actions[3:, 6] = 1.0  # the gripper opens in step 3, and stays open
    np.testing.assert_array_equal(
        find_pauses(actions, RATE_HZ, SPEC), [True, False, False, False, True]
    )


def test_step_without_recording_is_no_pause() -> None:
    assert not find_pauses(np.full((3, 7), np.nan), RATE_HZ, SPEC).any()


def test_speed_not_step_size_decides() -> None:
    actions = moving(3) / 10  # 1 mm per step
    assert find_pauses(actions, 5.0, SPEC).all()
    assert not find_pauses(actions, 20.0, SPEC).any()


@given(st.lists(st.booleans(), max_size=40))
def test_longest_run_is_that_of_the_text(values: list[bool]) -> None:
    runs = "".join("1" if value else "0" for value in values).split("0")
    assert longest_run(np.array(values, bool)) == max(map(len, runs))


@pytest.mark.parametrize(("idle_steps", "level"), [(1, ""), (3, "warn"), (6, "problem")])
def test_share_of_pauses_has_two_limits(idle_steps: int, level: str) -> None:
    actions = moving(10)
    actions[1 : 1 + 2 * idle_steps : 2, 0] = 0  # every second, then no longest pause
    if idle_steps == 6:
        actions[4:, 0] = 0
    found = raised(*[actions] * 3)
    assert found.get("idle share", "") == level, found


def test_longest_pause_is_noted_even_when_the_share_is_small() -> None:
    actions = moving(200)
    actions[50:56] = 0
    assert raised(actions) == {"longest pause": "warn"}


def test_worst_episodes_come_first() -> None:
    half = moving(10)
    half[2:7] = 0
    idle = measure_idle(["good", "bad"], [moving(10), half], [RATE_HZ] * 2, SPEC)
    assert [row.episode for row in idle.episodes] == ["bad", "good"]
    assert (idle.share, idle.longest_s) == (0.25, 1.0)


def test_zero_first_action_of_most_episodes_is_noted() -> None:
    late = moving(20)
    late[0] = 1e-7  # what float32 left of zero
    assert raised(late, late, moving(20)) == {"idle start": "warn"}
    assert raised(late, moving(20), moving(20)) == {}
