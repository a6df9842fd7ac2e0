"""Files that are there whole or not at all, whatever stops the writer."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from openvla_ros.errors import StorageError

#: Left free on the disk: a full one stops more than this program.
SPARE_BYTES = 2**26
_PARTIAL = ".partial"
_ABANDONED_S = 3600.0  # without a change: no file takes so long between two writes


def write_whole_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file, which gets its name when it is complete; its folder is made.

    Several processes may write the same file at once: one of them stays.

    Raises:
        StorageError: The disk is full, or the folder cannot be written; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=_PARTIAL, dir=path.parent
        )
    except OSError as error:
        raise StorageError(f"{path.parent} cannot be written: {error}.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).chmod(0o644)  # a temporary file is its owner's alone
        Path(partial).replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}.") from error
    finally:
        Path(partial).unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove what `write_whole_file` has left of files whose writer was killed."""
    for path in folder.glob(f".*{_PARTIAL}"):
        with suppress(OSError):  # finished or removed by another process meanwhile
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Return when the disk of a folder, which is made, has room for so many bytes.

    Raises:
        StorageError: It has not, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(f"{folder} cannot be used: {error}.") from error
    if free < needed_bytes + SPARE_BYTES:
        raise StorageError(
            f"{what} takes {needed_bytes:,} bytes and {folder} has {free:,} free, of which "
            f"{SPARE_BYTES:,} stay free. Make room, or name a folder on a larger disk."
        )
