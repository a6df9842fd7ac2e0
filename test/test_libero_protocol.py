"""LIBERO's protocol with a made-up simulator: what is waited, sent, looked at and counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from openvla_ros.errors import ActionStatsError, ConfigurationError
from openvla_ros.evaluation.libero.protocol import (
    MAX_STEPS,
    WAIT_STEPS,
    Episode,
    camera_path,
    choose_unnorm_key,
    run_suite,
    summarize,
    to_command,
)
from openvla_ros.evaluation.metrics.wilson import wilson_interval
from openvla_ros.model.image_options import center_crop, jpeg_round_trip, resize_lanczos3
from openvla_ros.types import PRIMARY, Observation, Prediction


class Simulator:
    """Reaches the goal after so many commands of an episode, or never."""

    def __init__(self, done_after: Sequence[int | None], breaks_after: int | None = None) -> None:
        self.done_after, self.breaks_after = done_after, breaks_after
        self.begun: list[int] = []
        self.commands: list[list[float]] = []
        self.is_closed = False

    def _seen(self) -> np.ndarray:
        return np.full((256, 256, 3), len(self.commands) % 256, np.uint8)

    def begin(self, episode: int) -> np.ndarray:
        self.begun.append(episode)
        self.commands = []
        return self._seen()

    def step(self, command: Sequence[float]) -> tuple[np.ndarray, bool]:
        if len(self.commands) == self.breaks_after:
            raise RuntimeError("physics unstable")
        self.commands.append(list(command))
        return self._seen(), self.done_after[self.begun[-1]] == len(self.commands)

    def close(self) -> None:
        self.is_closed = True


class MadeTask:
    def __init__(self, simulator: Simulator, instruction: str = "open the drawer") -> None:
        self.simulator, self.instruction = simulator, instruction
        self.initial_states = 50

    def open(self) -> Simulator:
        return self.simulator


class Answering:
    """Answers one action; keeps what it was shown."""

    def __init__(self, action: Sequence[float], invalid_dims: tuple[int, ...] = ()) -> None:
        self.action, self.invalid_dims = np.array(action), invalid_dims
        self.shown: list[Observation] = []
        self.episodes = 0

    def begin_episode(self) -> None:
        self.episodes += 1

    def predict(self, observation: Observation) -> Prediction:
        self.shown.append(observation)
        numbers = self.action[None]
        return Prediction(numbers, numbers, [0], "libero_goal", invalid_dims=self.invalid_dims)


FORWARD = (0.3, -0.2, 0.1, 0.0, 0.05, -0.05, 0.996)


def run(simulator: Simulator, policy: Answering, steps: int = 20, episodes: int = 1):
    return run_suite([MadeTask(simulator)], policy, steps, episodes)


def test_it_waits_ten_steps_with_the_gripper_open_before_it_asks() -> None:
    simulator, policy = Simulator([None]), Answering(FORWARD)
    run(simulator, policy)
    assert simulator.commands[:WAIT_STEPS] == [[0, 0, 0, 0, 0, 0, -1]] * 10
    assert simulator.commands[WAIT_STEPS] != simulator.commands[0]
    assert policy.shown[0].images[PRIMARY][0, 0, 0] == WAIT_STEPS, "the picture after the wait"


@pytest.mark.parametrize(
    ("gripper", "sent"), [(1.0, -1.0), (0.996, -1.0), (0.51, -1.0), (0.49, 1.0), (0, 1), (0.5, 0)]
)
def test_the_gripper_is_binarised_and_turned_round(gripper: float, sent: float) -> None:
    action = np.array([*FORWARD[:6], gripper])
    assert to_command(action) == [*FORWARD[:6], sent]
    assert action[6] == gripper, "the policy's own array is left alone"


def test_an_action_of_another_length_is_refused() -> None:
    with pytest.raises(ActionStatsError, match="7 numbers"):
        to_command(np.zeros(8))


def test_the_policy_has_as_many_steps_as_the_suite_allows() -> None:
    simulator, policy = Simulator([None]), Answering(FORWARD)
    (episode,) = run(simulator, policy, steps=MAX_STEPS["libero_spatial"])
    assert len(policy.shown) == episode.steps == 220
    assert len(simulator.commands) == 230
    assert not episode.is_success
    assert [MAX_STEPS[name] for name in ("libero_object", "libero_goal", "libero_10")] == [
        280,
        300,
        520,
    ]


def test_an_episode_ends_with_success_at_the_step_that_reaches_the_goal() -> None:
    simulator, policy = (
        Simulator([WAIT_STEPS + 3, WAIT_STEPS + 20, WAIT_STEPS + 21]),
        Answering(FORWARD),
    )
    episodes = run(simulator, policy, steps=20, episodes=3)
    assert [(e.is_success, e.steps) for e in episodes] == [(True, 3), (True, 20), (False, 20)]
    assert simulator.begun == [0, 1, 2] and policy.episodes == 3
    assert simulator.is_closed


def test_a_goal_that_is_reached_while_waiting_does_not_count() -> None:
    (episode,) = run(Simulator([WAIT_STEPS]), Answering(FORWARD))
    assert not episode.is_success and episode.steps == 20


def test_frames_are_stamped_so_that_they_are_no_trials() -> None:
    policy = Answering(FORWARD)
    run(Simulator([None]), policy)
    stamps = np.array([seen.stamp_ns for seen in policy.shown])
    assert stamps[0] > 0 and (np.diff(stamps) == 50_000_000).all()


def test_what_the_simulator_raises_is_a_failure_that_is_named() -> None:
    simulator = Simulator([None, None], breaks_after=WAIT_STEPS + 4)
    episodes = run(simulator, Answering(FORWARD), episodes=2)
    assert [(e.is_success, e.steps) for e in episodes] == [(False, 4)] * 2
    assert summarize(episodes)["simulator_errors"] == ["RuntimeError: physics unstable"] * 2


def test_what_the_policy_raises_ends_the_evaluation() -> None:
    simulator = Simulator([None])
    with pytest.raises(ActionStatsError):
        run(simulator, Answering((0.0,) * 6))
    assert simulator.is_closed


def test_invalid_actions_are_executed_and_counted() -> None:
    episodes = run(Simulator([WAIT_STEPS + 5]), Answering(FORWARD, invalid_dims=(2,)))
    assert episodes[0].is_success
    assert summarize(episodes)["invalid_actions"] == 5


def test_more_episodes_than_initial_states_are_refused_before_any_runs() -> None:
    simulator = Simulator([None])
    with pytest.raises(ConfigurationError, match=r"51 episodes.*50 initial states"):
        run(simulator, Answering(FORWARD), episodes=51)
    assert not simulator.begun


def test_every_episode_is_reported_when_it_ends() -> None:
    told: list[Episode] = []
    tasks = [MadeTask(Simulator([11, 12]), "a"), MadeTask(Simulator([None, 13]), "b")]
    episodes = run_suite(tasks, Answering(FORWARD), 5, 2, told.append)
    assert told == episodes
    found = summarize(episodes)
    assert (found["successes"], found["episodes"], found["success_rate"]) == (3, 4, 0.75)
    assert found["interval"] == list(wilson_interval(3, 4))
    assert found["per_instruction"]["a"]["success_rate"] == 1.0
    assert found["per_instruction"]["b"] == {
        "success_rate": 0.5,
        "successes": 1,
        "episodes": 2,
        "interval": list(wilson_interval(1, 2)),
    }


def test_the_picture_is_turned_stored_resized_and_cropped_in_this_order() -> None:
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    upright = np.ascontiguousarray(image[::-1, ::-1])
    resized = resize_lanczos3(jpeg_round_trip(upright), 224)
    assert np.array_equal(camera_path(center_crop=False).apply(image), resized)
    assert np.array_equal(camera_path(center_crop=True).apply(image), center_crop(resized, 224))


def test_the_statistics_are_the_suites_or_those_without_idle_steps() -> None:
    both = ["libero_goal", "libero_goal_no_noops", "bridge_orig"]
    assert choose_unnorm_key(both, "libero_goal") == "libero_goal"
    assert choose_unnorm_key(both[1:], "libero_goal") == "libero_goal_no_noops"
    with pytest.raises(ActionStatsError, match=r"not trained on this suite.*bridge_orig"):
        choose_unnorm_key(both[2:], "libero_goal")
