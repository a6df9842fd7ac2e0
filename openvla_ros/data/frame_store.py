"""The pictures of episodes as the model's image path leaves them, any one at any time.

Recordings are read from their beginning, and videos decoded whole; training asks for single frames
in any order. Each episode is therefore read once, and its pictures, decoded and resized, are kept
in an uncompressed file that is mapped into memory. What is random (augmentation) comes later.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np

from openvla_ros.data.atomic_files import require_space, write_whole_file
from openvla_ros.data.episode import Episode
from openvla_ros.model.image_options import MODEL_IMAGE_SIZE, ImageOptions

_FORMAT = 1  # of the files and of what makes their pixels; another one makes them anew
_OPEN_FILES = 512  # mapped at the same time


class FrameStore:
    """Prepared pictures of the episodes of one source.

    Several processes may use one folder.

    Args:
        folder: Where the files are; made when it is not there.
        identity: What the pictures are made from: source, camera and whatever else chooses them.
        options: Steps of the image path that are the same each time, so no centre crop.
    """

    def __init__(self, folder: Path, identity: str, options: ImageOptions) -> None:
        assert not options.center_crop, options
        self.folder = folder
        self.identity = identity
        self.options = options
        self._open: dict[Path, np.memmap] = {}

    def __getstate__(self) -> dict[str, object]:
        """What is mapped stays in this process."""
        return self.__dict__ | {"_open": {}}

    def frames(self, episode: Episode) -> np.memmap:
        """Return (T, H, W, 3) uint8 RGB, read-only; they are prepared if they are not there.

        Raises:
            StorageError: The disk has no room for them, or cannot be written.
        """
        path = self._path(episode)
        frames = self._open.get(path)
        if frames is None:
            frames = _map(path, len(episode))
            if frames is None:
                self._write(path, episode)
                frames = _map(path, len(episode))
            assert frames is not None, path
            if len(self._open) >= _OPEN_FILES:
                del self._open[next(iter(self._open))]
            self._open[path] = frames
        return frames

    def has(self, episode: Episode) -> bool:
        """Return whether the pictures of an episode are there."""
        return _map(self._path(episode), len(episode)) is not None

    def required_bytes(self, episode: Episode) -> int:
        """Return the bytes of its file; the first picture is read if its size is not known."""
        shape: tuple[int, ...] = (MODEL_IMAGE_SIZE, MODEL_IMAGE_SIZE, 3)
        if not self.options.lanczos3:
            shape = self.options.apply(next(iter(episode.open_images()))).shape
        return len(_header(len(episode), shape)) + len(episode) * math.prod(shape)

    def _path(self, episode: Episode) -> Path:
        """A name that changes with all that decides the pixels; stamps say which steps are kept."""
        stamps = np.ascontiguousarray(episode.stamps_ns, np.int64)
        digest = hashlib.sha256(repr((_FORMAT, self.identity, self.options)).encode())
        digest.update(repr((episode.name, len(stamps))).encode() + stamps.tobytes())
        return self.folder / f"{digest.hexdigest()}.npy"

    def _write(self, path: Path, episode: Episode) -> None:
        what = f"{episode.name} of {episode.source}, prepared for training,"
        require_space(self.folder, self.required_bytes(episode), what)
        write_whole_file(path, self._parts(episode))

    def _parts(self, episode: Episode) -> Iterator[bytes | memoryview]:
        shape: tuple[int, ...] | None = None
        count = 0
        for image in episode.open_images():
            frame = np.ascontiguousarray(self.options.apply(image))
            if shape is None:
                shape = frame.shape
                yield _header(len(episode), shape)
            assert frame.shape == shape, (episode.name, frame.shape, shape)
            yield frame.data
            count += 1
        assert count == len(episode), (episode.name, count, len(episode))


def _header(steps: int, shape: tuple[int, ...]) -> bytes:
    """The head of a .npy file of (steps, *shape) uint8."""
    head = BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (steps, *shape)}
    np.lib.format.write_array_header_1_0(head, described)
    return head.getvalue()


def _map(path: Path, steps: int) -> np.memmap | None:
    """Return the frames of a file; None when it is absent, cut short or no such file."""
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError):
        return None
    fits = isinstance(frames, np.memmap) and frames.dtype == np.uint8 and frames.ndim == 4
    if not fits or len(frames) != steps or frames.shape[-1] != 3:
        return None
    whole = len(_header(steps, frames.shape[1:])) + math.prod(frames.shape)
    return frames if path.stat().st_size == whole else None
