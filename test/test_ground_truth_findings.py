"""What a user reads about a replay of recorded actions."""

from __future__ import annotations

import dataclasses

import numpy as np
from motion_episodes import SPEC, episode_of, octo_actions

from openvla_ros.config.motion import GripperConfig, MotionConfig
from openvla_ros.evaluation.motion.ground_truth import replay_ground_truth
from openvla_ros.types import Finding

EXACT = MotionConfig(twist_mode="exact")
FORWARD = np.array([0.02, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])


def findings(
    *episodes, motion: MotionConfig = EXACT, gripper: GripperConfig | None = None, **options
) -> dict[str, Finding]:
    report = replay_ground_truth(episodes, SPEC, motion, gripper or GripperConfig(), **options)
    return {finding.item: finding for finding in report.findings}


def test_a_clean_recording_says_where_it_ends_and_nothing_bad() -> None:
    found = findings(*map(episode_of, octo_actions()[1:3]))
    assert set(found) == {"end of the path", "recorded end pose", "gripper"}
    assert {finding.level for finding in found.values()} == {"ok"}
    assert found["end of the path"].value == "0.0 mm and 0.0° from the commanded one (median)"
    assert found["recorded end pose"].value == "n/a"


def test_steps_beyond_the_limit_are_told_in_millimetres_with_the_limit() -> None:
    actions = np.tile(FORWARD, (8, 1))
    actions[7, 2] = 0.061
    limit = findings(episode_of(actions))["limit on z"]
    assert limit.level == "problem"
    assert limit.value == "1 of 8 steps cut"
    assert "cut 12% of your steps on z: q99 is 57 mm per step, limit 50 mm" in limit.reason
    assert "limits.delta_position" in limit.reason


def test_a_rare_cut_is_a_warning_in_degrees() -> None:
    actions = np.tile(FORWARD * 0.5, (60, 1))
    actions[3, 5] = 0.3
    limit = findings(episode_of(actions))["limit on yaw"]
    assert limit.level == "warn" and "limit 14.3° (limits.delta_rotation)" in limit.reason


def test_speed_and_path_end_name_the_limits_and_the_worst_episode() -> None:
    fast = np.tile([0.049, 0.03, 0.0, 0.0, 0.0, 0.0, 1.0], (6, 1))
    found = findings(
        episode_of(np.tile(FORWARD, (6, 1))),
        episode_of(fast, name="episode_fast"),
    )
    assert found["speed"].value == "6 of 12 steps too fast"
    assert "limits.linear_speed 0.25 m/s" in found["speed"].reason
    assert found["end of the path"].level == "warn"
    assert found["end of the path"].reason.endswith("in episode_fast.")


def test_a_step_that_is_too_fast_by_less_than_two_ticks_loses_nothing() -> None:
    actions = np.tile(FORWARD, (6, 1))
    actions[2, 0] = 0.049 + 0.0049  # 0.22 s
    motion = dataclasses.replace(EXACT, delta_position=0.1)
    found = findings(episode_of(actions), motion=motion)
    assert found["speed"].value == "1 of 6 steps too fast" and found["speed"].level == "ok"


def test_another_rate_than_the_datasets_is_a_problem_with_its_effect() -> None:
    fast = findings(episode_of(np.tile(FORWARD, (4, 1)), rate_hz=10.0))["rate"]
    assert fast.level == "problem" and "cut off after 0.1 s" in fast.reason
    slow = findings(episode_of(np.tile(FORWARD, (4, 1)), rate_hz=2.5))["rate"]
    assert "takes 2 times as long" in slow.reason
    assert "rate" not in findings(episode_of(np.tile(FORWARD, (4, 1))))


def test_scales_are_named_when_they_are_not_1() -> None:
    motion = dataclasses.replace(EXACT, linear_scale=0.5)
    found = findings(episode_of(np.tile(FORWARD, (4, 1))), motion=motion)
    assert found["scales"].value == "linear_scale 0.5"
    assert found["end of the path"].level == "problem", "half of the path is missing"


def test_refused_steps_name_the_first_episode() -> None:
    actions = np.tile(FORWARD, (4, 1))
    actions[1] = np.nan
    found = findings(episode_of(actions, name="episode_007"))["refused steps"]
    assert found.value == "1 of 4 (NON_FINITE 1)" and "episode_007" in found.reason


def test_the_workspace_is_told_apart_where_it_is_left_and_where_it_is_not_checked() -> None:
    box = dataclasses.replace(EXACT, workspace_min=(0.1,) * 3, workspace_max=(0.4,) * 3)
    actions, states = np.tile(FORWARD, (9, 1)), np.full((9, 7), 0.25)
    left = findings(episode_of(actions, states=states), motion=box)["workspace"]
    assert left.level == "problem" and left.value == "left in 1 of 1 episodes"
    unchecked = findings(episode_of(actions), motion=box)["workspace"]
    assert unchecked.level == "warn" and unchecked.value.startswith("not checked in 1")


def test_lost_gripper_events_name_the_parameter_that_loses_them() -> None:
    actions = np.tile(FORWARD, (12, 1))
    actions[4, 6] = 0.0
    blink = findings(episode_of(actions))["gripper"]
    assert blink.value == "0 of 2 events kept" and "gripper.sticky_steps" in blink.reason
    actions[4:9, 6] = 0.0
    inverted = findings(episode_of(actions), gripper=GripperConfig(invert=True))["gripper"]
    assert inverted.level == "problem" and "gripper.invert turns" in inverted.reason
    kept = findings(episode_of(actions))["gripper"]
    assert kept.level == "ok" and "1.0 steps late" in kept.value


def test_a_recording_without_a_gripper_moves() -> None:
    """Every step of a twist topic was refused, because the gripper was no number."""
    (actions,) = octo_actions()[1:2]
    expected = findings(episode_of(actions))
    for lost in (slice(None), slice(3)):  # no gripper at all, and one that is heard later
        twists = actions.copy()
        twists[lost, 6] = np.nan
        found = findings(episode_of(twists))
        assert "refused steps" not in found
        assert found["end of the path"] == expected["end of the path"]
    twists[4, 2] = np.nan
    assert findings(episode_of(twists))["refused steps"].value.startswith("1 of ")
