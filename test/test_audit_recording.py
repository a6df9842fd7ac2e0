"""Steps without an action, and the table of episodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from audit_faults import make_episode

from openvla_ros.action_specs import load_action_spec
from openvla_ros.evaluation.audit.pictures import judge_repeats, look_at
from openvla_ros.evaluation.audit.recording import Recording, episode_rows, judge_recording
from openvla_ros.types import ActionSpec

SPEC = load_action_spec("bridge_orig")


def recording(actions: np.ndarray, spec: ActionSpec = SPEC) -> Recording:
    episode = make_episode("a", actions, np.zeros((len(actions), 4, 4, 3), np.uint8))
    return Recording([episode], [look_at(episode.open_images())], spec)


def levels(actions: np.ndarray) -> dict[str, str]:
    return {f.item: f.level for f in judge_recording(recording(actions)) if f.level != "ok"}


def test_whole_recording_is_well() -> None:
    assert levels(np.ones((4, 7))) == {}


def test_missing_actions_are_a_note_and_none_at_all_a_problem() -> None:
    actions = np.ones((4, 7))
    actions[1] = np.nan
    assert levels(actions) == {"steps without action": "warn"}
    assert levels(np.full((4, 7), np.nan)) == {"steps without action": "problem"}


@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_half_a_row_is_damage(damage: float) -> None:
    actions = np.ones((4, 7))
    actions[2, 3] = damage
    assert levels(actions) == {"damaged actions": "problem"}


def test_rows_count_pauses_events_and_repeats() -> None:
    actions = np.zeros((5, 7))
    actions[:2, 0] = 0.01
    actions[:, 6] = [1, 1, 1, 0, 0]
    (row,) = episode_rows(recording(actions))
    assert (row.steps, row.idle_share, row.longest_pause_s) == (5, 0.4, 0.2)
    assert (row.gripper_events, row.repeated_frames, row.steps_without_action) == (1, 4, 0)


def test_rows_leave_open_what_the_spec_does_not_say() -> None:
    (row,) = episode_rows(recording(np.zeros((5, 7)), ActionSpec("")))
    assert row.idle_share is row.longest_pause_s is row.gripper_events is None


def test_arm_moves_after_its_action() -> None:
    actions = np.zeros((4, 7))
    actions[1, 0] = 0.01
    np.testing.assert_array_equal(recording(actions).moving(0), [False, False, True, False])


def test_episodes_of_several_sources_are_told_apart() -> None:
    """Two bags both have an "episode_000000": two frozen cameras were counted as one."""
    one = make_episode("episode_000000", np.ones((7, 7)), np.zeros((7, 4, 4, 3), np.uint8))
    both = [replace(one, source=source) for source in ("bag_a", "bag_b")]
    facts = [look_at(episode.open_images()) for episode in both]
    recording = Recording(both, facts, SPEC)
    assert recording.names == ["bag_a: episode_000000", "bag_b: episode_000000"]
    moving = [recording.moving(i) for i in range(2)]
    repeated = [row.is_repeated for row in facts]
    (finding,) = judge_repeats(recording.names, repeated, moving, recording.rates_hz)
    assert finding.value.startswith("2 of 2 episodes")
    assert Recording(both[:1], facts[:1], SPEC).names == ["episode_000000"]
