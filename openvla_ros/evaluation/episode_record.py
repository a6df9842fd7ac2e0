"""What a policy answered to every step of one episode: the row from which all figures are made.

A record is one file, written whole or not at all: an evaluation that was interrupted goes on after
the last record, and two engines that write the same records give the same figures.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from openvla_ros.errors import ConfigurationError


@dataclass(frozen=True)
class EpisodeRecord:
    """The answers to one episode of T steps; n numbers per action.

    Attributes:
        episode: Name of the episode.
        source: What it was read from.
        instruction: The task as it was recorded.
        rate_hz: Steps per second.
        stamps_ns: (T,) int64: when each image was taken.
        recorded: (T, n) float64, dataset units; NaN where nothing was recorded.
        predicted: (T, n) float64, dataset units.
        normalized: (T, n) float64 in [-1, 1]: `predicted` before un-normalisation.
        token_ids: (T, n) int64: the generated ids.
        is_valid: (T,) bool: every id of the step is an action token.
        latency_ms: (T,) float64: `total_ms` of each answer.
        passes: (T,) int64: forward passes of the language model.
        worst_steps: (k,) int64: the steps that are furthest off, worst first.
        worst_frames: (k,) JPEG of those steps' images as uint8 arrays.
    """

    episode: str
    source: str
    instruction: str
    rate_hz: float
    stamps_ns: np.ndarray
    recorded: np.ndarray
    predicted: np.ndarray
    normalized: np.ndarray
    token_ids: np.ndarray
    is_valid: np.ndarray
    latency_ms: np.ndarray
    passes: np.ndarray
    worst_steps: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    worst_frames: tuple[np.ndarray, ...] = ()

    def __len__(self) -> int:
        return len(self.stamps_ns)


_TEXTS = ("episode", "source", "instruction")
_FRAME = "worst_frame_{:02d}"


def write_record(path: Path, record: EpisodeRecord) -> None:
    """Write a record to `path`, whole or not at all.

    Raises:
        OSError: The disk is full, or the folder is not writable; `path` is as it was.
    """
    arrays: dict[str, Any] = {
        f.name: np.asarray(getattr(record, f.name))
        for f in fields(record)
        if f.name != "worst_frames"
    }
    arrays |= {_FRAME.format(i): frame for i, frame in enumerate(record.worst_frames)}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # a temporary file is its owner's alone
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_record(path: Path) -> EpisodeRecord:
    """Return a record that `write_record` has written.

    Raises:
        ConfigurationError: The file is absent, damaged, or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            values: dict[str, Any] = {
                f.name: stored[f.name]
                for f in fields(EpisodeRecord)
                if f.name not in ("worst_frames", "rate_hz", *_TEXTS)
            }
            values |= {name: str(stored[name]) for name in _TEXTS}
            values["rate_hz"] = float(stored["rate_hz"])
            frames = range(len(values["worst_steps"]))
            values["worst_frames"] = tuple(stored[_FRAME.format(i)] for i in frames)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise ConfigurationError(
            f"{path} is not a record of a replayed episode ({type(error).__name__}: {error}). "
            "Remove it, and its episode is evaluated again."
        ) from error
    return EpisodeRecord(**values)
