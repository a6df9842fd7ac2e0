"""Bags are written with definitions, closed whatever happens, and read back as they were."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from openvla_ros.errors import ConfigurationError

pytest.importorskip("rosbags", reason="bags need the extra `bags`")
from openvla_ros.data.bag_file import (
    COMPRESSED_IMAGE,
    RAW_IMAGE,
    BagFile,
    find_message_definition,
    open_bag,
    picture_to_rgb,
    typestore_for,
)

ACTION, TEXT = "openvla_ros/msg/VLAAction", "std_msgs/msg/String"


def text_bytes(text: str) -> bytes:
    store = typestore_for([TEXT])
    return bytes(store.serialize_cdr(store.types[TEXT](text), TEXT))


def read(path) -> list[tuple[str, int, object]]:
    with open_bag(path) as reader:
        return [
            (connection.topic, stamp, reader.deserialize(raw, connection.msgtype))
            for connection, stamp, raw in reader.messages()
        ]


def action_message(store, sequence: int):
    kinds = store.types
    time = kinds["builtin_interfaces/msg/Time"]
    header = kinds["std_msgs/msg/Header"](time(7, 8), "base_link")
    vector = kinds["geometry_msgs/msg/Vector3"]
    values = dict.fromkeys(kinds[ACTION].__dataclass_fields__, 0) | {
        "header": header,
        "sequence": sequence,
        "instruction": "put spoon on towel",
        "prompt": "",
        "unnorm_key": "bridge_orig",
        **dict.fromkeys(("image_received", "inference_start", "inference_end"), time(1, 2)),
        "timing_names": ["total_ms"],
        "timing_ms": np.array([1.5]),
        "delta_position": vector(0.01, -0.02, 0.03),
        "delta_rotation": vector(0.0, 0.0, 0.0),
        "steps": np.linspace(-0.01, 0.01, 6),
        "raw": np.arange(7.0),
        "normalized": np.linspace(-1, 1, 7),
        "token_ids": np.arange(31744, 31751, dtype=np.int32),
        "token_probability": np.array([], np.float32),
        "invalid_dims": np.array([], np.int32),
        "is_valid": True,
        "executed": True,
        "gripper_open": True,
    }
    values.pop("__msgtype__", None)
    return kinds[ACTION](**values)


def test_our_own_messages_come_back_with_every_field(tmp_path) -> None:
    store = typestore_for([ACTION])
    bag = BagFile(tmp_path / "bag", {"/action": ACTION})
    bag.write("/action", 123, bytes(store.serialize_cdr(action_message(store, 42), ACTION)))
    bag.close()
    [(topic, stamp, message)] = read(tmp_path / "bag")
    assert (topic, stamp, message.sequence) == ("/action", 123, 42)
    assert message.instruction == "put spoon on towel"
    assert message.delta_position.y == -0.02
    np.testing.assert_array_equal(message.token_ids, np.arange(31744, 31751))
    assert message.DRY_RUN == 1, "constants travel with the definition"


def test_messages_keep_their_order_stamps_and_topics(tmp_path) -> None:
    bag = BagFile(tmp_path / "bag", {"/a": TEXT, "/b": TEXT})
    for count in range(20):
        bag.write("/a" if count % 2 else "/b", 1000 + count, text_bytes(str(count)))
    bag.close()
    rows = read(tmp_path / "bag")
    assert [message.data for _, _, message in rows] == [str(count) for count in range(20)]
    assert [stamp for _, stamp, _ in rows] == list(range(1000, 1020))
    assert bag.counts == {"/a": 10, "/b": 10}


def test_closing_twice_and_writing_after_closing_do_no_harm(tmp_path) -> None:
    bag = BagFile(tmp_path / "bag", {"/a": TEXT})
    bag.write("/a", 1, text_bytes("kept"))
    bag.close()
    bag.write("/a", 2, text_bytes("late"))
    bag.close()
    assert [message.data for _, _, message in read(tmp_path / "bag")] == ["kept"]


def test_many_threads_write_one_bag(tmp_path) -> None:
    bag = BagFile(tmp_path / "bag", {f"/t{i}": TEXT for i in range(4)})
    raw = text_bytes("x")

    def write(topic: str) -> None:
        for stamp in range(200):
            bag.write(topic, stamp, raw)

    threads = [threading.Thread(target=write, args=(f"/t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bag.close()
    assert len(read(tmp_path / "bag")) == 800


def test_an_existing_folder_is_not_overwritten(tmp_path) -> None:
    (tmp_path / "bag").mkdir()
    with pytest.raises(ConfigurationError, match="exists already"):
        BagFile(tmp_path / "bag", {"/a": TEXT})


def test_a_bag_without_messages_can_be_read(tmp_path) -> None:
    BagFile(tmp_path / "bag", {"/a": TEXT}).close()
    assert read(tmp_path / "bag") == []


def test_the_definition_of_a_type_brings_those_of_its_parts() -> None:
    texts = {
        "made/msg/Outer": "made/Inner[] parts\nstd_msgs/Header header\n",
        "made/msg/Inner": "made/Leaf leaf\n",
        "made/msg/Leaf": "float64 value\n",
    }
    store = typestore_for(["made/msg/Outer"], texts.__getitem__)
    assert set(texts) <= set(store.fielddefs)


def test_an_unknown_type_says_what_to_source() -> None:
    with pytest.raises(ConfigurationError, match=r"absent_msgs/msg/X .*Source the workspace"):
        find_message_definition("absent_msgs/msg/X")


def test_both_kinds_of_image_decode_to_rgb() -> None:
    import cv2

    class Message:
        pass

    colours = np.array([[[200, 100, 50]] * 16] * 16, np.uint8)
    raw = Message()
    raw.height, raw.width, raw.encoding, raw.is_bigendian = 16, 16, "bgr8", 0
    raw.step, raw.data = 48, colours[..., ::-1].tobytes()
    np.testing.assert_array_equal(picture_to_rgb(raw, RAW_IMAGE), colours)
    compressed = Message()
    compressed.format = "png"
    compressed.data = cv2.imencode(".png", colours[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(picture_to_rgb(compressed, COMPRESSED_IMAGE), colours)


@pytest.mark.ros
def test_serialized_messages_off_the_wire_land_in_the_bag(tmp_path) -> None:
    """Two nodes over DDS; the recorder never decodes what it stores."""
    import rclpy
    from rclpy.node import Node
    from rclpy.serialization import serialize_message
    from std_msgs.msg import String

    from openvla_ros.ros.recorder import RecordedTopic, Recorder

    rclpy.init()
    try:
        sender, receiver = Node("sender"), Node("receiver")
        publisher = sender.create_publisher(String, "/said", 10)
        recorder = Recorder(receiver, tmp_path / "bag", [RecordedTopic("/said", String)])
        wait_until(lambda: publisher.get_subscription_count() > 0, receiver)
        sent = [String(data=f"message {count}") for count in range(5)]
        for message in sent:
            publisher.publish(message)
        wait_until(lambda: recorder.bag.counts["/said"] == len(sent), receiver)
        recorder.close()
    finally:
        rclpy.try_shutdown()
    with open_bag(tmp_path / "bag") as reader:
        stored = [bytes(raw) for _, _, raw in reader.messages()]
    assert stored == [serialize_message(message) for message in sent]


def wait_until(is_done, node, timeout_s: float = 20.0) -> None:
    import time

    import rclpy

    deadline = time.monotonic() + timeout_s
    while not is_done():
        assert time.monotonic() < deadline, "timed out"
        rclpy.spin_once(node, timeout_sec=0.1)
