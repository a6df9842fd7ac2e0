"""Bags become episodes: the right images under the right instruction, whatever the storage."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("rosbags", reason="bags need the extra `bags`")
import bag_samples as made
from bag_samples import (
    ACTION,
    CAMERA,
    INSTRUCTION,
    STEP_NS,
    numbers,
    picture,
    plain_recording,
    png_image,
    raw_image,
    row,
    text,
    time_of,
    write_bag,
)

from openvla_ros.data.bag_episodes import bag_episodes
from openvla_ros.data.topics import (
    ActionSource,
    GripperSource,
    InstructionSource,
    Splitting,
    TopicConfig,
    read_topic_file,
)
from openvla_ros.errors import ConfigurationError, ImageError
from openvla_ros.ros.frame_sources import shared_data_folder

ROOT = Path(__file__).resolve().parents[1]
PLAIN = TopicConfig(rate_hz=5.0, action=ActionSource(topic=ACTION))
SHARED = shared_data_folder()
WITH_RECORDINGS = pytest.mark.skipif(
    SHARED is None or not (SHARED / "bridge_rosbag2_mcap").is_dir(),
    reason="no recorded bags on this machine: OPENVLA_ROS_SHARED must name a folder with data/",
)


def require_plain(episodes, steps: int = 4) -> None:
    assert [len(episode) for episode in episodes] == [steps, steps]
    for place, episode in enumerate(episodes):
        begin = place * (steps + 10)
        numbers_of_steps = range(begin, begin + steps)
        assert episode.name == f"episode_{place:06d}"
        assert episode.instruction == f"task {place}"
        assert episode.rate_hz == 5.0
        np.testing.assert_array_equal(episode.stamps_ns, [time_of(k) for k in numbers_of_steps])
        np.testing.assert_array_equal(episode.actions, [row(k) for k in numbers_of_steps])
        for image, number in zip(episode.open_images(), numbers_of_steps, strict=True):
            np.testing.assert_array_equal(image, picture(number))


@pytest.mark.parametrize(
    ("storage", "compression"),
    [
        ("mcap", ""),
        ("mcap", "message"),
        ("mcap", "file"),
        ("mcap", "storage"),
        ("sqlite3", ""),
        ("sqlite3", "message"),
        ("sqlite3", "file"),
    ],
)
def test_every_storage_and_compression_gives_the_same_episodes(
    tmp_path, storage, compression
) -> None:
    bag = tmp_path / "bag"
    write_bag(bag, plain_recording(), storage=storage, compression=compression)
    require_plain(bag_episodes(bag, PLAIN))
    if not compression:
        [file] = bag.glob("*.mcap" if storage == "mcap" else "*.db3")
        require_plain(bag_episodes(file, PLAIN))


def test_a_bag_of_several_files_is_one_recording(tmp_path) -> None:
    """As `ros2 bag record --max-bag-size` writes it: one metadata.yaml, many files."""
    import yaml

    messages = plain_recording()
    cut = time_of(12)
    parts = [[s for s in messages if s.bag_ns < cut], [s for s in messages if s.bag_ns >= cut]]
    bag = tmp_path / "split"
    bag.mkdir()
    infos = []
    for place, part in enumerate(parts):
        folder = write_bag(tmp_path / f"part_{place}", part)
        infos.append(yaml.safe_load((folder / "metadata.yaml").read_text()))
        (folder / f"part_{place}.mcap").rename(bag / f"part_{place}.mcap")
    first, second = (info["rosbag2_bagfile_information"] for info in infos)
    first["relative_file_paths"] += second["relative_file_paths"]
    first["message_count"] += second["message_count"]
    for a, b in zip(
        first["topics_with_message_count"], second["topics_with_message_count"], strict=True
    ):
        a["message_count"] += b["message_count"]
    (bag / "metadata.yaml").write_text(yaml.safe_dump(infos[0]))
    require_plain(bag_episodes(bag, PLAIN))


def test_images_can_be_opened_again_and_in_another_process(tmp_path) -> None:
    episodes = bag_episodes(write_bag(tmp_path / "bag", plain_recording()), PLAIN)
    require_plain(episodes)
    require_plain(pickle.loads(pickle.dumps(episodes)))


def test_two_episodes_can_be_read_at_once(tmp_path) -> None:
    first, second = bag_episodes(write_bag(tmp_path / "bag", plain_recording()), PLAIN)
    pairs = zip(first.open_images(), second.open_images(), strict=True)
    for step, (a, b) in enumerate(pairs):
        np.testing.assert_array_equal(a, picture(step))
        np.testing.assert_array_equal(b, picture(step + 14))


def test_only_the_part_of_an_episode_is_read(tmp_path, monkeypatch) -> None:
    from openvla_ros.data.bag_file import BagReader

    episodes = bag_episodes(write_bag(tmp_path / "bag", plain_recording(5)), PLAIN)
    asked = []
    original = BagReader.messages

    def messages(self, connections, start, stop):
        asked.append((start, stop))
        return original(self, connections, start, stop)

    monkeypatch.setattr(BagReader, "messages", messages)
    assert sum(1 for _ in episodes[3].open_images()) == 4
    assert asked == [(time_of(42), time_of(45) + 1)]


def test_images_of_a_fast_camera_are_picked_by_their_header(tmp_path) -> None:
    """30 Hz, and the recorder got each image 10 to 40 ms late."""
    random = np.random.default_rng(0)
    messages = [text(time_of(-1), "push")]
    stamps = [made.BEGIN_NS + k * 10**9 // 30 for k in range(61)]
    for number, stamp in enumerate(stamps):
        late = int(random.integers(10, 40)) * 1_000_000
        messages.append(raw_image(stamp, picture(number), late_ns=late))
    messages += [numbers(time_of(k), row(k)) for k in range(11)]
    [episode] = bag_episodes(write_bag(tmp_path / "bag", messages), PLAIN)
    np.testing.assert_allclose(np.diff(episode.stamps_ns), STEP_NS, atol=2)
    used = [stamps.index(stamp) for stamp in episode.stamps_ns.tolist()]
    for image, number in zip(episode.open_images(), used, strict=True):
        np.testing.assert_array_equal(image, picture(number))
    np.testing.assert_array_equal(episode.actions, [row(k) for k in range(len(episode))])


def test_two_images_at_the_same_time_are_told_apart_by_their_order(tmp_path) -> None:
    messages = [text(time_of(0), "push"), numbers(time_of(0), row(0))]
    messages += [raw_image(time_of(0), picture(number)) for number in range(3)]
    [episode] = bag_episodes(write_bag(tmp_path / "bag", messages), PLAIN)
    [image] = episode.open_images()
    np.testing.assert_array_equal(image, picture(2), err_msg="the newest of them")


def splits(tmp_path: Path, messages: list, split: Splitting, **others) -> list[tuple[str, int]]:
    config = TopicConfig(rate_hz=5.0, action=ActionSource(topic=ACTION), split=split, **others)
    episodes = bag_episodes(write_bag(tmp_path / "bag", messages), config)
    return [(episode.instruction, len(episode)) for episode in episodes]


def camera(count: int) -> list:
    return [
        said
        for k in range(count)
        for said in (raw_image(time_of(k), picture(k)), numbers(time_of(k), row(k)))
    ]


def test_an_instruction_with_another_text_begins_an_episode(tmp_path) -> None:
    words = [text(time_of(k), t) for k, t in ((1, "a"), (3, "a"), (5, "b"), (7, "a"))]
    assert splits(tmp_path, words + camera(9), Splitting()) == [("a", 4), ("b", 2), ("a", 2)]


def test_every_instruction_begins_an_episode_where_that_is_asked_for(tmp_path) -> None:
    words = [text(time_of(k), t) for k, t in ((1, "a"), (3, "a"), (5, "b"))]
    got = splits(tmp_path, words + camera(7), Splitting(by="instruction_message"))
    assert got == [("a", 2), ("a", 2), ("b", 2)]


def test_a_blank_instruction_ends_an_episode(tmp_path) -> None:
    words = [text(time_of(k), t) for k, t in ((0, "a"), (2, " "), (4, "a"))]
    assert splits(tmp_path, words + camera(6), Splitting()) == [("a", 2), ("a", 2)]


def test_a_pause_of_the_camera_ends_an_episode(tmp_path) -> None:
    messages = [text(time_of(0), "a"), *camera(4)]
    messages += [raw_image(time_of(k), picture(k)) for k in range(14, 17)]
    assert splits(tmp_path, messages, Splitting()) == [("a", 4), ("a", 3)]


def test_markers_say_what_belongs_to_an_episode(tmp_path) -> None:
    words = InstructionSource(text="push")
    pings = [made.ping(time_of(k), "/mark") for k in (2, 5)]
    got = splits(
        tmp_path / "empty", camera(8) + pings, Splitting(marker="/mark"), instruction=words
    )
    assert got == [("push", 3), ("push", 3)]
    flags = [made.flag(time_of(k), on, "/mark") for k, on in ((1, 1), (2, 1), (4, 0), (6, 1))]
    got = splits(tmp_path / "bool", camera(8) + flags, Splitting(marker="/mark"), instruction=words)
    assert got == [("push", 3), ("push", 2)]
    off = [made.flag(time_of(0), False, "/mark")]
    with pytest.raises(ConfigurationError, match="no image lies within the episodes that /mark"):
        splits(tmp_path / "off", camera(8) + off, Splitting(marker="/mark"), instruction=words)


def test_a_recording_of_our_own_node_needs_no_topic_file(tmp_path) -> None:
    """The camera runs at 10 Hz, the node answered every second frame, each answer came later."""
    messages = [png_image(time_of(k / 2), picture(k)) for k in range(12)]
    messages += [made.answer(time_of(k), row(k), instruction="fold it") for k in range(1, 6)]
    messages += [made.text(time_of(0), "fold it"), made.text(time_of(0), "fold it", "/node/active")]
    [episode] = bag_episodes(write_bag(tmp_path / "bag", messages), TopicConfig())
    assert (episode.instruction, episode.rate_hz) == ("fold it", 5.0)
    np.testing.assert_array_equal(episode.stamps_ns, [time_of(k) for k in range(1, 6)])
    np.testing.assert_array_equal(episode.actions, [row(k) for k in range(1, 6)])
    for image, number in zip(episode.open_images(), range(2, 12, 2), strict=True):
        np.testing.assert_array_equal(image, picture(number))


def test_answers_to_another_camera_are_an_error(tmp_path) -> None:
    messages = [png_image(time_of(k), picture(k)) for k in range(3)]
    messages += [made.answer(time_of(k) + 1, row(k)) for k in range(3)]
    with pytest.raises(ConfigurationError, match="no answer on /action has the stamp of an image"):
        bag_episodes(write_bag(tmp_path / "bag", messages), TopicConfig())


def test_a_rate_must_be_given_where_the_bag_does_not_say_it(tmp_path) -> None:
    bag = write_bag(tmp_path / "bag", plain_recording(1))
    with pytest.raises(ConfigurationError, match="rate_hz is not given"):
        bag_episodes(bag, TopicConfig(action=ActionSource(topic=ACTION)))


def test_a_bag_without_actions_can_be_read_where_that_is_said(tmp_path) -> None:
    config = TopicConfig(rate_hz=5.0, action=ActionSource(topic="none"))
    episodes = bag_episodes(write_bag(tmp_path / "bag", plain_recording()), config)
    assert [episode.actions.shape for episode in episodes] == [(4, 7), (4, 7)]
    assert np.isnan(episodes[0].actions).all()


def test_a_camera_that_is_slower_than_the_dataset_is_refused(tmp_path) -> None:
    messages = [text(time_of(0), "a")]
    messages += [raw_image(time_of(4 * k), picture(k)) for k in range(5)]
    messages += [numbers(time_of(4 * k), row(k)) for k in range(5)]
    with pytest.raises(ConfigurationError, match="17 steps, and /camera has images for 5"):
        bag_episodes(write_bag(tmp_path / "bag", messages), PLAIN)


def test_images_of_two_sizes_in_one_episode_are_refused(tmp_path) -> None:
    messages = [*plain_recording(1), raw_image(time_of(4), picture(4, 10, 6))]
    bag = write_bag(tmp_path / "bag", messages)
    with pytest.raises(ImageError, match=r"image 4 of episode_000000.*10 x 6 pixels.*8 x 6"):
        bag_episodes(bag, PLAIN)


def test_two_episodes_may_have_two_sizes(tmp_path) -> None:
    messages = [text(time_of(0), "a"), *camera(2), text(time_of(2), "b")]
    messages += [png_image(time_of(2), picture(2, 10, 6), "/other")]
    messages += [raw_image(time_of(2), picture(2, 10, 6))]
    config = TopicConfig(rate_hz=5.0, image=CAMERA, action=ActionSource(topic=ACTION))
    episodes = bag_episodes(write_bag(tmp_path / "bag", messages), config)
    assert [next(episode.open_images()).shape for episode in episodes] == [(6, 8, 3), (6, 10, 3)]


def test_an_image_that_is_no_picture_is_named(tmp_path) -> None:
    broken = png_image(time_of(1), picture(1))
    broken.message.data = broken.message.data[:20]
    messages = [text(time_of(0), "a"), png_image(time_of(0), picture(0)), broken]
    messages += [numbers(time_of(k), row(k)) for k in range(2)]
    with pytest.raises(ImageError, match=r"image 1 of episode_000000 \(/camera, stamp .*damaged"):
        bag_episodes(write_bag(tmp_path / "bag", messages), PLAIN)
    cut = png_image(time_of(1), picture(1))
    cut.message.data = cut.message.data[:-12]  # the header is sound, the end is missing
    [episode] = bag_episodes(
        write_bag(tmp_path / "cut", [*messages[:2], *messages[3:], cut]), PLAIN
    )
    images = episode.open_images()
    next(images)
    with pytest.raises(ImageError, match=r"image 1 of episode_000000.*cut short"):
        next(images)


def test_images_that_nobody_speaks_about_are_an_error(tmp_path) -> None:
    late = [said for said in plain_recording(1) if said.topic != INSTRUCTION]
    bag = write_bag(tmp_path / "late", [*late, text(time_of(90), "too late")])
    with pytest.raises(ConfigurationError, match="no image has an instruction"):
        bag_episodes(bag, PLAIN)
    bag = write_bag(tmp_path / "blank", [*late, text(time_of(0), "\n")])
    with pytest.raises(ConfigurationError, match="says nothing but blanks"):
        bag_episodes(bag, PLAIN)


def test_actions_of_another_time_are_an_error(tmp_path) -> None:
    messages = [said for said in plain_recording(1) if said.topic != ACTION]
    messages += [numbers(time_of(k), row(k)) for k in range(100, 104)]
    with pytest.raises(ConfigurationError, match=r"no image has an action.*stamps: bag"):
        bag_episodes(write_bag(tmp_path / "bag", messages), PLAIN)


def test_a_lost_action_leaves_its_row_open(tmp_path) -> None:
    messages = [s for s in plain_recording(1) if (s.topic, s.bag_ns) != (ACTION, time_of(2))]
    [episode] = bag_episodes(write_bag(tmp_path / "bag", messages), PLAIN)
    assert np.isnan(episode.actions).all(axis=1).tolist() == [False, False, True, False]


def test_a_twist_without_a_gripper_is_refused_with_the_bag(tmp_path) -> None:
    messages = [said for said in plain_recording(1) if said.topic != ACTION]
    messages += [made.twist(time_of(k), [0.1] * 6) for k in range(4)]
    bag = write_bag(tmp_path / "bag", messages)
    source = ActionSource(topic=ACTION, rotation="euler_rate")
    with pytest.raises(ConfigurationError, match=f"{bag}: .*gripper: none"):
        bag_episodes(bag, TopicConfig(5.0, action=source))
    none = TopicConfig(5.0, action=source, gripper=GripperSource(topic="none"))
    [episode] = bag_episodes(bag, none)
    np.testing.assert_allclose(episode.actions, np.full((4, 6), 0.02), rtol=1e-12)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_recording_that_was_cut_off_is_an_error(tmp_path, storage, share) -> None:
    bag = write_bag(tmp_path / "bag", plain_recording(), storage=storage)
    [file] = [file for file in bag.iterdir() if file.name != "metadata.yaml"]
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ConfigurationError, match=f"{bag}.*whole"):
        bag_episodes(bag, PLAIN)


@pytest.mark.parametrize(
    ("name", "content"),
    [("absent", None), ("a.mcap", b""), ("a.txt", b"hello"), ("a.db3", b"SQLite format 3\0")],
)
def test_what_is_no_bag_is_an_error(tmp_path, name, content) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=name):
        bag_episodes(path, PLAIN)


def test_a_bag_that_changes_while_it_is_read_is_an_error(tmp_path) -> None:
    path = tmp_path / "bag"
    [first, _] = bag_episodes(write_bag(path, plain_recording()), PLAIN)
    path.rename(tmp_path / "old")
    write_bag(path, plain_recording(1, steps=3))
    with pytest.raises(ConfigurationError, match="the file changed while it was read"):
        list(first.open_images())


def old_bag(folder: Path) -> Path:
    """As ROS 2 Humble writes SQLite: no definitions of messages inside."""
    import sqlite3

    bag = write_bag(folder / "bag", plain_recording(), storage="sqlite3")
    with sqlite3.connect(bag / "bag.db3") as database:
        database.executescript("DROP TABLE schema; DROP TABLE message_definitions;")
    return bag


def test_a_bag_without_definitions_is_read_with_those_of_ros(tmp_path) -> None:
    require_plain(bag_episodes(old_bag(tmp_path), PLAIN))


GROWTH = """
import resource, sys
from pathlib import Path
from openvla_ros.data.bag_episodes import bag_episodes
from openvla_ros.data.topics import ActionSource, TopicConfig
def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
topics = TopicConfig(rate_hz=5.0, action=ActionSource(topic="/action"))
for path in sys.argv[1:]:
    episodes = bag_episodes(Path(path), topics)
    count = sum(1 for episode in episodes for _ in episode.open_images())
    print(count, peak_mb())
"""


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_large_bag_needs_no_more_memory_than_a_small_one(tmp_path, storage) -> None:
    def vga(episodes: int):
        frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
        for said in plain_recording(episodes, steps=20):
            yield raw_image(said.bag_ns, frame) if said.topic == CAMERA else said

    bags = [
        write_bag(tmp_path / "small", vga(1), storage=storage),
        write_bag(tmp_path / "large", vga(20), storage=storage),  # 370 MB
    ]
    command = [sys.executable, "-c", GROWTH, *map(str, bags)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    (small, small_mb), (large, large_mb) = (
        map(float, line.split()) for line in output.splitlines()
    )
    assert (small, large) == (20, 400)
    assert large_mb - small_mb < 60, f"{small_mb:.0f} MB for 1 episode, {large_mb:.0f} MB for 20"


@WITH_RECORDINGS
@pytest.mark.parametrize("topics", ["bridge_sample", "bridge_sample_twist"])
def test_the_sample_bag_equals_the_episodes_that_it_was_made_from(topics) -> None:
    config = read_topic_file(ROOT / "config" / "topics" / f"{topics}.yaml")
    episodes = bag_episodes(SHARED / "bridge_rosbag2_mcap", config)
    assert len(episodes) == 3
    for episode, number in zip(episodes, (4, 0, 13), strict=True):
        path = SHARED / "bridge_octo_debug" / f"episode_{number:03d}.npz"
        with np.load(path, allow_pickle=False) as stored:
            assert episode.instruction == str(stored["instruction"])
            action = stored["action"].astype(np.float64)
            tolerance = 0.0 if topics == "bridge_sample" else 1e-15
            np.testing.assert_allclose(episode.actions, action, rtol=tolerance, atol=0.0)
            if episode.states is not None:
                np.testing.assert_array_equal(episode.states, stored["state"].astype(np.float64))
            jpeg, offsets = stored["image_0_jpeg"], stored["image_0_offsets"]
        for step, image in enumerate(episode.open_images()):
            encoded = jpeg[offsets[step] : offsets[step + 1]].tobytes()
            expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
            np.testing.assert_array_equal(image, expected)
        assert step == 9


@WITH_RECORDINGS
def test_the_bag_of_single_frames_gives_one_step_each() -> None:
    config = read_topic_file(ROOT / "config" / "topics" / "bridge_sample.yaml")
    folder = SHARED / "bridge_v2_frames100"
    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    episodes = bag_episodes(SHARED / "bridge_v2_frames100_rosbag2_mcap", config)
    assert len(episodes) == len(samples) == 100
    for place, (episode, sample) in enumerate(zip(episodes, samples, strict=True)):
        assert episode.instruction == sample["instruction"]
        np.testing.assert_array_equal(episode.actions, [sample["action"]])
        if place % 10 == 0:  # opening a bag takes its time
            [image] = episode.open_images()
            expected = np.asarray(Image.open(folder / sample["image"]).convert("RGB"))
            np.testing.assert_array_equal(image, expected)


@WITH_RECORDINGS
def test_bridge_states_give_the_actions_that_openvla_was_trained_on() -> None:
    config = TopicConfig(
        rate_hz=5.0,
        instruction=InstructionSource(topic="/instruction"),
        action=ActionSource(topic="/ee_state", differences=True, rotation="euler_difference"),
        gripper=GripperSource(topic="/action/raw", column=6),
    )
    episode = bag_episodes(SHARED / "bridge_rosbag2_mcap", config)[0]
    path = SHARED / "bridge_octo_debug" / "episode_004.npz"
    with np.load(path, allow_pickle=False) as stored:
        states, actions = stored["state"].astype(np.float64), stored["action"].astype(np.float64)
    np.testing.assert_array_equal(episode.actions[:-1, :6], states[1:, :6] - states[:-1, :6])
    np.testing.assert_array_equal(episode.actions[:-1, 6], actions[:-1, 6])
    assert np.isnan(episode.actions[-1]).all()
