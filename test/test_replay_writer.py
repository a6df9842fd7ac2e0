"""A bag that appears when it is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rosbags", reason="bags need the extra `bags`")
from openvla_ros.data.bag_file import open_bag, typestore_for
from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.motion.replay_writer import ReplayWriter

TEXT = "std_msgs/msg/String"


@pytest.fixture(scope="module")
def store():
    return typestore_for([TEXT])


def text(store, words: str) -> bytes:
    return bytes(store.serialize_cdr(store.types[TEXT](words), TEXT))


def test_the_bag_has_its_place_only_after_the_last_message(store, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bag"
    with ReplayWriter(path, store) as writer:
        topic = writer.topic("/said", TEXT)
        assert writer.topic("/said", TEXT) is topic
        writer.write(iter([(5, topic, text(store, "a")), (7, topic, text(store, "b"))]))
        assert not path.exists() and writer.last_ns == 7
    assert [entry.name for entry in path.parent.iterdir()] == ["bag"]
    assert sorted(entry.name for entry in path.iterdir()) == ["bag.mcap", "metadata.yaml"]
    with open_bag(path) as reader:
        assert [(c.topic, t) for c, t, _ in reader.messages()] == [("/said", 5), ("/said", 7)]


def test_an_interruption_leaves_nothing(store, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ReplayWriter(tmp_path / "bag", store) as writer:
        writer.write(iter([(5, writer.topic("/said", TEXT), text(store, "a"))]))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_at_the_end_leaves_nothing(
    store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rosbags.rosbag2.storage_mcap import McapWriter

    def full(self, version, metadata) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(McapWriter, "close", full)
    with pytest.raises(OSError, match="No space"), ReplayWriter(tmp_path / "bag", store) as writer:
        writer.write(iter([(5, writer.topic("/said", TEXT), text(store, "a"))]))
    assert list(tmp_path.iterdir()) == []


def test_a_type_without_definition_is_refused_by_name(store, tmp_path: Path) -> None:
    from rosbags.interfaces import (
        Connection,
        ConnectionExtRosbag2,
        MessageDefinition,
        MessageDefinitionFormat,
    )

    nothing = MessageDefinition(MessageDefinitionFormat.NONE, "")
    unknown = Connection(
        1, "/grasp", "lab_msgs/msg/Grasp", nothing, "", 1, ConnectionExtRosbag2("cdr", []), None
    )
    with (
        pytest.raises(ConfigurationError, match=r"/grasp cannot be copied: .*lab_msgs/msg/Grasp"),
        ReplayWriter(tmp_path / "bag", store) as writer,
    ):
        writer.copied_topic(unknown, store)
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_only_this_machine_knows_is_copied(store, tmp_path: Path) -> None:
    """Bags of older distributions hold no definitions."""
    from rosbags.interfaces import (
        Connection,
        ConnectionExtRosbag2,
        MessageDefinition,
        MessageDefinitionFormat,
    )

    nothing = MessageDefinition(MessageDefinitionFormat.NONE, "")
    known = Connection(1, "/said", TEXT, nothing, "", 1, ConnectionExtRosbag2("cdr", []), None)
    with ReplayWriter(tmp_path / "bag", store) as writer:
        topic = writer.copied_topic(known, store)
        writer.write(iter([(5, topic, text(store, "a"))]))
    with open_bag(tmp_path / "bag") as reader:
        [(connection, _, raw)] = reader.messages()
        assert reader.deserialize(raw, connection.msgtype).data == "a"
