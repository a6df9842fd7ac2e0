"""Recorded actions through limits and filter: what is cut, and where the arm ends."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from motion_episodes import (
    NO_OCTO_FILES,
    SPEC,
    composed,
    episode_of,
    octo_actions,
    octo_files,
    turned,
)

from openvla_ros.config.motion import GripperConfig, MotionConfig
from openvla_ros.control.pose import Pose
from openvla_ros.errors import MotionError
from openvla_ros.evaluation.motion.ground_truth import replay_ground_truth
from openvla_ros.evaluation.motion.ground_truth_report import Gap, GroundTruthReport

EXACT = MotionConfig(twist_mode="exact")
SCALE_5 = np.array([5, 5, 5, 5, 5, 5, 1])
FORWARD = np.array([0.02, 0.0, 0.0, 0.0, 0.0, 0.1, 1.0])


def replayed(
    *episodes, motion: MotionConfig = EXACT, gripper: GripperConfig | None = None, **options
) -> GroundTruthReport:
    return replay_ground_truth(episodes, SPEC, motion, gripper or GripperConfig(), **options)


def test_a_recording_within_the_limits_ends_0_mm_away_whatever_the_speed_scale() -> None:
    report = replayed(*map(episode_of, octo_actions()[:3]), motion=EXACT)
    assert EXACT.speed_scale == 0.5 and report.speed_scale == 1.0
    assert max(row.end.distance_mm for row in report.episodes) < 1e-6
    assert report.clipped_steps == 0 and report.refused == {}
    assert {f.level for f in report.findings} == {"ok"}, report.findings


def test_another_speed_scale_has_to_be_asked_for() -> None:
    report = replayed(episode_of(np.tile(FORWARD, (5, 1))), speed_scale=0.5)
    assert report.episodes[0].end.distance_mm == pytest.approx(50.0, rel=0.02)


def test_cut_steps_are_counted_axis_by_axis_as_numpy_counts_them() -> None:
    actions = octo_actions()[:4] * SCALE_5
    report = replayed(*map(episode_of, actions))
    sizes = np.abs(actions.reshape(-1, 7)[:, :6])
    is_cut = sizes > np.repeat([EXACT.delta_position, EXACT.delta_rotation], 3)
    assert is_cut.any(axis=0)[:3].any()
    assert [use.clipped_steps for use in report.axes.values()] == is_cut.sum(axis=0).tolist()
    assert report.clipped_steps == is_cut.any(axis=1).sum()
    np.testing.assert_allclose(
        [use.q99 for use in report.axes.values()], np.quantile(sizes, 0.99, axis=0)
    )
    assert report.interventions["step_clip"] == report.clipped_steps


def test_the_end_is_compared_with_the_commanded_and_with_the_recorded_pose() -> None:
    """The recording robot went half as far as its commands."""
    actions = np.tile(FORWARD, (6, 1))
    start = Pose(np.array([0.3, 0.1, 0.2]), turned(np.array([0.1, -0.2, 0.3])))
    states = np.zeros((6, 7))
    for step in range(6):
        pose = composed(actions[:step] * [0.5, 0.5, 0.5, 1, 1, 1, 1], start)
        states[step, :3] = pose.position
        states[step, 3:6] = euler_xyz(pose.rotation)
    [row] = replayed(episode_of(actions, states=states)).episodes
    assert row.end.distance_mm < 1e-6 and row.end.angle_deg < 0.01
    assert row.recording is not None and row.end_recorded is not None
    assert row.recording.distance_mm == pytest.approx(50.0)
    assert row.recording.angle_deg == pytest.approx(0.0, abs=1e-4)
    assert row.end_recorded.distance_mm == pytest.approx(50.0, abs=2.0), "it lags by 20 ms"
    assert row.path_mm == pytest.approx(120.0)


def test_without_states_there_is_no_recorded_end() -> None:
    [row] = replayed(episode_of(np.tile(FORWARD, (3, 1)))).episodes
    assert row.end_recorded is None and row.recording is None


def test_a_workspace_is_left_out_where_nobody_knows_where_the_arm_is() -> None:
    box = dataclasses.replace(EXACT, workspace_min=(0.1,) * 3, workspace_max=(0.4,) * 3)
    actions = np.tile(FORWARD, (9, 1))
    states = np.zeros((9, 7))
    states[:, :3] = 0.25
    unknown, known = replayed(
        episode_of(actions), episode_of(actions, states=states), motion=box
    ).episodes
    assert unknown.has_unchecked_box and unknown.end.distance_mm < 1e-6
    assert not known.has_unchecked_box and known.interventions["workspace"] > 0
    assert known.end.distance_mm > 10.0


def test_steps_that_are_too_fast_are_counted() -> None:
    report = replayed(episode_of(octo_actions()[13]))
    assert (report.episodes[0].slowed_steps, report.clipped_steps) == (1, 1)


def test_steps_without_recording_are_refused_with_a_reason() -> None:
    actions = np.tile(FORWARD, (6, 1))
    actions[2] = np.nan
    [row] = replayed(episode_of(actions)).episodes
    assert row.refused == {"NON_FINITE": 1} and "nan" in row.refusal
    assert row.end.distance_mm < 1e-6


def test_gripper_events_are_lost_with_the_polarity_inverted() -> None:
    actions = np.tile(FORWARD, (10, 1))
    actions[4:8, 6] = 0.0
    straight = replayed(episode_of(actions)).episodes[0].gripper
    assert (straight.recorded, straight.lost, straight.delays) == (2, 0, (1, 1))
    inverted = replayed(episode_of(actions), gripper=GripperConfig(invert=True))
    assert inverted.episodes[0].gripper.lost == 2


def test_an_unknown_spec_says_which_parameters_to_give() -> None:
    spec = dataclasses.replace(SPEC, action_hz=None)
    with pytest.raises(MotionError, match="set the parameters action_hz"):
        replay_ground_truth([episode_of(octo_actions()[0])], spec, EXACT, GripperConfig())


def test_the_report_is_json_without_nan() -> None:
    actions = np.tile(FORWARD, (4, 1))
    actions[1] = np.nan
    written = json.loads(json.dumps(replayed(episode_of(actions)).to_dict(), allow_nan=False))
    assert set(written) == {
        "unnorm_key",
        "speed_scale",
        "twist_mode",
        "steps",
        "clipped_steps",
        "axes",
        "interventions",
        "refused",
        "episodes",
        "findings",
    }
    assert written["refused"] == {"NON_FINITE": 1}
    assert written["episodes"][0]["end_recorded"] is None
    assert written["episodes"][0]["gripper"]["mean_delay_steps"] is None


def test_no_episodes_is_an_empty_report() -> None:
    report = replayed()
    assert (report.steps, report.axes, report.findings) == (0, {}, ())


def test_the_gap_of_two_poses_is_in_mm_and_degrees() -> None:
    gap = Gap.between(Pose(), Pose(np.array([0.003, 0.004, 0.0]), turned(np.array([0, 0, 0.5]))))
    assert gap.distance_mm == pytest.approx(5.0)
    assert gap.angle_deg == pytest.approx(np.degrees(0.5))


@pytest.mark.skipif(not octo_files(), reason=NO_OCTO_FILES)
def test_real_episodes_keep_their_gripper_and_all_but_one_their_path() -> None:
    """Episode 13 turns faster than 1 rad/s in one step."""
    episodes = []
    for path in octo_files():
        with np.load(path, allow_pickle=False) as stored:
            episodes.append(episode_of(stored["action"], name=path.stem, states=stored["state"]))
    report = replayed(*episodes)
    assert [r.episode for r in report.episodes if r.end.distance_mm > 0.1] == ["episode_013"]
    assert sum(r.gripper.lost for r in report.episodes) == 0
    assert sum(r.gripper.recorded for r in report.episodes) == 16
    far = [r.episode for r in report.episodes if r.end_recorded and r.end_recorded.distance_mm > 60]
    assert far == [], "the recording robots follow their commands within some centimetres"
    assert "problem" not in {f.level for f in report.findings}, report.findings


def euler_xyz(rotation: np.ndarray) -> list[float]:
    """Roll, pitch, yaw of a rotation matrix Rz Ry Rx, away from the poles."""
    return [
        np.arctan2(rotation[2, 1], rotation[2, 2]),
        -np.arcsin(rotation[2, 0]),
        np.arctan2(rotation[1, 0], rotation[0, 0]),
    ]
