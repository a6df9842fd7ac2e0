"""What the meta/ folder of a LeRobot dataset says: features, tasks, and where each episode lies.

v2.1 keeps one data file and one video per episode; v3.0 packs many episodes into each file and
notes where they begin. v2.0 differs from v2.1 only in statistics, which are not read here.
Source: lerobot v0.3.3 and v0.4.4, datasets/utils.py (DEFAULT_*_PATH) and lerobot_dataset.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openvla_ros.data import parquet
from openvla_ros.errors import ConfigurationError

INFO = "meta/info.json"
_TASKS_V2, _EPISODES_V2 = "meta/tasks.jsonl", "meta/episodes.jsonl"
_TASKS_V3, _EPISODES_V3 = "meta/tasks.parquet", "meta/episodes"
VERSIONS = ("v2.0", "v2.1", "v3.0")
_PLACEHOLDER = re.compile(r"\{(\w+)(?::0(\d)d)?\}")
_MALFORMED = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


@dataclass(frozen=True)
class DatasetInfo:
    """The parts of info.json that reading needs.

    Attributes:
        folder: The dataset.
        version: One of `VERSIONS`.
        rate_hz: Steps per second.
        features: Feature name to its description.
        episodes: How many there are.
        chunk_size: Episodes per chunk folder.
        data_path: Template of a data file's path.
        video_path: Template of a video's path, or "".
    """

    folder: Path
    version: str
    rate_hz: float
    features: Mapping[str, Mapping[str, Any]]
    episodes: int
    chunk_size: int
    data_path: str
    video_path: str

    def path(self, template: str, values: Mapping[str, int | str]) -> Path:
        """Return the file that a template of info.json means.

        Raises:
            ConfigurationError: The template has an unknown field, or leads out of the folder.
        """
        path = _PLACEHOLDER.sub(lambda field: _filled(field, values), template)
        parts = Path(path).parts
        if not path or "{" in path or "\0" in path or Path(path).is_absolute() or ".." in parts:
            raise ConfigurationError(
                f"{self.folder / INFO}: the path {template!r} cannot be filled in with "
                f"{', '.join(values)}, or leads out of the dataset."
            )
        return self.folder / path


@dataclass(frozen=True)
class EpisodeEntry:
    """Where one episode lies.

    Attributes:
        index: Its number.
        steps: Its length.
        data_file: Parquet file that holds its rows, maybe with those of others.
        video_file: Video of the chosen camera, or None when it is a column of pictures.
        video_start_s: Time of its first frame in the video.
    """

    index: int
    steps: int
    data_file: Path
    video_file: Path | None
    video_start_s: float


def read_info(folder: Path) -> DatasetInfo:
    """Return what info.json says.

    Raises:
        ConfigurationError: Absent, malformed, or a version that is not known.
    """
    path = folder / INFO
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        version = str(stored["codebase_version"])
        if version not in VERSIONS:
            raise ConfigurationError(
                f"{path}: version {version!r} of the LeRobot format is not known; "
                f"{', '.join(VERSIONS)} are. Convert the dataset with LeRobot."
            )
        info = DatasetInfo(
            folder=folder,
            version=version,
            rate_hz=float(stored["fps"]),
            features={str(k): dict(v) for k, v in stored["features"].items()},
            episodes=int(stored["total_episodes"]),
            chunk_size=int(stored["chunks_size"]),
            data_path=str(stored["data_path"]),
            video_path=str(stored.get("video_path") or ""),
        )
    except (*_MALFORMED, OverflowError) as error:
        raise ConfigurationError(
            f"{path} is not the info.json of a LeRobot dataset ({type(error).__name__}: {error})."
        ) from error
    if not (math.isfinite(info.rate_hz) and info.rate_hz > 0 and info.chunk_size > 0):
        raise ConfigurationError(f"{path}: fps and chunks_size must be greater than 0.")
    return info


def read_tasks(info: DatasetInfo) -> dict[int, str]:
    """Return task index to instruction.

    Raises:
        ConfigurationError: The table of tasks is absent or malformed.
    """
    if info.version != "v3.0":
        rows = _json_lines(info.folder / _TASKS_V2)
        return {_integer(row, "task_index", line): _text(row, "task", line) for line, row in rows}
    path = info.folder / _TASKS_V3
    # The text is the index of the data frame that was written, with or without a name.
    texts = [name for name in parquet.column_names(path) if name != "task_index"]
    if len(texts) != 1:
        raise ConfigurationError(f"{path} must have `task_index` and one column of texts: {texts}.")
    columns = parquet.read_columns(path, ["task_index", texts[0]])
    indices = parquet.to_numbers(path, "task_index", columns["task_index"]).tolist()
    return {int(i): str(t) for i, t in zip(indices, columns[texts[0]].to_pylist(), strict=True)}


def read_entries(info: DatasetInfo, video_key: str | None) -> list[EpisodeEntry]:
    """Return where each episode lies, in order.

    Args:
        info: The dataset.
        video_key: The camera's feature when it is a video.

    Raises:
        ConfigurationError: The table of episodes is absent, malformed or incomplete.
    """
    read = _entries_v3 if info.version == "v3.0" else _entries_v2
    entries = sorted(read(info, video_key), key=lambda entry: entry.index)
    indices = [entry.index for entry in entries]
    if len(set(indices)) != len(indices) or len(indices) != info.episodes:
        raise ConfigurationError(
            f"{info.folder} lists {len(set(indices))} episodes, and {INFO} says that there are "
            f"{info.episodes}. Fetch the dataset completely."
        )
    for entry in entries:
        if entry.steps < 1 or entry.index < 0 or not math.isfinite(entry.video_start_s):
            raise ConfigurationError(f"{info.folder}: episode {entry.index} is listed as {entry}.")
    return entries


def _entries_v2(info: DatasetInfo, video_key: str | None) -> Iterator[EpisodeEntry]:
    for line, row in _json_lines(info.folder / _EPISODES_V2):
        index = _integer(row, "episode_index", line)
        values: dict[str, int | str] = {
            "episode_index": index,
            "episode_chunk": index // info.chunk_size,
        }
        video = None
        if video_key is not None:
            video = info.path(info.video_path, {**values, "video_key": video_key})
        data = info.path(info.data_path, values)
        yield EpisodeEntry(index, _integer(row, "length", line), data, video, 0.0)


def _entries_v3(info: DatasetInfo, video_key: str | None) -> Iterator[EpisodeEntry]:
    names = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    prefix = f"videos/{video_key}/"
    if video_key is not None:
        names += [f"{prefix}{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    files = sorted((info.folder / _EPISODES_V3).glob("chunk-*/file-*.parquet"))
    if not files:
        raise ConfigurationError(f"{info.folder / _EPISODES_V3} holds no chunk-*/file-*.parquet.")
    for path in files:
        columns = parquet.read_columns(path, names)
        numbers = {name: parquet.to_numbers(path, name, columns[name]).tolist() for name in names}
        for row in range(len(numbers["episode_index"])):
            data, video, start_s = _place_v3(numbers, row, "data/"), None, 0.0
            if video_key is not None:
                place = {**_place_v3(numbers, row, prefix), "video_key": video_key}
                video = info.path(info.video_path, place)
                start_s = float(numbers[f"{prefix}from_timestamp"][row])
            yield EpisodeEntry(
                int(numbers["episode_index"][row]),
                int(numbers["length"][row]),
                info.path(info.data_path, data),
                video,
                start_s,
            )


def _place_v3(numbers: Mapping[str, list[Any]], row: int, prefix: str) -> dict[str, int | str]:
    return {name: int(numbers[prefix + name][row]) for name in ("chunk_index", "file_index")}


def _filled(field: re.Match[str], values: Mapping[str, int | str]) -> str:
    value = values.get(field[1], field[0])
    return f"{value:0{field[2]}d}" if field[2] and isinstance(value, int) else str(value)


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's place and object."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [(f"{path}:{n}", dict(json.loads(line))) for n, line in enumerate(lines, 1) if line]
    except _MALFORMED as error:
        raise ConfigurationError(
            f"{path} is not readable JSON, one object per line ({type(error).__name__}: {error})."
        ) from error
    yield from rows


def _integer(row: Mapping[str, Any], name: str, line: str) -> int:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{line}: {name} is {value!r}; it must be an integer.")
    return value


def _text(row: Mapping[str, Any], name: str, line: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise ConfigurationError(f"{line}: {name} is {value!r}; it must be a text.")
    return value
