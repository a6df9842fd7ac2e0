"""Sources become training sets: edited, split, with statistics over everything."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_recordings import data_config, write_recordings

from openvla_ros.data.oxe_mixtures import named_mixture
from openvla_ros.data.sources import open_episodes
from openvla_ros.data.statistics import action_statistics
from openvla_ros.errors import ConfigurationError
from openvla_ros.training.config import DataConfig, SourceConfig
from openvla_ros.training.datasets import (
    _identity,
    open_training_sets,
    split_episodes,
    training_sources,
)


def with_source(config: DataConfig, **settings: object) -> DataConfig:
    """The configuration with other settings of its first source."""
    first, *others = config.sources
    return replace(config, sources=(replace(first, **settings), *others))  # type: ignore[arg-type]


def test_statistics_are_over_held_out_episodes_too(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "demos", (6, 4, 5, 7))
    (one,) = open_training_sets(data_config(tmp_path / "cache", folder, held_out=0.25), 7)
    assert (len(one.episodes), len(one.held_out)) == (3, 1)
    actions = np.concatenate([episode.actions for episode in open_episodes(folder)])
    mask = np.array([True] * 6 + [False])
    assert one.entry == action_statistics(actions, 4, mask)
    assert np.array_equal(one.stats.q01, one.entry["action"]["q01"])
    assert one.steps == 22 - len(one.held_out[0])


def test_the_seed_decides_what_is_held_out() -> None:
    folder = [object() for _ in range(20)]
    chosen = [split_episodes(folder, 0.2, seed) for seed in (1, 1, 2)]  # type: ignore[arg-type]
    assert chosen[0] == chosen[1] != chosen[2]
    training, held_out = chosen[0]
    assert len(held_out) == 4 and len(training) == 16
    assert not set(map(id, training)) & set(map(id, held_out))


@pytest.mark.parametrize(
    ("episodes", "share", "held_out"), [(1, 0.5, 0), (2, 0.01, 1), (2, 0.9, 1), (9, 0.0, 0)]
)
def test_something_is_held_out_and_something_trained_on_where_there_are_two(
    episodes: int, share: float, held_out: int
) -> None:
    training, kept = split_episodes([object()] * episodes, share, 0)  # type: ignore[list-item]
    assert (len(training), len(kept)) == (episodes - held_out, held_out)


def test_edits_are_made_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_recordings(tmp_path / "demos", (6, 4, 1))
    config = data_config(tmp_path / "cache", folder)
    config = with_source(config, drop_first_steps=1, drop_idle=True, idle_motion=0.03)
    with caplog.at_level(logging.INFO):
        (one,) = open_training_sets(config, 7)
    moved = [np.linalg.norm(e.actions[1:, :6], axis=1) for e in open_episodes(folder)][:2]
    kept = [len(e) for e in one.episodes]
    assert all(k >= (m >= 0.03).sum() for k, m in zip(kept, moved, strict=True))
    assert one.dropped["first"] == 3 and one.dropped["episodes"] == 1
    assert one.dropped.get("idle", 0) == 8 - sum(kept)
    assert "steps left out: 3 first" in caplog.text


def test_actions_from_states_at_a_lower_rate_are_the_way_between_the_kept_poses(
    tmp_path: Path,
) -> None:
    folder = write_recordings(tmp_path / "demos", (7,))
    config = with_source(
        data_config(tmp_path / "cache", folder), actions="from_states", resample_hz=2.5
    )
    (one,) = open_training_sets(config, 7)
    (recorded,) = open_episodes(folder)
    poses = recorded.states[::2, :6]
    assert len(one.episodes[0]) == 3
    apart = np.abs(one.episodes[0].actions[:, :6] - np.diff(poses, axis=0)).max()
    assert apart < 1e-12, apart


def test_a_source_without_a_step_is_refused(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "demos", (3, 2))
    config = with_source(data_config(tmp_path / "cache", folder), drop_first_steps=3)
    with pytest.raises(ConfigurationError, match=r"of 2 episodes .* no step is left .*5 first"):
        open_training_sets(config, 7)


def test_actions_of_different_lengths_are_refused(tmp_path: Path) -> None:
    folders = [write_recordings(tmp_path / name, (3,)) for name in ("seven", "six")]
    path = folders[1] / "episode_000.npz"
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"action": arrays["action"][:, 1:]})
    with pytest.raises(ConfigurationError, match="seven: 7, six: 6"):
        open_training_sets(data_config(tmp_path / "cache", *folders), 7)


@pytest.mark.parametrize(
    ("numbers", "masked"), [(6, [True] * 6), (7, [True] * 6 + [False]), (10, [True] * 9 + [False])]
)
def test_all_numbers_but_the_gripper_are_normalised(
    tmp_path: Path, numbers: int, masked: list[bool]
) -> None:
    folder = write_recordings(tmp_path / "demos", (5,))
    path = folder / "episode_000.npz"
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"action": np.resize(arrays["action"], (5, numbers))})
    (one,) = open_training_sets(data_config(tmp_path / "cache", folder), 7)
    assert one.entry["action"]["mask"] == masked


def test_actions_of_different_lengths_in_one_source_are_refused(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "demos", (3, 3))
    path = folder / "episode_001.npz"
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"action": arrays["action"][:, 1:]})
    with pytest.raises(ConfigurationError, match="7 in episode_000, 6 in episode_001"):
        open_training_sets(data_config(tmp_path / "cache", folder), 7)


def test_identity_changes_with_content_and_settings_and_not_with_the_place(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "a" / "demos")
    config = data_config(tmp_path / "cache", folder)

    def identity(used: DataConfig) -> str:
        return open_training_sets(used, 7)[0].identity

    before = identity(config)
    (tmp_path / "b").mkdir()
    moved = data_config(tmp_path / "cache", folder.rename(tmp_path / "b" / "demos"))
    assert identity(moved) == before
    assert identity(with_source(moved, action_spec={"kind": "eef_delta"})) == before
    for other in ({"camera": "primary"}, {"drop_first_steps": 1}, {"jpeg_as_tensorflow": False}):
        assert identity(with_source(moved, **other)) != before, other
    more = write_recordings(tmp_path / "more", (5,), seed=9)
    (more / "episode_000.npz").rename(tmp_path / "b" / "demos" / "episode_003.npz")
    assert identity(moved) != before


def test_the_topic_file_of_a_bag_is_known_by_what_it_says(tmp_path: Path) -> None:
    """The same pictures under other instructions, or resampled, are other steps."""
    source = data_config(tmp_path, tmp_path / "bag").sources[0]
    (tmp_path / "bag").mkdir()
    topics = [tmp_path / "one.yaml", tmp_path / "moved.yaml"]
    for path in topics:
        path.write_text("rate_hz: 5\n")
    identities = [_identity(replace(source, topics=str(path))) for path in topics]
    topics[1].write_text("rate_hz: 6\n")
    identities.append(_identity(replace(source, topics=str(topics[1]))))
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.parametrize(
    ("gripper", "warns"),
    [([0, 1, 1], False), ([1, 1, 1], False), ([-1, 1, 1], True), ([0, 0.08, 0.04], True)],
)
def test_a_gripper_in_other_units_than_openvlas_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, gripper: list[float], warns: bool
) -> None:
    folder = write_recordings(tmp_path / "demos", (3,))
    path = folder / "episode_000.npz"
    arrays = dict(np.load(path))
    arrays["action"][:, 6] = gripper
    np.savez(path, **arrays)
    open_training_sets(data_config(tmp_path / "cache", folder), 7)
    assert ("the gripper goes from" in caplog.text) is warns, caplog.text


def test_a_mixture_names_its_datasets_weights_and_transforms(tmp_path: Path) -> None:
    config = DataConfig(mixture="rtx", mixture_folder=str(tmp_path))
    with pytest.raises(ConfigurationError, match="fractal20220817_data"):
        training_sources(config)
    mixture = named_mixture("rtx")
    for name, _ in mixture:
        (tmp_path / name / "1.0.0").mkdir(parents=True)
        (tmp_path / name / "1.0.0" / "features.json").write_text("{}")
        (tmp_path / name / "1.0.0" / f"{name}-train.tfrecord-00000-of-00001").write_bytes(b"")
    sources = training_sources(config)
    found = [(s.name, s.weight, s.transform) for s in sources]
    assert found == [(name, weight, name) for name, weight in mixture]
    assert len({weight for _, weight, _ in found}) > 2
    assert all(isinstance(source, SourceConfig) for source in sources)


def test_a_folder_of_recordings_is_one_source_whose_episodes_have_names_of_their_own(
    tmp_path: Path,
) -> None:
    """A lab records one bag per demonstration, and its robot has one statistics key."""
    for number, lengths in enumerate([(4, 5), (3,)]):
        write_recordings(tmp_path / "demos" / f"day_{number}", lengths, seed=10 * number)
    (one,) = open_training_sets(data_config(tmp_path / "cache", tmp_path / "demos"), 7)
    assert [len(episode) for episode in one.episodes] == [4, 5, 3]
    assert [episode.name for episode in one.episodes] == [
        "day_0_episode_000",
        "day_0_episode_001",
        "day_1_episode_000",
    ]
    assert one.entry["num_trajectories"] == 3


def test_a_folder_without_a_recording_among_others_is_named(tmp_path: Path) -> None:
    write_recordings(tmp_path / "demos" / "day_0")
    (tmp_path / "demos" / "notes").mkdir()
    with pytest.raises(ConfigurationError, match="folders without one: notes"):
        open_training_sets(data_config(tmp_path / "cache", tmp_path / "demos"), 7)
