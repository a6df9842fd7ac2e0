"""LeRobot datasets (v2.1 and v3.0 folders) as episodes, without LeRobot.

Numbers are read and checked when the dataset is opened, pictures when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros.data import parquet
from openvla_ros.data.cameras import choose_camera, decode_picture, of_one_size
from openvla_ros.data.episode import Episode
from openvla_ros.data.lerobot_meta import (
    INFO,
    DatasetInfo,
    EpisodeEntry,
    read_entries,
    read_info,
    read_tasks,
)
from openvla_ros.data.steps import equal_runs, even_stamps, require_finite, require_instruction
from openvla_ros.data.video import VideoPart
from openvla_ros.errors import ConfigurationError

ACTION, STATE = "action", "observation.state"
#: How a state that is a pose of the end effector names its first numbers.
POSE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw")


def lerobot_episodes(
    folder: Path, camera: str = "", *, pose_key: str = "", keep_unlabelled: bool = False
) -> list[Episode]:
    """Return the episodes of a LeRobot dataset; where the task changes, another episode begins.

    Args:
        folder: Dataset folder with meta/info.json.
        camera: Feature of the camera, or its last part; "" = the only one, or the "primary".
        pose_key: Feature that holds x y z [m] roll pitch yaw [rad] gripper of the end effector.
            "" = observation.state where its numbers have these names, else there are no states.
        keep_unlabelled: Return steps whose task is an empty text too, instead of refusing them.

    Raises:
        ConfigurationError: Not a LeRobot dataset, incomplete or damaged, an unknown camera, an
            unknown or empty task, or an action that is not finite.
        DependencyError: pyarrow or PyAV is not installed.
    """
    info = read_info(folder)
    cameras = [name for name, feature in info.features.items() if _is_camera(feature)]
    key = choose_camera(cameras, camera, str(folder))
    is_video = info.features[key]["dtype"] == "video"
    dataset = _Dataset(
        info=info,
        tasks=read_tasks(info),
        camera=key,
        size=_image_size(info, key),
        pose=_pose_feature(info, pose_key),
        keep_unlabelled=keep_unlabelled,
    )
    episodes: list[Episode] = []
    rows: _Rows | None = None
    for entry in read_entries(info, key if is_video else None):
        if rows is None or rows.path != entry.data_file:
            rows = dataset.read_rows(entry.data_file)
        episodes += dataset.episodes(entry, rows)
    return episodes


@dataclass(frozen=True)
class _Rows:
    """The numbers of one data file, one row per step, and the rows of each episode."""

    path: Path
    columns: Mapping[str, np.ndarray]
    places: Mapping[int, tuple[int, int]]


@dataclass(frozen=True)
class _Images:
    """The pictures of one episode; called, it reads anew."""

    stored: VideoPart | parquet.PictureRows
    size: tuple[int, int] | None
    where: str

    def __call__(self) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 RGB, one at a time."""
        if isinstance(self.stored, VideoPart):
            return of_one_size(self.stored(), self.size, self.where)
        decoded = (decode_picture(data) for data in self.stored())
        return of_one_size(decoded, self.size, self.where)


@dataclass(frozen=True)
class _Dataset:
    """How the rows of one dataset become episodes."""

    info: DatasetInfo
    tasks: Mapping[int, str]
    camera: str
    size: tuple[int, int] | None
    pose: str | None
    keep_unlabelled: bool

    def read_rows(self, path: Path) -> _Rows:
        """The numbers of one data file, and where its episodes are."""
        scalars = ("episode_index", "frame_index", "timestamp", "task_index")
        vectors = (ACTION, self.pose) if self.pose else (ACTION,)
        columns = parquet.read_columns(path, [*scalars, *vectors])
        found = {name: parquet.to_numbers(path, name, columns[name]) for name in scalars}
        for name in vectors:
            length = _vector_length(self.info, name)
            found[name] = parquet.to_vectors(path, name, columns[name], length)
        runs = equal_runs(found["episode_index"].tolist())
        places = {int(found["episode_index"][start]): (start, end) for start, end in runs}
        if len(places) != len(runs):
            raise ConfigurationError(f"{path}: the rows of an episode do not follow each other.")
        if self.info.features[self.camera]["dtype"] == "image":
            parquet.require_pictures(path, self.camera)
        return _Rows(path, found, places)

    def episodes(self, entry: EpisodeEntry, rows: _Rows) -> list[Episode]:
        """The episodes of one entry: one per run of the same task."""
        where = f"{rows.path}, episode {entry.index}"
        first, last = rows.places.get(entry.index, (0, 0))
        if last - first != entry.steps:
            raise ConfigurationError(
                f"{where} has {last - first} rows, and meta/ lists {entry.steps}. The dataset is "
                "incomplete; fetch it again."
            )
        part = {name: column[first:last] for name, column in rows.columns.items()}
        self._require_even(part, where)
        actions = require_finite(part[ACTION], ACTION, where)
        states = require_finite(part[self.pose], self.pose, where) if self.pose else None
        runs = equal_runs(part["task_index"].tolist())
        found = []
        for number, (start, end) in enumerate(runs):
            instruction = self._instruction(int(part["task_index"][start]), where)
            if not self.keep_unlabelled:
                require_instruction(instruction, where)
            name = f"episode_{entry.index:06d}"
            found.append(
                Episode(
                    name=name if len(runs) == 1 else f"{name}_part_{number:03d}",
                    source=str(self.info.folder),
                    instruction=instruction,
                    rate_hz=self.info.rate_hz,
                    stamps_ns=even_stamps(range(start, end), self.info.rate_hz),
                    actions=actions[start:end],
                    open_images=self._images(entry, first, start, end, where),
                    states=None if states is None else states[start:end],
                )
            )
        return found

    def _images(
        self, entry: EpisodeEntry, first: int, start: int, end: int, where: str
    ) -> Callable[[], Iterator[np.ndarray]]:
        where = f"{where}, {self.camera}"
        if entry.video_file is None:
            rows = parquet.PictureRows(entry.data_file, self.camera, first + start, first + end)
            return _Images(rows, self.size, where)
        rate_hz = self.info.rate_hz
        video = VideoPart(
            entry.video_file, entry.video_start_s + start / rate_hz, end - start, rate_hz
        )
        video.require_present()
        return _Images(video, self.size, where)

    def _instruction(self, index: int, where: str) -> str:
        if index not in self.tasks:
            raise ConfigurationError(
                f"{where}: its task is number {index}, which the table of tasks in meta/ does not "
                f"have; it has: {', '.join(str(i) for i in sorted(self.tasks)[:20])}."
            )
        return self.tasks[index]

    def _require_even(self, part: Mapping[str, np.ndarray], where: str) -> None:
        """Return when the steps are numbered from 0 and lie at the rate of the dataset."""
        expected = np.arange(len(part["frame_index"]))
        off = np.abs(part["timestamp"] * self.info.rate_hz - expected)
        if not np.array_equal(part["frame_index"], expected) or not (off < 0.25).all():
            bad = (part["frame_index"] != expected) | ~(off < 0.25)
            step = int(bad.argmax())
            raise ConfigurationError(
                f"{where}: step {step} has frame_index {part['frame_index'][step]} and timestamp "
                f"{part['timestamp'][step]:.4f} s; {step} and {step / self.info.rate_hz:.4f} s are "
                f"expected at {self.info.rate_hz:g} steps per second."
            )


def _is_camera(feature: Mapping[str, Any]) -> bool:
    """Whether a feature is a colour camera."""
    details = feature.get("info") or feature.get("video_info") or {}
    is_depth = isinstance(details, dict) and bool(details.get("video.is_depth_map"))
    return feature.get("dtype") in ("video", "image") and not is_depth


def _image_size(info: DatasetInfo, key: str) -> tuple[int, int] | None:
    """Height and width that info.json says, or None when it does not."""
    shape, names = info.features[key].get("shape"), info.features[key].get("names")
    if not isinstance(shape, list) or len(shape) != 3:
        return None
    if not isinstance(names, list) or not {"height", "width"} <= set(map(str, names)):
        names = ["height", "width", "channels"] if shape[2] == 3 else ["c", "height", "width"]
    try:
        return int(shape[names.index("height")]), int(shape[names.index("width")])
    except (IndexError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{info.folder / INFO}: {key} has the shape {shape} of {names}; height, width and "
            "channels are needed."
        ) from error


def _vector_length(info: DatasetInfo, key: str) -> int:
    feature = info.features.get(key, {})
    shape = feature.get("shape")
    length = shape[0] if isinstance(shape, list) and len(shape) == 1 else None
    is_float = feature.get("dtype") in ("float32", "float64")
    if not is_float or not isinstance(length, int) or length < 1:
        described = f"{feature.get('dtype')} {shape}" if feature else "absent"
        raise ConfigurationError(
            f"{info.folder / INFO}: the feature {key!r} is {described}; it must be one vector of "
            f"float32 per step. Features: {', '.join(info.features)}."
        )
    return length


def _pose_feature(info: DatasetInfo, key: str) -> str | None:
    if key:
        _vector_length(info, key)  # the user's own word: it must be there
        return key
    names = info.features.get(STATE, {}).get("names")
    if isinstance(names, dict):  # {"motors": [...]} in datasets of earlier tools
        names = next(iter(names.values()), None)
    is_pose = isinstance(names, list) and tuple(names[: len(POSE_NAMES)]) == POSE_NAMES
    return STATE if is_pose else None
