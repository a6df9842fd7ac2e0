"""DAgger: the policy drives, the expert is recorded, and no episode is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sim_cells import require_pictures, shared_cell

from openvla_ros.data.sources import find_recordings, open_episodes
from openvla_ros.data.topics import read_topic_file
from openvla_ros.evaluation.motion.motion_replay import as_prediction
from openvla_ros.sim.expert import expert_action
from openvla_ros.sim.recording import policy_rounds
from openvla_ros.sim.recording.options import RecordingOptions
from openvla_ros.sim.recording.run import record_trajectories
from openvla_ros.types import PRIMARY, Observation, Prediction

pytest.importorskip("rosbags", reason="bags need the extra `bags`")
require_pictures()

TOPICS = Path(__file__).resolve().parents[1] / "config" / "topics" / "sim.yaml"
OPTIONS = RecordingOptions(width=64, height=48, policy="stubborn")
AWAY = np.array([0.0, 0.01, 0.01, 0.0, 0.0, 0.0, 1.0])


class Stubborn:
    """Goes one way, whatever it sees."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def begin_episode(self) -> None:
        """Nothing to forget."""

    def predict(self, observation: Observation) -> Prediction:
        """Return the same action."""
        self.seen.append(observation)
        return as_prediction(AWAY, "bridge_orig")


def test_what_is_recorded_is_what_the_expert_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Stubborn()
    monkeypatch.setattr(policy_rounds, "_loaded", lambda checkpoint: policy)
    monkeypatch.setattr(policy_rounds, "MOST_STEPS", {"reach": 8})
    cell = shared_cell()
    trajectory = policy_rounds.policy_trajectory(cell, OPTIONS, 0)
    assert not trajectory.is_done and len(trajectory.steps) == 8
    moved = trajectory.steps[-1].tool.position - trajectory.steps[0].tool.position
    assert moved[1] > 0.04 and moved[2] > 0.04  # the policy drove
    assert policy.seen[0].images[PRIMARY].shape == (48, 64, 3)
    assert {seen.instruction for seen in policy.seen} == {trajectory.task.instruction}
    first = trajectory.steps[0].action
    task = cell.reset(OPTIONS.seed, "reach")
    assert np.allclose(first, expert_action(task, cell.state()))
    recorded = record_trajectories(tmp_path / "rounds", 2, OPTIONS)
    assert (recorded.episodes, recorded.steps, recorded.left_out) == (2, 16, 0)
    bag = find_recordings(tmp_path / "rounds")[0]
    (episode,) = open_episodes(bag, topics=read_topic_file(TOPICS))
    assert np.allclose(episode.actions, [step.action for step in trajectory.steps], atol=1e-9)
