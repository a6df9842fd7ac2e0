"""Polarity, range and events of the gripper."""

from __future__ import annotations

import numpy as np
import pytest

from openvla_ros.action_specs import load_action_spec
from openvla_ros.evaluation.audit.gripper import (
    gripper_changes,
    judge_gripper,
    measure_gripper,
)
from openvla_ros.types import ActionSpec

SPEC = load_action_spec("bridge_orig")
RATE_HZ = 5.0
PICK = np.array([1.0] * 6 + [0.0] * 8 + [1.0] * 4)  # open, closed, open again


def raised(
    commands: list[np.ndarray],
    states: list[np.ndarray | None] | None = None,
    spec: ActionSpec = SPEC,
) -> dict[str, str]:
    names = [f"e{i}" for i in range(len(commands))]
    facts = measure_gripper(
        names, commands, states or [None] * len(names), [RATE_HZ] * len(names), spec
    )
    assert facts is not None
    return {f.item: f.level for f in judge_gripper(facts, spec) if f.level != "ok"}


def test_picking_is_well() -> None:
    assert raised([PICK] * 6) == {}


def test_changes_have_their_step_and_direction_and_pass_over_gaps() -> None:
    opening = np.array([1.0, np.nan, 0.2, 0.4, np.nan, 0.9])
    assert gripper_changes(opening) == [(2, False), (5, True)]
    assert gripper_changes(np.full(3, np.nan)) == []


def test_spec_says_which_number_is_open() -> None:
    """LIBERO's actions: -1 open, +1 closed."""
    spec = ActionSpec("test", gripper_open=-1.0, gripper_closed=1.0)
    assert raised([1 - 2 * PICK] * 6, spec=spec) == {}
    assert raised([2 * PICK - 1] * 6, spec=spec) == {"gripper polarity": "warn"}


def test_closed_start_alone_is_a_hint_and_with_the_state_a_problem() -> None:
    closed_first = [1 - PICK] * 6
    width = 0.08 * PICK
    assert raised(closed_first) == {"gripper polarity": "warn"}
    assert raised(closed_first, [width] * 6) == {"gripper polarity": "problem"}
    assert raised(closed_first[:3], [width] * 3) == {"gripper polarity": "warn"}, "too few"


def test_state_may_count_the_other_way() -> None:
    assert raised([PICK] * 6, [0.8 * (1 - PICK)] * 6) == {}  # a knuckle angle


@pytest.mark.parametrize("command", [2 * PICK - 1, 100 * PICK, 255 * PICK])
def test_numbers_beyond_the_ends_are_a_problem(command: np.ndarray) -> None:
    assert raised([command] * 6)["gripper range"] == "problem"


def test_noise_at_the_ends_is_not() -> None:
    assert raised([PICK * 1.02 - 0.01] * 6) == {}


def test_width_in_metres_is_a_problem() -> None:
    assert raised([0.08 * PICK] * 6)["gripper range"] == "problem"


def test_gripper_that_never_moves_is_noted() -> None:
    assert raised([np.ones(18)] * 6) == {"gripper events": "warn"}
    assert raised([np.ones(1), np.zeros(1)] * 3) == {}, "single steps cannot show an event"


def test_chatter_is_noted_with_its_episode() -> None:
    chatter = PICK.copy()
    chatter[3] = 0.0
    facts = measure_gripper(["a", "b"], [PICK, chatter], [None] * 2, [RATE_HZ] * 2, SPEC)
    assert facts is not None
    assert (facts.chatter, facts.events_by_episode) == (("b",), (2, 4))
    assert raised([PICK, chatter]) == {"gripper chatter": "warn"}


def test_many_values_between_are_noted() -> None:
    resting = np.where(PICK == 0, 0.4, PICK)
    assert raised([resting] * 6) == {"gripper between": "warn"}


def test_nothing_recorded_is_nothing_to_judge() -> None:
    assert measure_gripper(["a"], [np.full(5, np.nan)], [None], [RATE_HZ], SPEC) is None
