"""Bags that are compressed as a whole: unpacked once, and again when they have changed."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

pytest.importorskip("rosbags", reason="bags need the extra `bags`")
from bag_samples import ACTION, plain_recording, write_bag

from openvla_ros.data.bag_episodes import bag_episodes
from openvla_ros.data.topics import ActionSource, TopicConfig
from openvla_ros.data.unpacked_bag import unpacked
from openvla_ros.errors import ConfigurationError

PLAIN = TopicConfig(rate_hz=5.0, action=ActionSource(topic=ACTION))


def packed(folder, episodes: int = 2):
    return write_bag(folder, plain_recording(episodes), compression="file")


def test_a_bag_is_unpacked_once_for_all_its_episodes(tmp_path, monkeypatch) -> None:
    from openvla_ros.data import unpacked_bag

    count = []
    original = unpacked_bag._unpack

    def unpack(*arguments):
        count.append(1)
        return original(*arguments)

    monkeypatch.setattr(unpacked_bag, "_unpack", unpack)
    episodes = bag_episodes(packed(tmp_path / "bag", 3), PLAIN)
    assert [sum(1 for _ in episode.open_images()) for episode in episodes] == [4, 4, 4]
    assert sum(count) == 1


def test_one_unpacked_bag_is_kept_and_another_while_somebody_holds_it(tmp_path) -> None:
    first = unpacked(packed(tmp_path / "a"))
    folder = Path(first.name)
    assert {file.name for file in folder.iterdir()} == {"metadata.yaml", "a.mcap"}
    assert unpacked(tmp_path / "a") is first
    second = unpacked(packed(tmp_path / "b"))
    assert Path(second.name).is_dir() and folder.is_dir()
    del first
    gc.collect()
    assert Path(second.name).is_dir() and not folder.exists()


def test_a_bag_that_has_changed_is_unpacked_again(tmp_path) -> None:
    bag = packed(tmp_path / "bag")
    assert len(bag_episodes(bag, PLAIN)) == 2
    bag.rename(tmp_path / "old")
    assert len(bag_episodes(packed(bag, 3), PLAIN)) == 3


def test_other_bags_are_read_where_they_are(tmp_path) -> None:
    bag = write_bag(tmp_path / "bag", plain_recording(1), compression="message")
    for path in (bag, bag / "bag.mcap", tmp_path, tmp_path / "absent"):
        assert unpacked(path) is None


def test_a_damaged_packed_file_is_an_error_that_names_the_bag(tmp_path) -> None:
    bag = packed(tmp_path / "bag")
    file = bag / "bag.mcap.zstd"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"x" * 100):
        file.write_bytes(content)
        with pytest.raises(ConfigurationError, match=str(bag)):
            bag_episodes(bag, PLAIN)
