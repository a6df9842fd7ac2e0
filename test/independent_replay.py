"""The figures of a replay computed a second time, from the files themselves.

Imports nothing of `evaluation` or `data`: NumPy, Pillow and the file formats' own libraries. Only
the policy is the same, because it is what is judged. Written from docs/replay_metrics.md.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Demonstration:
    """What the files say: T images as (H, W, 3) uint8 RGB, (T, 7) actions, one text."""

    images: list[np.ndarray]
    actions: np.ndarray
    instruction: str


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def from_npz(folder: Path) -> list[Demonstration]:
    found = []
    for path in sorted(folder.glob("episode_*.npz")):
        with np.load(path, allow_pickle=False) as stored:
            data, offsets = stored["image_0_jpeg"].tobytes(), stored["image_0_offsets"]
            images = [picture(data[a:b]) for a, b in itertools.pairwise(offsets)]
            actions = stored["action"].astype(np.float64)
            found.append(Demonstration(images, actions, str(stored["instruction"])))
    return found


def from_bag(path: Path, image: str, action: str, instruction: str) -> list[Demonstration]:
    """Every instruction message begins an episode, as in the sample bags."""
    from rosbags.rosbag2 import Reader
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    with Reader(path) as reader:
        rows = [
            (stamp, c.topic, store.deserialize_cdr(raw, c.msgtype))
            for c, stamp, raw in reader.messages()
            if c.topic in (image, action, instruction)
        ]
    starts = [(stamp, m.data) for stamp, topic, m in rows if topic == instruction]
    actions = [(stamp, np.array(m.data)) for stamp, topic, m in rows if topic == action]
    found: list[Demonstration] = []
    for number, (begin, text) in enumerate(starts):
        end = starts[number + 1][0] if number + 1 < len(starts) else math.inf
        images, numbers = [], []
        for stamp, topic, message in rows:
            if topic == image and begin <= stamp < end:
                images.append(picture(message.data.tobytes()))
                numbers.append(max((a for a in actions if a[0] <= stamp), key=lambda a: a[0])[1])
        if images:
            found.append(Demonstration(images, np.array(numbers), text))
    return found


def from_lerobot(folder: Path, camera: str) -> list[Demonstration]:
    """A v2.1 folder whose camera is a column of PNG bytes."""
    import pyarrow.parquet as parquet

    lines = (folder / "meta" / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
    tasks = {row["task_index"]: row["task"] for row in map(json.loads, lines)}
    found = []
    for path in sorted((folder / "data").glob("*/*.parquet")):
        table = parquet.read_table(path).to_pydict()
        images = [picture(cell["bytes"]) for cell in table[camera]]
        actions = np.array(table["action"], np.float64)
        found.append(Demonstration(images, actions, tasks[table["task_index"][0]]))
    return found


def matrix(rpy: np.ndarray) -> np.ndarray:
    """Rz(yaw) Ry(pitch) Rx(roll), as three products."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(rpy), np.sin(rpy)
    x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return z @ y @ x


def angle_deg(a: np.ndarray, b: np.ndarray) -> float:
    """Angle of the rotation between two Euler triples, by the Frobenius distance of matrices."""
    distance = float(np.linalg.norm(matrix(a) - matrix(b)))
    return math.degrees(2 * math.asin(min(1.0, distance / (2 * math.sqrt(2)))))


def bin_of(actions: np.ndarray, q01: np.ndarray, q99: np.ndarray) -> np.ndarray:
    """(T, 7) token ids of actions: 256 bin edges on [-1, 1], counted down from 32000."""
    scaled = actions.copy()
    scaled[:, :6] = np.clip(2 * (actions[:, :6] - q01) / (q99 - q01 + 1e-8) - 1, -1, 1)
    edges = np.linspace(-1, 1, 256)
    return 32000 - np.digitize(np.clip(scaled, -1, 1), edges)


def errors_of(answers: np.ndarray, actions: np.ndarray) -> dict[str, float]:
    """Return mean errors of (N, 7) bridge answers: mm, degrees, cosine, gripper."""
    far_mm = 1000 * np.linalg.norm(answers[:, :3] - actions[:, :3], axis=1)
    turned = [angle_deg(a[3:6], b[3:6]) for a, b in zip(answers, actions, strict=True)]
    moves = np.linalg.norm(actions[:, :3], axis=1) >= 0.002  # 1 cm/s at 5 Hz
    cosines = [
        float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) if np.linalg.norm(a) else 0.0
        for a, b in zip(answers[moves, :3], actions[moves, :3], strict=True)
    ]
    closed, recorded = answers[:, 6] < 0.5, actions[:, 6] < 0.5
    both = int((closed & recorded).sum())
    return {
        "translation_error": float(far_mm.mean()),
        "rotation_error": float(np.mean(turned)),
        "direction_cosine": float(np.mean(cosines)),
        "gripper_accuracy": float((closed == recorded).mean()),
        "gripper_f1": 2 * both / max(1, int(closed.sum() + recorded.sum())),
    }


def judged(
    demonstrations: list[Demonstration],
    answer: Callable[[np.ndarray, str], tuple[np.ndarray, list[int]]],
    q01: np.ndarray,
    q99: np.ndarray,
) -> dict[str, dict[str, float] | None]:
    """Return the figures of the policy and of every baseline; None where there is no step before.

    Args:
        demonstrations: All of a source.
        answer: Image and instruction to (7,) action and 7 ids.
        q01: (6,) quantiles of the statistics key.
        q99: (6,) likewise.
    """
    actions = np.concatenate([d.actions for d in demonstrations])
    pairs = [answer(image, d.instruction) for d in demonstrations for image in d.images]
    answers, ids = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    zeros = np.zeros_like(actions)
    zeros[:, 6] = float((actions[:, 6] >= 0.5).mean() >= 0.5)
    policy = errors_of(answers, actions)
    policy["tokens_equal"] = float((ids == bin_of(actions, q01, q99)).mean())
    before = np.concatenate([d.actions[:-1] for d in demonstrations])
    after = np.concatenate([d.actions[1:] for d in demonstrations])
    previous = None
    if len(after):
        previous = errors_of(before, after)
        same = bin_of(before, q01, q99) == bin_of(after, q01, q99)
        previous["tokens_equal"] = float(same.mean())
    return {
        "policy": policy,
        "zero": errors_of(zeros, actions),
        "mean_action": errors_of(np.tile(actions.mean(axis=0), (len(actions), 1)), actions),
        "previous_action": previous,
    }
