"""Small recordings in every format that the package reads, written without its readers.

The TFRecord and tf.train.Example encoders here follow the published formats on their own.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

RATE_HZ = 5
SIZE = (48, 64)  # height, width
CAMERA = "observation.images.primary"
WRIST = "observation.images.wrist"
POSE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]


@dataclass(frozen=True)
class Recording:
    """T steps: images (T, H, W, 3) uint8, actions and states (T, 7) float32, a task per step."""

    images: np.ndarray
    actions: np.ndarray
    states: np.ndarray
    tasks: list[str]

    def __len__(self) -> int:
        return len(self.actions)


def recording(seed: int, steps: int = 6, task: str = "pick up the cup") -> Recording:
    """Smooth pictures, so that a codec keeps them, that tell every step of every seed apart."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    images = np.zeros((steps, height, width, 3), np.uint8)
    for t in range(steps):
        images[t, ..., 0] = 255 * x
        images[t, ..., 1] = 255 * y
        images[t, ..., 2] = (40 * (t + 1) + 20 * seed) % 256
    actions = rng.normal(0, 0.01, (steps, 7)).astype(np.float32)
    states = rng.normal(0, 0.3, (steps, 7)).astype(np.float32)
    return Recording(images, actions, states, [task] * steps)


def encoded(image: np.ndarray, kind: str) -> bytes:
    """The picture as a PNG or JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


# npz


def npz_arrays(rec: Recording, kind: str = "PNG") -> dict[str, np.ndarray]:
    """The arrays that docs/data_formats.md describes, without a rate."""
    pictures = [encoded(image, kind) for image in rec.images]
    return {
        "action": rec.actions,
        "state": rec.states,
        "instruction": np.array(rec.tasks[0]),
        "image_primary_jpeg": np.frombuffer(b"".join(pictures), np.uint8),
        "image_primary_offsets": np.cumsum([0, *map(len, pictures)]),
    }


# TFRecord


def varint(value: int) -> bytes:
    """Protobuf's variable-length integer."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def delimited(number: int, data: bytes) -> bytes:
    """A protobuf field that holds bytes."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(features: Mapping[str, Sequence[bytes] | np.ndarray]) -> bytes:
    """A serialised tf.train.Example."""
    entries = b""
    for name, values in features.items():
        if not isinstance(values, np.ndarray):
            stored = delimited(1, b"".join(delimited(1, v) for v in values))
        elif values.dtype.kind == "f":
            stored = delimited(2, delimited(1, values.astype("<f4").tobytes()))
        else:
            stored = delimited(3, delimited(1, b"".join(varint(int(v)) for v in values.ravel())))
        entries += delimited(1, delimited(1, name.encode()) + delimited(2, stored))
    return delimited(1, entries)


def masked_crc(data: bytes) -> int:
    """The checksum of a TFRecord, bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register = _CRC_TABLE[(register ^ byte) & 0xFF] ^ (register >> 8)
    crc = register ^ 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def framed(data: bytes) -> bytes:
    """One record of a TFRecord file."""
    length = struct.pack("<Q", len(data))
    checksum = struct.pack("<I", masked_crc(length))
    return length + checksum + data + struct.pack("<I", masked_crc(data))


def rlds_features(rec: Recording, kind: str = "JPEG") -> dict[str, Sequence[bytes] | np.ndarray]:
    """The features of one episode as TFDS flattens them."""
    return {
        "steps/action": rec.actions,
        "steps/language_instruction": [task.encode() for task in rec.tasks],
        "steps/observation/state": rec.states,
        "steps/observation/image_primary": [encoded(i, kind) for i in rec.images],
        "steps/is_last": np.arange(len(rec)) == len(rec) - 1,
    }


def write_rlds(folder: Path, recs: Sequence[Recording], name: str = "my_robot") -> Path:
    """A TFDS folder with one split; returns its TFRecord file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-train.tfrecord-00000-of-00001"
    path.write_bytes(b"".join(framed(example(rlds_features(rec))) for rec in recs))
    (folder / "features.json").write_text(json.dumps(features_json()))
    write_dataset_info(folder, name, [len(recs)])
    return path


def write_dataset_info(folder: Path, name: str, lengths: list[int]) -> None:
    """TFDS's dataset_info.json."""
    split = {"name": "train", "shardLengths": [str(n) for n in lengths]}
    (folder / "dataset_info.json").write_text(json.dumps({"name": name, "splits": [split]}))


def features_json() -> dict[str, object]:
    """TFDS's features.json of what `rlds_features` holds."""

    def group(features: dict[str, object]) -> dict[str, object]:
        return {"pythonClassName": "FeaturesDict", "featuresDict": {"features": features}}

    def tensor(*shape: int, dtype: str = "float32") -> dict[str, object]:
        dimensions = {"dimensions": [str(n) for n in shape]} if shape else {}
        return {
            "pythonClassName": "Tensor",
            "tensor": {"shape": dimensions, "dtype": dtype, "encoding": "none"},
        }

    image = {
        "pythonClassName": "Image",
        "image": {"shape": {"dimensions": [*map(str, SIZE), "3"]}, "dtype": "uint8"},
    }
    steps = {
        "action": tensor(7),
        "language_instruction": {"pythonClassName": "Text", "text": {}},
        "observation": group({"state": tensor(7), "image_primary": image}),
        "is_last": tensor(dtype="bool"),
    }
    return group({"steps": {"pythonClassName": "Dataset", "sequence": {"feature": group(steps)}}})


# LeRobot


def write_lerobot(folder: Path, recs: Sequence[Recording], version: str = "v2.1") -> Path:
    """A LeRobot folder: `primary` as a video, `wrist` as PNG columns. v3.0 shares one file each."""
    tasks = sorted({task for rec in recs for task in rec.tasks})
    (folder / "meta").mkdir(parents=True)
    is_v3 = version == "v3.0"
    where = "chunk-{chunk_index:03d}/file-{file_index:03d}" if is_v3 else None
    old = "chunk-{episode_chunk:03d}"
    info = {
        "codebase_version": version,
        "total_episodes": len(recs),
        "chunks_size": 1000,
        "fps": RATE_HZ,
        "data_path": f"data/{where or old + '/episode_{episode_index:06d}'}.parquet",
        "video_path": f"videos/{{video_key}}/{where}.mp4"
        if is_v3
        else f"videos/{old}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
        "features": lerobot_features(),
    }
    (folder / "meta/info.json").write_text(json.dumps(info))
    if is_v3:
        _write_v3(folder, recs, tasks)
    else:
        _write_v2(folder, recs, tasks)
    return folder


def lerobot_features() -> dict[str, dict[str, object]]:
    """The features of info.json."""
    picture = {"shape": [*SIZE, 3], "names": ["height", "width", "channels"]}
    scalar = {"dtype": "int64", "shape": [1], "names": None}
    return {
        CAMERA: {"dtype": "video", **picture},
        WRIST: {"dtype": "image", **picture},
        "observation.state": {"dtype": "float32", "shape": [7], "names": POSE},
        "action": {"dtype": "float32", "shape": [7], "names": POSE},
        "timestamp": {**scalar, "dtype": "float32"},
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), scalar),
    }


def _write_v2(folder: Path, recs: Sequence[Recording], tasks: list[str]) -> None:
    write_lines(
        folder / "meta/tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(tasks)]
    )
    rows = [
        {"episode_index": e, "tasks": sorted(set(rec.tasks)), "length": len(rec)}
        for e, rec in enumerate(recs)
    ]
    write_lines(folder / "meta/episodes.jsonl", rows)
    for e, rec in enumerate(recs):
        name = f"episode_{e:06d}"
        write_table(folder / f"data/chunk-000/{name}.parquet", [lerobot_rows(rec, e, tasks)])
        write_video(folder / f"videos/chunk-000/{CAMERA}/{name}.mp4", rec.images)


def _write_v3(folder: Path, recs: Sequence[Recording], tasks: list[str]) -> None:
    write_table(
        folder / "meta/tasks.parquet",
        [{"task_index": list(range(len(tasks))), "__index_level_0__": tasks}],
    )
    starts = np.cumsum([0, *map(len, recs)])
    rows = {
        "episode_index": list(range(len(recs))),
        "length": [len(rec) for rec in recs],
        "data/chunk_index": [0] * len(recs),
        "data/file_index": [0] * len(recs),
        f"videos/{CAMERA}/chunk_index": [0] * len(recs),
        f"videos/{CAMERA}/file_index": [0] * len(recs),
        f"videos/{CAMERA}/from_timestamp": [float(n) / RATE_HZ for n in starts[:-1]],
    }
    write_table(folder / "meta/episodes/chunk-000/file-000.parquet", [rows])
    groups = [lerobot_rows(rec, e, tasks) for e, rec in enumerate(recs)]
    write_table(folder / "data/chunk-000/file-000.parquet", groups)
    images = np.concatenate([rec.images for rec in recs])
    write_video(folder / f"videos/{CAMERA}/chunk-000/file-000.mp4", images)


def lerobot_rows(rec: Recording, episode: int, tasks: list[str]) -> dict[str, list[object]]:
    """The columns of one episode."""
    return {
        WRIST: [
            {"bytes": encoded(image[:, ::-1], "PNG"), "path": f"frame-{t:06d}.png"}
            for t, image in enumerate(rec.images)
        ],
        "observation.state": [list(map(float, row)) for row in rec.states],
        "action": [list(map(float, row)) for row in rec.actions],
        "timestamp": [t / RATE_HZ for t in range(len(rec))],
        "frame_index": list(range(len(rec))),
        "episode_index": [episode] * len(rec),
        "task_index": [tasks.index(task) for task in rec.tasks],
    }


def write_table(path: Path, groups: Sequence[dict[str, list[object]]]) -> None:
    """A Parquet file with one row group for each of `groups`; vectors as float32."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    tables = []
    for columns in groups:
        arrays = {}
        for name, values in columns.items():
            is_vector = values and isinstance(values[0], list)
            arrays[name] = pa.array(values, pa.list_(pa.float32(), 7) if is_vector else None)
        tables.append(pa.table(arrays))
    with pq.ParquetWriter(path, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)


def write_video(path: Path, images: np.ndarray, rate_hz: int = RATE_HZ, gop: int = 2) -> None:
    """H.264, a key frame every second frame, as LeRobot's default has it."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate_hz))
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.options = {"crf": "4", "g": str(gop), "threads": "1"}
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_lines(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """JSON, one object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
