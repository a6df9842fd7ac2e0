"""Episodes as plain .npz files: a form in which anybody can hand over recordings with NumPy alone.

docs/data_formats.md describes the arrays, and shows how to write them.
"""

from __future__ import annotations

import json
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from openvla_ros.data.cameras import choose_camera, decode_picture, of_one_size
from openvla_ros.data.episode import Episode
from openvla_ros.data.steps import (
    even_stamps,
    require_finite,
    require_instruction,
    require_rate,
)
from openvla_ros.errors import ConfigurationError

PATTERN, INDEX = "episode_*.npz", "index.json"
_ARRAYS = ("action", "state", "instruction", "rate_hz", "unnorm_key", "stamps_ns")
_PICTURES, _OFFSETS = "_jpeg", "_offsets"
# What the zip and NumPy readers raise on a damaged file.
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    SyntaxError,
    TokenError,
    OverflowError,
    MemoryError,
    RecursionError,
    RuntimeError,
    BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
)


def npz_episodes(
    folder_or_file: Path,
    camera: str = "",
    *,
    rate_hz: float | None = None,
    keep_unlabelled: bool = False,
) -> list[Episode]:
    """Return the episode of one .npz file, or of each `episode_*.npz` in a folder.

    Args:
        folder_or_file: One file, or a folder.
        camera: Name of the pictures, such as "image_0"; "" = the only ones, or "primary".
        rate_hz: Steps per second, where neither the file nor the folder's index.json has a
            `rate_hz`. None = the published rate of the `unnorm_key` in one of them.
        keep_unlabelled: Return episodes whose instruction is empty too, instead of refusing them.

    Raises:
        ConfigurationError: Not such a file, damaged, arrays that do not fit each other, an unknown
            camera, an unknown rate, an empty instruction, or an action that is not finite.
    """
    is_file = folder_or_file.is_file()
    paths = [folder_or_file] if is_file else sorted(folder_or_file.glob(PATTERN))
    if not paths:
        raise ConfigurationError(f"{folder_or_file} holds no {PATTERN}.")
    index = _read_index(paths[0].parent / INDEX)
    return [
        _read_episode(path, str(folder_or_file), camera, rate_hz, index, keep_unlabelled)
        for path in paths
    ]


def _read_episode(
    path: Path,
    source: str,
    camera: str,
    rate_hz: float | None,
    index: dict[str, Any],
    keep_unlabelled: bool,
) -> Episode:
    where = str(path)
    arrays, cameras = _read_small_arrays(path)
    actions = _rows(arrays, "action", None, where)
    states = _rows(arrays, "state", len(actions), where) if "state" in arrays else None
    instruction = str(_scalar(arrays, "instruction", "U", where))
    if not keep_unlabelled:
        require_instruction(instruction, where)
    key = choose_camera(cameras, camera, where)
    offsets = _checked_offsets(path, key, arrays[key + _OFFSETS], len(actions))
    if "rate_hz" in {**index, **arrays}:
        rate_hz = _stored_rate({**index, **arrays}, rate_hz, where)
    dataset = {**index, **arrays}.get("unnorm_key", "")
    rate_hz = require_rate(rate_hz, str(dataset), where)
    stamps_ns = even_stamps(range(len(actions)), rate_hz)
    if "stamps_ns" in arrays:
        stamps_ns = _checked_stamps(arrays["stamps_ns"], len(actions), where)
    return Episode(
        name=path.stem,
        source=source,
        instruction=instruction,
        rate_hz=rate_hz,
        stamps_ns=stamps_ns,
        actions=actions,
        open_images=_Images(path, key, offsets),
        states=states,
    )


@dataclass(frozen=True)
class _Images:
    """The pictures of one camera in one file; called, it reads anew."""

    path: Path
    key: str
    offsets: np.ndarray

    def __call__(self) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 RGB, one at a time."""
        decoded = (decode_picture(data) for data in self._stored())
        return of_one_size(decoded, None, f"{self.path}, {self.key}")

    def _stored(self) -> Iterator[bytes]:
        """The file of each picture, read one after another."""
        try:
            with ZipFile(self.path) as archive, archive.open(_member(self.key)) as member:
                _read_header(member)
                member.read(int(self.offsets[0]))
                for size in np.diff(self.offsets):
                    yield member.read(int(size))
                member.read()  # the archive's checksum is looked at after the last byte
        except _DAMAGE as error:
            raise _damaged(self.path, error) from error


def _read_small_arrays(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the format knows but the pictures, by name; and the names of the cameras."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError("one array, not an archive of arrays")
            names = stored.files
            cameras = tuple(
                name.removesuffix(_PICTURES)
                for name in names
                if name.endswith(_PICTURES) and name.removesuffix(_PICTURES) + _OFFSETS in names
            )
            arrays = {name: stored[name] for name in names if name.endswith(_OFFSETS)}
            arrays |= {name: stored[name] for name in _ARRAYS if name in names}
            # What does not begin like an array comes back as bytes.
            strange = [name for name, array in arrays.items() if isinstance(array, bytes)]
            if strange:
                raise ValueError(f"{strange[0]} is no array")
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    return arrays, cameras


def _checked_offsets(path: Path, key: str, offsets: np.ndarray, steps: int) -> np.ndarray:
    """(T + 1,) int64: where each picture begins, and where the last one ends."""
    try:
        with ZipFile(path) as archive, archive.open(_member(key)) as member:
            shape, dtype = _read_header(member)
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    fits = offsets.shape == (steps + 1,) and offsets.dtype.kind in "iu"
    if fits:
        offsets = offsets.astype(np.int64)
        fits = offsets[0] >= 0 and bool((np.diff(offsets) > 0).all())
    if not fits or dtype != np.uint8 or shape != (offsets[-1],):
        raise ConfigurationError(
            f"{path}: {key}{_PICTURES} must be one row of uint8, and {key}{_OFFSETS} {steps + 1} "
            f"increasing integers that end with its length, for {steps} actions; they are "
            f"{dtype} {shape} and {offsets.dtype} {offsets.shape}."
        )
    return offsets


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array in an archive, whose data is next to be read."""
    version = np.lib.format.read_magic(member)
    if version != (1, 0):
        raise ValueError(f"version {version} of the .npy format")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
    if is_fortran and len(shape) > 1:
        raise ValueError("an array in Fortran order")
    return shape, dtype


def _member(key: str) -> str:
    return f"{key}{_PICTURES}.npy"


def _rows(arrays: dict[str, Any], name: str, steps: int | None, where: str) -> np.ndarray:
    """(T, n) float64."""
    array = arrays.get(name)
    if array is None or array.ndim != 2 or array.dtype.kind not in "fiu" or 0 in array.shape:
        have = "is missing" if array is None else f"is {array.dtype} {array.shape}"
        raise ConfigurationError(f"{where}: `{name}` {have}; it must be (steps, n) floats.")
    if steps is not None and len(array) != steps:
        raise ConfigurationError(f"{where}: {len(array)} rows of `{name}` for {steps} actions.")
    return require_finite(array, name, where)


def _scalar(arrays: dict[str, Any], name: str, kinds: str, where: str) -> Any:
    array = np.asarray(arrays.get(name))
    if name not in arrays or array.shape != () or array.dtype.kind not in kinds:
        have = f"is {array.dtype} {array.shape}" if name in arrays else "is missing"
        wanted = "text" if kinds == "U" else "number"
        raise ConfigurationError(f"{where}: `{name}` {have}; it must be one {wanted}.")
    return array[()]


def _stored_rate(stored: dict[str, Any], given: float | None, where: str) -> float:
    """The rate that is stored; steps are not resampled, so another one would be a wrong clock."""
    rate_hz = float(_scalar(stored, "rate_hz", "fiu", where))
    if given is not None and given != rate_hz:
        raise ConfigurationError(
            f"{where} was recorded at {rate_hz:g} Hz (its `rate_hz`, or that of {INDEX}), and "
            f"rate_hz is {given:g}. Leave rate_hz out."
        )
    return rate_hz


def _checked_stamps(stamps: np.ndarray, steps: int, where: str) -> np.ndarray:
    is_good = stamps.shape == (steps,) and stamps.dtype.kind in "iu"
    if not is_good or stamps[0] <= 0 or (np.diff(stamps.astype(np.int64)) <= 0).any():
        raise ConfigurationError(
            f"{where}: `stamps_ns` must be {steps} increasing integers above 0, in nanoseconds."
        )
    return stamps.astype(np.int64)


def _read_index(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not readable JSON ({error}).") from error
    return content if isinstance(content, dict) else {}


def _damaged(path: Path, error: BaseException) -> ConfigurationError:
    return ConfigurationError(
        f"{path} is not a readable .npz file ({type(error).__name__}: {error}). Write it again."
    )
