"""Small bags with known content, written message by message: a camera, an instruction, an action.

Everything is made with `rosbags`, so MCAP, SQLite3 and every compression can be asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from openvla_ros.data.bag_file import COMPRESSED_IMAGE, RAW_IMAGE, typestore_for
from openvla_ros.data.bag_numbers import (
    ANSWER,
    ARRAY,
    BOOL,
    EMPTY,
    FLOAT,
    JOINTS,
    OPENING,
    POSE,
    ROLE_TYPES,
    TEXT,
    TWIST,
)

CAMERA, INSTRUCTION, ACTION = "/camera", "/instruction", "/action"
BEGIN_NS = 1_700_000_000_000_000_000
STEP_NS = 200_000_000  # 5 Hz

_STORE = typestore_for({kind for kinds in ROLE_TYPES.values() for kind in kinds})
_TYPES = _STORE.types


@dataclass(frozen=True)
class Said:
    """One message of a bag: its time is that of the recorder, a header's is inside `message`."""

    topic: str
    message_type: str
    bag_ns: int
    message: Any


def write_bag(
    path: Path,
    messages: Iterable[Said],
    *,
    storage: str = "mcap",
    compression: str = "",
    topics: Iterable[tuple[str, str]] = (),
) -> Path:
    """Write a bag in order of bag time; `topics` are declared although nothing is said on them.

    `storage` is mcap or sqlite3; `compression` is "", message, file or storage.
    """
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

    writer = Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()])
    if compression:
        writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    with writer:
        connections: dict[tuple[str, str], Any] = {
            key: writer.add_connection(*key, typestore=_STORE) for key in topics
        }
        for said in sorted(messages, key=lambda said: said.bag_ns):
            key = said.topic, said.message_type
            if key not in connections:
                connections[key] = writer.add_connection(*key, typestore=_STORE)
            raw = bytes(_STORE.serialize_cdr(said.message, said.message_type))
            writer.write(connections[key], said.bag_ns, raw)
    return path


def time_of(steps: float) -> int:
    """Return the time [ns] of a step, which may be a fraction."""
    return BEGIN_NS + round(steps * STEP_NS)


def header(stamp_ns: int) -> Any:
    stamp = _TYPES["builtin_interfaces/msg/Time"](stamp_ns // 10**9, stamp_ns % 10**9)
    return _TYPES["std_msgs/msg/Header"](stamp, "base_link")


def picture(number: int, width: int = 8, height: int = 6) -> np.ndarray:
    """(height, width, 3) uint8 RGB that differs from those of other numbers."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    pixels[:2] = [number % 256, 10, 200]
    return pixels


def raw_image(stamp_ns: int, pixels: np.ndarray, topic: str = CAMERA, late_ns: int = 0) -> Said:
    height, width, _ = pixels.shape
    message = _TYPES[RAW_IMAGE](
        header(stamp_ns), height, width, "rgb8", 0, width * 3, pixels.ravel()
    )
    return Said(topic, RAW_IMAGE, stamp_ns + late_ns, message)


def png_image(stamp_ns: int, pixels: np.ndarray, topic: str = CAMERA) -> Said:
    data = cv2.imencode(".png", pixels[..., ::-1])[1].ravel()
    message = _TYPES[COMPRESSED_IMAGE](header(stamp_ns), "png", data)
    return Said(topic, COMPRESSED_IMAGE, stamp_ns, message)


def text(stamp_ns: int, words: str, topic: str = INSTRUCTION) -> Said:
    return Said(topic, TEXT, stamp_ns, _TYPES[TEXT](words))


def numbers(stamp_ns: int, values: Iterable[float], topic: str = ACTION) -> Said:
    layout = _TYPES["std_msgs/msg/MultiArrayLayout"]([], 0)
    return Said(topic, ARRAY, stamp_ns, _TYPES[ARRAY](layout, np.asarray(list(values), np.float64)))


def twist(stamp_ns: int, velocity: Iterable[float], topic: str = ACTION) -> Said:
    vector = _TYPES["geometry_msgs/msg/Vector3"]
    v = [float(x) for x in velocity]
    body = _TYPES["geometry_msgs/msg/Twist"](vector(*v[:3]), vector(*v[3:]))
    return Said(topic, TWIST, stamp_ns, _TYPES[TWIST](header(stamp_ns), body))


def pose(
    stamp_ns: int, position: Iterable[float], quaternion: Iterable[float], topic: str = ACTION
) -> Said:
    point = _TYPES["geometry_msgs/msg/Point"](*[float(x) for x in position])
    turn = _TYPES["geometry_msgs/msg/Quaternion"](*[float(x) for x in quaternion])
    body = _TYPES["geometry_msgs/msg/Pose"](point, turn)
    return Said(topic, POSE, stamp_ns, _TYPES[POSE](header(stamp_ns), body))


def number(stamp_ns: int, value: float, topic: str) -> Said:
    return Said(topic, FLOAT, stamp_ns, _TYPES[FLOAT](float(value)))


def flag(stamp_ns: int, value: bool, topic: str) -> Said:
    return Said(topic, BOOL, stamp_ns, _TYPES[BOOL](value))


def ping(stamp_ns: int, topic: str) -> Said:
    return Said(topic, EMPTY, stamp_ns, _TYPES[EMPTY](0))


def joints(stamp_ns: int, positions: dict[str, float], topic: str) -> Said:
    none = np.zeros(0)
    message = _TYPES[JOINTS](
        header(stamp_ns), list(positions), np.array(list(positions.values())), none, none
    )
    return Said(topic, JOINTS, stamp_ns, message)


def opening(stamp_ns: int, value: float, topic: str) -> Said:
    message = _TYPES[OPENING](header(stamp_ns), value, 0.08 * value, 20.0)
    return Said(topic, OPENING, stamp_ns, message)


def answer(
    image_ns: int,
    raw: Iterable[float],
    *,
    topic: str = ACTION,
    instruction: str = "pick up the cup",
    action_dt: float = 0.2,
    chunk_steps: int = 1,
    late_ns: int = 60_000_000,
) -> Said:
    """What the node answered to the image with this stamp, `late_ns` later."""
    time, vector = _TYPES["builtin_interfaces/msg/Time"], _TYPES["geometry_msgs/msg/Vector3"]
    values = dict.fromkeys(_TYPES[ANSWER].__dataclass_fields__, 0) | {
        "header": header(image_ns),
        "instruction": instruction,
        "prompt": "",
        "unnorm_key": "bridge_orig",
        **dict.fromkeys(("image_received", "inference_start", "inference_end"), time(1, 2)),
        "timing_names": ["total_ms"],
        "timing_ms": np.array([1.5]),
        "delta_position": vector(0.0, 0.0, 0.0),
        "delta_rotation": vector(0.0, 0.0, 0.0),
        "action_dt": action_dt,
        "chunk_steps": chunk_steps,
        "steps": np.zeros(6),
        "raw": np.asarray(list(raw), np.float64),
        "normalized": np.zeros(7),
        "token_ids": np.zeros(7, np.int32),
        "token_probability": np.zeros(0, np.float32),
        "invalid_dims": np.zeros(0, np.int32),
        "is_valid": True,
        "executed": True,
        "gripper_open": True,
    }
    values.pop("__msgtype__", None)
    return Said(topic, ANSWER, image_ns + late_ns, _TYPES[ANSWER](**values))


def row(step: int, width: int = 7) -> list[float]:
    """Return numbers of an action that no other step has."""
    return [0.001 * step + 0.01 * place for place in range(width - 1)] + [float(step % 2)]


def plain_recording(episodes: int = 2, steps: int = 4) -> list[Said]:
    """Return episodes at 5 Hz, two seconds apart: instruction, raw image and numbers per step."""
    messages = []
    for episode in range(episodes):
        begin = episode * (steps + 10)
        messages.append(text(time_of(begin), f"task {episode}"))
        for step in range(begin, begin + steps):
            messages += [
                raw_image(time_of(step), picture(step)),
                numbers(time_of(step), row(step)),
            ]
    return messages
