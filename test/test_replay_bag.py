"""The bag of a replay: whole or not at all, in order of time, and equal to records and source."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from motion_episodes import PERIOD_NS, SPEC, START_NS, episode_of, octo_actions

from openvla_ros.config.motion import GripperConfig, MotionConfig
from openvla_ros.control.states import Drop
from openvla_ros.data.episode import Episode
from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.motion.motion_replay import commanded_steps, stream_actions
from openvla_ros.messages import compressed_to_rgb, image_to_rgb
from openvla_ros.model.action_tokenizer import ActionTokenizer

pytest.importorskip("rosbags", reason="bags need the extra `bags`")
from openvla_ros.data.bag_file import COMPRESSED_IMAGE, RAW_IMAGE, BagFile, open_bag
from openvla_ros.data.bag_numbers import TEXT, TWIST
from openvla_ros.evaluation.motion import replay_bag
from openvla_ros.evaluation.motion.replay_bag import (
    ACTION_TOPIC,
    INSTRUCTION_TOPIC,
    RECORDED_TOPIC,
    TWIST_TOPIC,
    write_replay_bag,
    write_replay_bags,
)
from openvla_ros.evaluation.motion.replay_messages import ReplayMessages

MOTION = MotionConfig(base_frame="wx250s/base_link", twist_mode="exact")
GRIPPER = GripperConfig()
TOKENIZER = ActionTokenizer()
LATENCY_MS = 250.0


def record_of(episode: Episode, predicted: np.ndarray | None = None) -> EpisodeRecord:
    steps = len(episode)
    predicted = episode.actions * 0.5 if predicted is None else predicted
    normalized = np.clip(np.nan_to_num(predicted), -1.0, 1.0)
    return EpisodeRecord(
        episode=episode.name,
        source=episode.source,
        instruction=episode.instruction,
        rate_hz=episode.rate_hz,
        stamps_ns=episode.stamps_ns,
        recorded=episode.actions,
        predicted=predicted,
        normalized=normalized,
        token_ids=TOKENIZER.encode(normalized),
        is_valid=np.ones(steps, bool),
        latency_ms=np.full(steps, LATENCY_MS),
        passes=np.full(steps, 7),
    )


def write(path: Path, *pairs: tuple[Episode, EpisodeRecord], motion=MOTION, spec=SPEC, **options):
    episodes, records = zip(*pairs, strict=True) if pairs else ((), ())
    write_replay_bag(path, iter(episodes), iter(records), spec, motion, GripperConfig(), **options)
    return read(path)


def read(path: Path) -> dict[str, list[tuple[int, object]]]:
    """Topic to (bag time, message); bag times never go back."""
    topics: dict[str, list[tuple[int, object]]] = {}
    last_ns = 0
    with open_bag(path) as reader:
        for connection in reader.connections:
            topics.setdefault(connection.topic, [])
        for connection, time_ns, raw in reader.messages():
            assert time_ns >= last_ns
            last_ns = time_ns
            message = reader.deserialize(raw, connection.msgtype)
            topics[connection.topic].append((time_ns, message))
    return topics


def time_of(time) -> int:
    return time.sec * 10**9 + time.nanosec


def stamp_of(message) -> int:
    return time_of(message.header.stamp)


def twist_of(message) -> list[float]:
    parts = (message.twist.linear, message.twist.angular)
    return [value for part in parts for value in (part.x, part.y, part.z)]


@pytest.fixture(scope="module")
def episode() -> Episode:
    return episode_of(octo_actions()[3])


@pytest.fixture(scope="module")
def bag(episode: Episode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One episode that is from no bag, with the defaults."""
    path = tmp_path_factory.mktemp("written") / "bag"
    write_replay_bag(path, [episode], [record_of(episode)], SPEC, MOTION, GRIPPER)
    return path


@pytest.fixture(scope="module")
def topics(bag: Path) -> dict[str, list[tuple[int, object]]]:
    return read(bag)


def test_answers_equal_the_record_in_every_step(episode: Episode, topics) -> None:
    record, rows = record_of(episode), topics[ACTION_TOPIC]
    assert len(rows) == len(record)
    for step, (time_ns, message) in enumerate(rows):
        assert time_ns == stamp_of(message) == episode.stamps_ns[step]
        np.testing.assert_array_equal(message.raw, record.predicted[step])
        np.testing.assert_array_equal(message.normalized, record.normalized[step])
        np.testing.assert_array_equal(message.token_ids, record.token_ids[step])
        delta = message.delta_position
        np.testing.assert_allclose(
            [delta.x, delta.y, delta.z], record.predicted[step, :3], atol=1e-12
        )
        assert message.header.frame_id == "wx250s/base_link"
        assert (message.sequence, message.passes, message.chunk_steps) == (step + 1, 7, 1)
        assert message.instruction == "put spoon on towel"
        assert message.timing_names == ["total_ms"] and message.timing_ms == [LATENCY_MS]
        assert time_of(message.inference_start) == stamp_of(message)
        assert time_of(message.inference_end) == stamp_of(message) + 250_000_000
        assert message.drop_reason == message.DRY_RUN and not message.executed
        assert message.is_valid and message.action_dt == pytest.approx(0.2)


def test_twists_are_those_of_the_motion_stage_on_the_time_of_the_bag(
    episode: Episode, topics
) -> None:
    record, rows = record_of(episode), topics[TWIST_TOPIC]
    full = dataclasses.replace(MOTION, speed_scale=1.0)
    expected = stream_actions(record.predicted, SPEC, full, GripperConfig())
    np.testing.assert_array_equal([twist_of(message) for _, message in rows], expected.twists)
    times = [time_ns - START_NS for time_ns, _ in rows]
    assert times == [round(t * 1e9) for t in expected.times_s]
    assert times == [stamp_of(message) - START_NS for _, message in rows]
    moved = np.sum([twist_of(message)[:3] for _, message in rows], axis=0) / MOTION.stream_rate
    np.testing.assert_allclose(moved, record.predicted[:, :3].sum(axis=0), atol=1e-9)


def test_recorded_actions_are_velocities_of_their_own_steps(
    episode: Episode, tmp_path: Path
) -> None:
    actions = episode.actions.copy()
    actions[4] = np.nan
    episode = dataclasses.replace(episode, actions=actions)
    record = record_of(episode, np.zeros((10, 7)))
    rows = write(tmp_path / "bag", (episode, record))[RECORDED_TOPIC]
    expected = np.delete(commanded_steps(actions, SPEC, MOTION), 4, axis=0) / 0.2
    np.testing.assert_allclose([twist_of(message) for _, message in rows], expected)


def test_images_come_back_to_the_last_bit(episode: Episode, topics) -> None:
    rows = topics["/image/compressed"]
    for row, image, stamp in zip(rows, episode.open_images(), episode.stamps_ns, strict=True):
        time_ns, message = row
        assert time_ns == stamp_of(message) == stamp and message.format == "png"
        np.testing.assert_array_equal(compressed_to_rgb(message), image)
    assert [message.data for _, message in topics[INSTRUCTION_TOPIC]] == ["put spoon on towel"]


def test_raw_images_come_back_to_the_last_bit(episode: Episode, tmp_path: Path) -> None:
    topics = write(tmp_path / "bag", (episode, record_of(episode)), image_format="raw")
    assert "/image/compressed" not in topics
    for (_, message), image in zip(topics["/image"], episode.open_images(), strict=True):
        np.testing.assert_array_equal(image_to_rgb(message), image)


def test_an_unknown_image_format_is_refused(episode: Episode, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="png, raw, jpeg"):
        write(tmp_path / "bag", (episode, record_of(episode)), image_format="webp")


def test_without_the_recorded_data_only_the_answers_remain_here_at_half_speed(
    episode: Episode, tmp_path: Path
) -> None:
    record = record_of(episode)
    topics = write(tmp_path / "bag", (episode, record), copy_recorded=False, speed_scale=0.5)
    assert set(topics) == {ACTION_TOPIC, RECORDED_TOPIC, TWIST_TOPIC}
    moved = [message.delta_position.z for _, message in topics[ACTION_TOPIC]]
    np.testing.assert_allclose(moved, record.predicted[:, 2] / 2, atol=1e-12)


def test_refused_answers_say_why(episode: Episode, tmp_path: Path) -> None:
    record = record_of(episode)
    record.predicted[1] = np.nan
    record.is_valid[2] = False
    record.token_ids[2, 4] = 7
    rows = write(tmp_path / "bag", (episode, record), tokenizer=TOKENIZER)[ACTION_TOPIC]
    drops = [message.drop_reason for _, message in rows]
    assert drops[:4] == [Drop.DRY_RUN, Drop.NON_FINITE, Drop.INVALID_TOKEN, Drop.DRY_RUN]
    invalid = rows[2][1]
    assert not invalid.is_valid and invalid.invalid_dims.tolist() == [4]


def test_what_the_spec_does_not_say_is_nan_and_has_no_twist(
    episode: Episode, tmp_path: Path
) -> None:
    spec = dataclasses.replace(SPEC, translation_unit_m=None, action_hz=None)
    topics = write(tmp_path / "bag", (episode, record_of(episode)), spec=spec)
    message = topics[ACTION_TOPIC][0][1]
    assert message.drop_reason == Drop.MOTION_UNKNOWN
    assert np.isnan(message.delta_position.x) and np.isnan(message.action_dt)
    assert len(message.steps) == 0 and len(topics[ACTION_TOPIC]) == 10
    assert topics[TWIST_TOPIC] == topics[RECORDED_TOPIC] == []


def test_episodes_of_the_same_time_follow_one_another(episode: Episode, tmp_path: Path) -> None:
    other = dataclasses.replace(episode, name="episode_001")
    pairs = [(e, record_of(e)) for e in (episode, other)]
    topics = write(tmp_path / "bag", *pairs)
    stamps = [stamp_of(message) for _, message in topics[ACTION_TOPIC]]
    assert stamps[:10] == episode.stamps_ns.tolist()
    last_twist_ns = max(t for t, _ in topics[TWIST_TOPIC] if t < stamps[10])
    assert stamps[10] == last_twist_ns + 1_000_000_000
    assert np.diff(stamps[10:]).tolist() == [PERIOD_NS] * 9
    images = [stamp_of(message) for _, message in topics["/image/compressed"]]
    assert images == stamps


def test_records_of_other_episodes_are_refused_and_nothing_is_left(
    episode: Episode, tmp_path: Path
) -> None:
    other = dataclasses.replace(record_of(episode), episode="episode_001")
    with pytest.raises(ConfigurationError, match="does not belong to the episode"):
        write(tmp_path / "bag", (episode, record_of(episode)), (episode, other))
    with pytest.raises(ConfigurationError, match="the record None does not belong"):
        write_replay_bag(tmp_path / "bag", [episode], [], SPEC, MOTION, GripperConfig())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(
    episode: Episode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rosbags.rosbag2 import Writer

    written = []

    def write_until_full(self, connection, timestamp, data) -> None:
        written.append(timestamp)
        if len(written) == 20:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Writer, "write", write_until_full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "bag", (episode, record_of(episode)))
    assert len(written) == 20 and list(tmp_path.iterdir()) == []


def test_an_existing_bag_is_not_overwritten(episode: Episode, bag: Path) -> None:
    before = (bag / "bag.mcap").read_bytes()
    with pytest.raises(ConfigurationError, match="exists already"):
        write(bag, (episode, record_of(episode)))
    assert (bag / "bag.mcap").read_bytes() == before


def test_images_are_read_one_at_a_time(episode: Episode, tmp_path: Path) -> None:
    read_now: list[int] = []

    def images():
        for step, image in enumerate(episode.open_images()):
            read_now.append(step)
            yield image

    seen = []
    original = ReplayMessages.image

    class Watching(ReplayMessages):
        def image(self, stamp_ns, rgb):
            seen.append(len(read_now))
            return original(self, stamp_ns, rgb)

    watched = dataclasses.replace(episode, open_images=images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_bag, "ReplayMessages", Watching)
        write(tmp_path / "bag", (watched, record_of(episode)))
    assert seen == list(range(1, 11))


# Bags as sources ----------------------------------------------------------------------------------

DELAY_NS = 30_000_000  # from the stamp of an image to its place in the bag
CAMERA, JOINTS, EARLIER = "/camera/image_raw", "/said", ACTION_TOPIC


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten images at 5 Hz, a text with each, and an answer of an earlier replay."""
    messages = ReplayMessages("raw")
    bag = BagFile(tmp_path / "source", {CAMERA: RAW_IMAGE, JOINTS: TEXT, EARLIER: TWIST})
    for step in range(20):
        stamp = START_NS + step * PERIOD_NS
        image = np.full((4, 6, 3), step, np.uint8)
        bag.write(CAMERA, stamp + DELAY_NS, messages.image(stamp, image))
        bag.write(JOINTS, stamp + DELAY_NS + 1, messages.text(f"message {step}"))
        bag.write(EARLIER, stamp + DELAY_NS + 2, messages.twist(stamp, np.zeros(6), "base"))
    bag.close()
    return tmp_path / "source"


def bag_episodes(source: Path, *firsts: int, steps: int = 10) -> list[Episode]:
    actions = octo_actions()[3][:steps]
    return [
        episode_of(
            actions,
            name=f"episode_{first:03d}",
            first_ns=START_NS + first * PERIOD_NS,
            source=str(source),
        )
        for first in firsts
    ]


def raw_rows(path: Path, topics: set[str]) -> list[tuple[str, str, int, bytes]]:
    with open_bag(path) as reader:
        wanted = [c for c in reader.connections if c.topic in topics]
        return [(c.topic, c.digest, t, bytes(raw)) for c, t, raw in reader.messages(wanted)]


def test_recorded_topics_of_a_bag_are_copied_byte_by_byte(source: Path, tmp_path: Path) -> None:
    [episode] = bag_episodes(source, 0)
    topics = write(tmp_path / "bag", (episode, record_of(episode)))
    copied = raw_rows(tmp_path / "bag", {CAMERA, JOINTS})
    assert copied == raw_rows(source, {CAMERA, JOINTS}) and len(copied) == 40
    assert len(topics[ACTION_TOPIC]) == 10, "answers of an earlier replay are not copied"
    assert INSTRUCTION_TOPIC not in topics


def test_answers_stand_beside_their_images_in_the_bag(source: Path, tmp_path: Path) -> None:
    [episode] = bag_episodes(source, 4)
    topics = write(tmp_path / "bag", (episode, record_of(episode)))
    images = {stamp_of(message): time_ns for time_ns, message in topics[CAMERA]}
    for time_ns, message in topics[ACTION_TOPIC]:
        assert time_ns == images[stamp_of(message)] == stamp_of(message) + DELAY_NS


def test_twists_end_where_the_next_episode_of_the_bag_begins(source: Path, tmp_path: Path) -> None:
    episodes = bag_episodes(source, 0, 5, steps=5)
    pairs = [(e, record_of(e, np.tile(octo_actions()[3][4], (5, 1)))) for e in episodes]
    topics = write(tmp_path / "bag", *pairs)
    times = [stamp_of(message) for _, message in topics[TWIST_TOPIC]]
    assert len(set(times)) == len(times)
    np.testing.assert_array_equal(np.diff(times), 20_000_000)


def test_offered_qos_is_copied_and_the_instruction_is_latched(
    episode: Episode, bag: Path, tmp_path: Path
) -> None:
    from rosbags.interfaces import QosDurability

    again = dataclasses.replace(episode, source=str(bag))
    write_replay_bag(tmp_path / "again", [again], [record_of(again)], SPEC, MOTION, GRIPPER)
    for path in (bag, tmp_path / "again"):
        with open_bag(path) as reader:
            [latched] = [c for c in reader.connections if c.topic == INSTRUCTION_TOPIC]
            [profile] = latched.ext.offered_qos_profiles
            assert profile.durability == QosDurability.TRANSIENT_LOCAL, path


def test_a_bag_that_begins_before_the_last_one_ended_is_refused(
    source: Path, tmp_path: Path
) -> None:
    [first] = bag_episodes(source, 0)
    [second] = bag_episodes(next(source.glob("*.mcap")), 0)
    with pytest.raises(ConfigurationError, match="Write a bag for each"):
        write(tmp_path / "bag", (first, record_of(first)), (second, record_of(second)))
    assert not (tmp_path / "bag").exists()


def test_several_sources_of_the_same_time_become_a_bag_each(source: Path, tmp_path: Path) -> None:
    file = next(source.glob("*.mcap"))
    episodes = [*bag_episodes(source, 0, 10), *bag_episodes(file, 5)]
    records = [record_of(episode) for episode in episodes]
    bags = write_replay_bags(tmp_path / "bags", episodes, iter(records), SPEC, MOTION, GRIPPER)
    assert bags == [tmp_path / "bags" / name for name in ("0000_source", "0001_source")]
    first, second = map(read, bags)
    assert len(first[ACTION_TOPIC]) == 20 and len(second[ACTION_TOPIC]) == 10
    assert stamp_of(second[ACTION_TOPIC][0][1]) == episodes[2].stamps_ns[0]
    assert len(first[CAMERA]) == len(second[CAMERA]) == 20


def test_one_source_is_one_bag(source: Path, tmp_path: Path) -> None:
    [episode] = bag_episodes(source, 0)
    path = tmp_path / "bag"
    records = [record_of(episode)]
    assert write_replay_bags(path, [episode], records, SPEC, MOTION, GRIPPER) == [path]
    assert (path / "metadata.yaml").is_file()


def test_several_bags_are_written_all_or_none(source: Path, tmp_path: Path) -> None:
    [one], [two] = bag_episodes(source, 0), bag_episodes(next(source.glob("*.mcap")), 0)
    with pytest.raises(ConfigurationError, match="does not belong"):
        write_replay_bags(
            tmp_path / "bags", [one, two], [record_of(one)] * 2, SPEC, MOTION, GRIPPER
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_a_damaged_source_leaves_nothing(source: Path, tmp_path: Path) -> None:
    file = next(source.glob("*.mcap"))
    data = bytearray(file.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 400] = b"\xff" * 400
    [episode] = bag_episodes(source, 0)
    file.write_bytes(bytes(data))
    with pytest.raises(ConfigurationError, match="cannot be read as a bag"):
        write(tmp_path / "bag", (episode, record_of(episode)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


# Against ROS --------------------------------------------------------------------------------------


@pytest.mark.ros
def test_ros_reads_every_message_of_ours(bag: Path) -> None:
    from geometry_msgs.msg import TwistStamped
    from openvla_ros.msg import VLAAction
    from rclpy.serialization import deserialize_message, serialize_message
    from sensor_msgs.msg import CompressedImage
    from std_msgs.msg import String

    classes = {
        ACTION_TOPIC: VLAAction,
        RECORDED_TOPIC: TwistStamped,
        TWIST_TOPIC: TwistStamped,
        "/image/compressed": CompressedImage,
        INSTRUCTION_TOPIC: String,
    }
    store, read_topics = ReplayMessages().typestore, set()
    with open_bag(bag) as reader:
        for connection, _, raw in reader.messages():
            message = deserialize_message(bytes(raw), classes[connection.topic])
            # Once more through rosbags: ROS leaves what it likes between the fields.
            kind = connection.msgtype
            again = store.deserialize_cdr(serialize_message(message), kind)
            assert store.serialize_cdr(again, kind) == bytes(raw), connection.topic
            read_topics.add(connection.topic)
            if connection.topic == ACTION_TOPIC:
                assert list(message.timing_names) == ["total_ms"]
    assert read_topics == set(classes)


def test_image_types_are_those_of_the_readers() -> None:
    assert ReplayMessages("raw").image_type == RAW_IMAGE
    assert ReplayMessages().image_type == ReplayMessages("jpeg").image_type == COMPRESSED_IMAGE
