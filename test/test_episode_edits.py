"""What is left of an episode, with which actions and which pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from openvla_ros.data.episode import Episode
from openvla_ros.data.episode_edits import (
    binarize_gripper_actions,
    derive_actions,
    drop_first_steps,
    drop_idle_steps,
    drop_steps_without_action,
    resample_steps,
)
from openvla_ros.data.steps import even_stamps
from openvla_ros.errors import ConfigurationError


def made_up(actions: np.ndarray, states: np.ndarray | None = None, rate_hz: float = 10) -> Episode:
    """An episode whose picture t has the value t."""

    def images() -> Iterator[np.ndarray]:
        for step in range(len(actions)):
            yield np.full((2, 3, 3), step, np.uint8)

    stamps = even_stamps(range(len(actions)), rate_hz)
    return Episode("episode_000", "made up", "wave", rate_hz, stamps, actions, images, states)


def random_actions(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, (steps, 7))


def steps_of(episode: Episode | None) -> list[int]:
    """Which steps are left, by their pictures; stamps, states and actions must agree."""
    assert episode is not None
    found = [int(image[0, 0, 0]) for image in episode.open_images()]
    again = [int(image[0, 0, 0]) for image in episode.open_images()]
    assert found == again and len(found) == len(episode)
    return found


def test_first_steps_are_left_out() -> None:
    actions = random_actions(5)
    left = drop_first_steps(made_up(actions, states=actions + 1), 2)
    assert steps_of(left) == [2, 3, 4]
    assert np.array_equal(left.actions, actions[2:])
    assert np.array_equal(left.states, actions[2:] + 1)
    assert np.array_equal(left.stamps_ns, even_stamps(range(2, 5), 10))
    assert drop_first_steps(made_up(actions), 5) is None


def test_steps_without_an_action_are_left_out() -> None:
    actions = random_actions(4)
    actions[[0, 2]] = np.nan
    assert steps_of(drop_steps_without_action(made_up(actions))) == [1, 3]
    assert drop_steps_without_action(made_up(np.full((3, 7), np.nan))) is None


def test_an_episode_that_loses_nothing_is_returned_as_it_is() -> None:
    episode = made_up(random_actions(3))
    assert drop_steps_without_action(episode) is episode
    assert drop_first_steps(episode, 0) is episode


def test_derived_actions_are_the_references(reference_dir: Path) -> None:
    """After dropping step 0, as bridge_orig does; the reference computes in float32."""
    golden = np.load(reference_dir / "goldens" / "rlds_transforms.npz")
    episode = made_up(golden["bridge_in_action"], golden["bridge_in_state"])
    edited = drop_first_steps(episode, 1)
    assert edited is not None
    edited = derive_actions(binarize_gripper_actions(edited))
    assert steps_of(edited) == list(range(1, 23))
    expected = golden["bridge_out_action"]
    apart = float(np.abs(edited.actions - expected).max())
    assert np.array_equal(edited.actions.astype(np.float32), expected), apart


def test_actions_cannot_be_derived_without_poses() -> None:
    with pytest.raises(ConfigurationError, match="no pose of the end effector"):
        derive_actions(made_up(random_actions(3)))
    with pytest.raises(ConfigurationError, match="actions of 4 numbers"):
        derive_actions(made_up(random_actions(3)[:, :4], states=np.zeros((3, 7))))
    assert derive_actions(made_up(random_actions(1), states=np.zeros((1, 7)))) is None


def test_a_gripper_on_its_way_counts_as_where_it_arrives() -> None:
    actions = random_actions(6)
    actions[:, 6] = [0.0, 0.5, np.nan, 1.0, 0.4, 0.01]
    binary = binarize_gripper_actions(made_up(actions)).actions[:, 6]
    assert np.array_equal(binary, [0, 1, np.nan, 1, 0, 0], equal_nan=True), binary


def test_idle_steps_are_left_out_but_not_those_that_change_the_gripper() -> None:
    actions = np.zeros((7, 7))
    actions[:, 6] = [1, 1, 1, 0, 0, 1, 1]
    actions[[1, 4], 0] = [0.01, 2e-5]
    left = drop_idle_steps(made_up(actions), 1e-4)
    # 0 does not move; 1 moves; 3 closes and 5 opens; 4 moves less than the bound.
    assert steps_of(left) == [1, 3, 5]
    assert drop_idle_steps(made_up(np.zeros((3, 7))), 1e-4) is None


def test_motion_adds_up_at_a_lower_rate() -> None:
    actions = random_actions(9)
    actions[:, 6] = [0, 1, 0, 0, 1, 1, 0, 0, 1]
    left = resample_steps(made_up(actions), 5)
    assert steps_of(left) == [0, 2, 4, 6] and left.rate_hz == 5
    assert np.allclose(
        left.actions[:, :6], actions[:8, :6].reshape(4, 2, 6).sum(axis=1), atol=1e-15
    )
    assert left.actions[:, 6].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("rate_hz", [3.0, 4.0, 7.0, 10.0])
def test_no_motion_is_lost_or_counted_twice_at_any_lower_rate(rate_hz: float) -> None:
    actions = random_actions(60)
    left = resample_steps(made_up(actions), rate_hz)
    steps = [*steps_of(left), 60]
    seconds = (len(left) / rate_hz, 6.0)
    assert seconds[1] - 1 / rate_hz - 0.06 < seconds[0] <= seconds[1] + 0.06, seconds
    for number, action in enumerate(left.actions[:-1]):
        expected = actions[steps[number] : steps[number + 1], :6].sum(axis=0)
        assert np.allclose(action[:6], expected, atol=1e-15), number


def test_a_group_with_a_step_without_an_action_has_none() -> None:
    actions = random_actions(6)
    actions[3] = np.nan
    left = resample_steps(made_up(actions), 5)
    assert np.isfinite(left.actions).all(axis=1).tolist() == [True, False, True]


def test_a_higher_rate_is_refused_and_a_short_episode_left_out() -> None:
    with pytest.raises(ConfigurationError, match="Give at most 10"):
        resample_steps(made_up(random_actions(4)), 15)
    assert resample_steps(made_up(random_actions(4)), 2) is None


def test_six_numbers_are_motions_and_no_gripper() -> None:
    """A pose without a gripper: its yaw is not one."""
    actions = random_actions(6)[:, :6]
    actions[[1, 2], :5] = 0.0
    actions[2, 5] = 0.0
    assert steps_of(drop_idle_steps(made_up(actions), 1e-4)) == [0, 1, 3, 4, 5]
    slower = resample_steps(made_up(actions), 5)
    assert slower is not None
    apart = np.abs(slower.actions - actions.reshape(3, 2, 6).sum(axis=1)).max()
    assert apart < 1e-12, apart
    with pytest.raises(ConfigurationError, match="6 numbers, and none is a gripper"):
        binarize_gripper_actions(made_up(actions))


def test_rotations_of_six_numbers_do_not_add_up() -> None:
    with pytest.raises(ConfigurationError, match="10 numbers: their rotations do not add up"):
        resample_steps(made_up(np.zeros((6, 10))), 5)
