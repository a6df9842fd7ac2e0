"""Where frames come from: bags, stills, the rendered scene, and how one of them is chosen."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openvla_ros.errors import ConfigurationError, ImageError
from openvla_ros.ros.frame_sources import (
    STILL_S,
    BagFrames,
    RenderedFrames,
    StillFrames,
    open_frame_source,
    shared_data_folder,
)
from openvla_ros.sim import table_scene

rosbags = pytest.importorskip("rosbags", reason="bags need the extra `bags`")
from rosbags.rosbag2 import StoragePlugin, Writer  # noqa: E402
from rosbags.typesys import Stores, get_typestore  # noqa: E402

STORE = get_typestore(Stores.ROS2_JAZZY)
IMAGE, TEXT = "sensor_msgs/msg/Image", "std_msgs/msg/String"


def solid(colour: int) -> np.ndarray:
    return np.full((4, 6, 3), colour, np.uint8)


def image_message(picture: np.ndarray) -> object:
    kinds = STORE.types
    header = kinds["std_msgs/msg/Header"](kinds["builtin_interfaces/msg/Time"](0, 0), "camera")
    height, width, _ = picture.shape
    return kinds[IMAGE](header, height, width, "rgb8", 0, 3 * width, picture.reshape(-1))


def write_bag(path: Path, messages: list[tuple[float, str, str, object]]) -> Path:
    """Write (seconds, topic, type, message) rows."""
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {
            topic: writer.add_connection(topic, kind, typestore=STORE)
            for topic, kind in {topic: kind for _, topic, kind, _ in messages}.items()
        }
        for seconds, topic, kind, message in messages:
            raw = STORE.serialize_cdr(message, kind)
            writer.write(connections[topic], round(seconds * 1e9) + 10**18, raw)
    return path


def camera_bag(path: Path, colours: list[int], rate_hz: float) -> Path:
    rows = [(0.0, "/task", TEXT, STORE.types[TEXT]("first"))]
    rows += [(i / rate_hz, "/cam", IMAGE, image_message(solid(c))) for i, c in enumerate(colours)]
    return write_bag(path, rows)


def colours(source: BagFrames, rate_hz: float, count: int) -> list[int]:
    return [int(frame.image[0, 0, 0]) for frame in islice(source.frames(rate_hz), count)]


def test_a_bag_at_the_camera_rate_gives_every_frame_once_and_loops(tmp_path) -> None:
    source = BagFrames(camera_bag(tmp_path / "bag", [1, 2, 3, 4], 5.0))
    assert colours(source, 5.0, 8) == [1, 2, 3, 4, 1, 2, 3, 4]


def test_a_slow_bag_repeats_its_frames_and_a_fast_one_skips(tmp_path) -> None:
    slow = BagFrames(camera_bag(tmp_path / "slow", [1, 2], 1.0))
    assert colours(slow, 5.0, 6) == [1, 1, 1, 1, 1, 2]
    fast = BagFrames(camera_bag(tmp_path / "fast", list(range(30)), 30.0))
    assert colours(fast, 5.0, 3) == [3, 9, 15]


def test_the_instruction_changes_with_the_recording(tmp_path) -> None:
    rows = [
        (0.0, "/task", TEXT, STORE.types[TEXT]("open the drawer")),
        (0.1, "/cam", IMAGE, image_message(solid(1))),
        (0.2, "/task", TEXT, STORE.types[TEXT]("close it")),
        (0.3, "/cam", IMAGE, image_message(solid(2))),
    ]
    frames = list(islice(BagFrames(write_bag(tmp_path / "bag", rows)).frames(5.0), 2))
    assert frames[-1].instruction == "close it"
    assert frames[-1].image[0, 0, 0] == 2


def test_several_image_topics_need_a_choice(tmp_path) -> None:
    rows = [(i, f"/cam{i}", IMAGE, image_message(solid(i))) for i in (1, 2)]
    bag = write_bag(tmp_path / "bag", rows)
    with pytest.raises(ConfigurationError, match=r"/cam1, /cam2.*--image-topic"):
        BagFrames(bag)
    assert BagFrames(bag, image_topic="/cam2").image_topic == "/cam2"
    with pytest.raises(ConfigurationError, match="no image topic '/cam3'"):
        BagFrames(bag, image_topic="/cam3")


def test_a_bag_without_images_absent_or_damaged_is_an_error_that_names_it(tmp_path) -> None:
    text = write_bag(tmp_path / "text", [(0.0, "/task", TEXT, STORE.types[TEXT]("x"))])
    with pytest.raises(ConfigurationError, match="0 image topics"):
        BagFrames(text)
    with pytest.raises(ConfigurationError, match="no bag at"):
        BagFrames(tmp_path / "nowhere")
    damaged = tmp_path / "damaged.mcap"
    damaged.write_bytes(b"this is no bag")
    with pytest.raises(ConfigurationError, match=r"damaged\.mcap cannot be read as a bag"):
        BagFrames(damaged)


def stills(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, colour in (("a.png", 10), ("b.png", 20)):
        Image.fromarray(solid(colour)).save(folder / name)
    rows = [{"image": "a.png", "instruction": "do a"}, {"image": "b.png", "instruction": "do b"}]
    (folder / "samples.json").write_text(json.dumps(rows))
    return folder


def test_every_still_is_shown_for_its_time_with_its_own_instruction(tmp_path) -> None:
    repeats = round(STILL_S * 5.0)
    frames = list(islice(StillFrames(stills(tmp_path / "s")).frames(5.0), 2 * repeats + 1))
    assert [frame.instruction for frame in frames] == ["do a"] * repeats + ["do b"] * repeats + [
        "do a"
    ]
    np.testing.assert_array_equal(frames[repeats].image, solid(20))


def test_a_still_that_cannot_be_opened_is_named(tmp_path) -> None:
    folder = stills(tmp_path / "s")
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a\.png"):
        next(StillFrames(folder).frames(5.0))
    (folder / "samples.json").write_text('{"image": 3}')
    with pytest.raises(ConfigurationError, match=r"samples\.json"):
        StillFrames(folder)


def test_the_rendered_scene_is_repeatable_and_moves() -> None:
    first, second = (list(islice(RenderedFrames().frames(5.0), 20)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    assert len({frame.image.tobytes() for frame in first}) == 20
    assert first[0].image.shape == (480, 640, 3)
    assert first[0].image.dtype == np.uint8


def test_the_rendered_scene_shows_its_red_cube_in_red() -> None:
    """Swapped channels would show it in blue, and nobody would notice on a screen."""
    picture = table_scene.render(0.0).astype(int)
    red = (picture[..., 0] > 150) & (picture[..., 1:].max(axis=-1) < 100)
    assert red.sum() > 200, f"{red.sum()} red pixels"


def test_the_cube_goes_from_the_table_to_the_bowl() -> None:
    np.testing.assert_array_equal(table_scene.cube_at(0.0), table_scene.CUBE_START)
    end = table_scene.cube_at(table_scene.LOOP_S - 0.1)
    assert np.linalg.norm(end[:2] - table_scene.BOWL[:2]) < table_scene.BOWL_RADIUS_M


def test_the_users_bag_comes_before_everything_else(tmp_path, monkeypatch) -> None:
    stills(tmp_path / "data" / "bridge_v2_frames100")
    monkeypatch.setenv("OPENVLA_ROS_SHARED", str(tmp_path))
    bag = camera_bag(tmp_path / "bag", [1], 5.0)
    assert isinstance(open_frame_source(bag), BagFrames)
    assert isinstance(open_frame_source(), StillFrames)


def test_sample_bags_come_before_the_rendered_scene(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OPENVLA_ROS_SHARED", str(tmp_path))
    assert shared_data_folder() is None
    assert isinstance(open_frame_source(), RenderedFrames)
    (tmp_path / "data").mkdir()
    camera_bag(tmp_path / "data" / "some_rosbag2_mcap", [1], 5.0)
    assert isinstance(open_frame_source(), BagFrames)
