"""Recorded trajectories of the expert: what is recorded is what it would do, also after a push."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from finetune_cases import run_config
from replay_cases import small_checkpoint
from sim_cells import require_pictures, shared_cell

from openvla_ros.action_specs import load_action_spec
from openvla_ros.cli import main
from openvla_ros.data.episode import Episode
from openvla_ros.data.sources import find_recordings, open_episodes
from openvla_ros.data.topics import StateSource, read_topic_file
from openvla_ros.evaluation.audit.audit_report import audit_episodes
from openvla_ros.sim.expert import MAX_STEP_M, MAX_STEP_RAD, expert_action
from openvla_ros.sim.recording import trajectories
from openvla_ros.sim.recording.grounding import read_grounding
from openvla_ros.sim.recording.options import DATASET, RecordingOptions
from openvla_ros.sim.recording.run import record_trajectories
from openvla_ros.sim.recording.trajectories import Trajectory, expert_trajectory
from openvla_ros.training.config_file import plain_config

pytest.importorskip("rosbags", reason="bags need the extra `bags`")
require_pictures()

TOPICS = Path(__file__).resolve().parents[1] / "config" / "topics" / "sim.yaml"
SMALL = RecordingOptions(width=64, height=64, pushes=0.2)
EPISODES = 4
FULL_STEP = np.array([MAX_STEP_M] * 3 + [MAX_STEP_RAD] * 3)


@cache
def driven(number: int) -> Trajectory:
    return expert_trajectory(shared_cell(), SMALL, number)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording") / "reach"
    record_trajectories(folder, EPISODES, SMALL)
    return folder


def episodes_of(folder: Path, *, has_state: bool = False) -> list[Episode]:
    topics = read_topic_file(TOPICS)
    if has_state:
        topics = replace(topics, state=StateSource(topic="/ee_pose"))
    return [e for bag in find_recordings(folder) for e in open_episodes(bag, topics=topics)]


def test_a_bag_is_read_back_as_the_trajectory_was(folder: Path) -> None:
    grounding = read_grounding(folder)
    for number, episode in enumerate(episodes_of(folder, has_state=True)):
        trajectory = driven(number)
        assert episode.instruction == trajectory.task.instruction
        expected = np.stack([step.action for step in trajectory.steps])
        np.testing.assert_allclose(episode.actions, expected, atol=1e-9)
        assert episode.states is not None
        positions = np.stack([step.tool.position for step in trajectory.steps])
        np.testing.assert_allclose(episode.states[:, :3], positions, atol=1e-9)
        places = grounding[f"{Path(episode.source).name}_{episode.name}"]
        target = np.concatenate([step.grounding.target for step in trajectory.steps])
        np.testing.assert_array_equal(places.target, target)


def test_every_episode_ends_with_its_task_done() -> None:
    for number in range(EPISODES):
        assert driven(number).is_done, driven(number).task


def test_a_push_leads_away_from_what_is_recorded_and_the_way_back_is_recorded() -> None:
    """Of pushed steps the arm does not do what is recorded; of the others it does, nearly."""
    followed, pushed = [], []
    for number in range(EPISODES):
        steps = driven(number).steps
        for here, there in itertools.pairwise(steps):
            moved = there.tool.position - here.tool.position
            off = float(np.linalg.norm(moved - here.action[:3])) / MAX_STEP_M
            (pushed if here.is_pushed else followed).append(off)
    assert len(pushed) >= 10
    assert np.median(pushed) > 0.7 and np.median(followed) < 0.5, (pushed, followed)


def test_what_is_recorded_is_the_expert_s_answer_to_the_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within the noise, in pushed steps too."""
    answers = []

    def noted(task: object, state: object) -> np.ndarray:
        answers.append(expert_action(task, state))  # type: ignore[arg-type]
        return answers[-1]

    monkeypatch.setattr(trajectories, "expert_action", noted)
    steps = expert_trajectory(shared_cell(), SMALL, 0).steps
    off = np.array([s.action[:6] - a[:6] for s, a in zip(steps, answers, strict=True)])
    assert any(step.is_pushed for step in steps)
    assert np.abs(off / FULL_STEP).max() < 6 * SMALL.label_noise
    assert all(s.action[6] == a[6] for s, a in zip(steps, answers, strict=True))


def test_no_number_of_a_motion_is_exactly_zero(folder: Path) -> None:
    for episode in episodes_of(folder):
        assert (episode.actions[:, :6] != 0.0).all(), episode.name


def test_without_pushes_the_arm_does_what_is_recorded(tmp_path: Path) -> None:
    calm = replace(SMALL, pushes=0.0)
    recorded = record_trajectories(tmp_path / "calm", 3, calm)
    assert recorded.pushed_steps == 0
    report = audit_episodes(
        episodes_of(tmp_path / "calm", has_state=True), load_action_spec(DATASET), {}, None
    )
    assert not report.has_problems, report.findings
    [follows] = [f for f in report.findings if f.item == "states follow actions"]
    assert follows.level == "ok", follows


def test_with_pushes_the_audit_finds_no_problem(folder: Path) -> None:
    report = audit_episodes(
        episodes_of(folder, has_state=True), load_action_spec(DATASET), {}, None
    )
    assert not report.has_problems, [f for f in report.findings if f.level == "problem"]


def test_what_is_not_done_in_time_is_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trajectories.MOST_STEPS, "reach", 2)
    recorded = record_trajectories(tmp_path / "short", 2, SMALL)
    assert (recorded.episodes, recorded.left_out) == (0, 2)


def test_the_same_seed_drives_the_same_way() -> None:
    again = expert_trajectory(shared_cell(), SMALL, 0).steps
    assert len(again) == len(driven(0).steps)
    for one, other in zip(again, driven(0).steps, strict=True):
        np.testing.assert_array_equal(one.action, other.action)
        np.testing.assert_array_equal(one.jpeg, other.jpeg)


def test_a_fine_tuning_run_plans_with_the_bags(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_checkpoint(tmp_path / "base")
    source = {"path": str(folder), "name": DATASET, "topics": str(TOPICS)}
    config = run_config(tmp_path, tmp_path / "run", data__sources=[source])
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(plain_config(config)), encoding="utf-8")
    assert main(["finetune", "--config", str(path), "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["data"][DATASET]
    assert planned["steps"] > 0 and planned["held_out_episodes"] == 1, planned


def test_the_command_asks_for_one_kind_of_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in ([], ["--moments", "1", "--episodes", "1"]):
        assert main(["sim", "record", str(tmp_path / "out"), *given]) == 1
        assert "--moments N" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
