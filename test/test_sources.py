"""What a source is, is decided by what it contains."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import recording_formats as formats

from openvla_ros.data import sources
from openvla_ros.data.sources import list_recordings, open_episodes, source_kind
from openvla_ros.errors import ConfigurationError

REC = formats.recording(1)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    (tmp_path / "npz").mkdir()
    path = tmp_path / "npz/episode_000.npz"
    np.savez(path, **formats.npz_arrays(REC))
    return path


def test_files_and_folders_of_each_kind_are_known(tmp_path: Path, npz: Path) -> None:
    record = formats.write_rlds(tmp_path / "rlds", [REC])
    (tmp_path / "rlds/features.json").rename(tmp_path / "features.json")
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag/metadata.yaml").touch()
    (tmp_path / "lerobot/meta").mkdir(parents=True)
    (tmp_path / "lerobot/meta/info.json").touch()
    (tmp_path / "a.mcap").write_bytes(b"\x89MCAP0\r\n")
    (tmp_path / "renamed").write_bytes(b"SQLite format 3\0")
    shutil.copy(npz, tmp_path / "copy_of_an_episode")
    expected = {
        "bag": sources.BAG,
        "a.mcap": sources.BAG,
        "renamed": sources.BAG,
        "lerobot": sources.LEROBOT,
        "rlds": sources.RLDS,
        str(record): sources.RLDS,
        "npz": sources.NPZ,
        "copy_of_an_episode": sources.NPZ,
    }
    assert {name: source_kind(tmp_path / name) for name in expected} == expected


def test_every_reader_gives_the_same_steps(tmp_path: Path, npz: Path) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("av")
    given = [npz, npz.parent, formats.write_rlds(tmp_path / "rlds", [REC]), tmp_path / "rlds"]
    found = [open_episodes(source, rate_hz=formats.RATE_HZ) for source in given]
    for version in ("v2.1", "v3.0"):
        folder = formats.write_lerobot(tmp_path / version, [REC], version)
        found += [open_episodes(folder), open_episodes(folder, rate_hz=formats.RATE_HZ)]
    for (episode,) in found:
        assert np.array_equal(episode.actions, REC.actions)
        assert episode.instruction == REC.tasks[0]
        assert np.array_equal(episode.stamps_ns, found[0][0].stamps_ns)


def test_anything_else_lists_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name in ("absent", "a.txt", "empty"):
        with pytest.raises(ConfigurationError, match=r"(?s)rosbag2.*LeRobot.*RLDS.*npz"):
            open_episodes(tmp_path / name)


def test_a_folder_of_recordings_stands_for_them(tmp_path: Path, npz: Path) -> None:
    demos = tmp_path / "demos"
    for name in ("b", "a"):
        shutil.copytree(npz.parent, demos / name)
    assert list_recordings([demos, npz]) == [demos / "a", demos / "b", npz]
    assert list_recordings([tmp_path / "nowhere"]) == [tmp_path / "nowhere"]  # its reader says so
    (demos / "plots").mkdir()
    with pytest.raises(ConfigurationError, match="folders without one: plots"):
        list_recordings([demos])


def test_a_folder_of_two_kinds_is_not_guessed(tmp_path: Path, npz: Path) -> None:
    formats.write_rlds(npz.parent, [REC])
    with pytest.raises(ConfigurationError, match="could be any of RLDS, npz"):
        open_episodes(npz.parent)


def test_an_option_that_a_kind_does_not_have_is_refused(tmp_path: Path, npz: Path) -> None:
    (tmp_path / "a.mcap").write_bytes(b"\x89MCAP0\r\n")
    with pytest.raises(ConfigurationError, match="rosbag2 does not take camera, rate_hz"):
        open_episodes(tmp_path / "a.mcap", camera="top", rate_hz=5)
    with pytest.raises(ConfigurationError, match="npz does not take pose_key"):
        open_episodes(npz, rate_hz=5, pose_key="state")


def test_a_lerobot_dataset_keeps_its_own_rate(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("av")
    folder = formats.write_lerobot(tmp_path / "dataset", [REC])
    with pytest.raises(ConfigurationError, match="was recorded at 5 Hz"):
        open_episodes(folder, rate_hz=10)
