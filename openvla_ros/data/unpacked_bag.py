"""Bags whose files are compressed as a whole (`--compression-mode file`), unpacked once.

A compressed file can only be read from its beginning, and an episode from the middle is wanted
again and again. One unpacked bag is kept, in the folder for temporary files, until the next one or
the end of the process.
"""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_FILE_MODE = re.compile(r"^\s*compression_mode:\s*['\"]?file\b", re.IGNORECASE | re.MULTILINE)
_SUFFIX = ".zstd"
_NAMED_FILE = re.compile(re.escape(_SUFFIX) + r"(['\"]?\s*)$", re.MULTILINE)
_MODE_VALUE = re.compile(r"^(\s*compression_mode:).*$", re.MULTILINE)

_Stamp = tuple[tuple[str, int, int], ...]
_lock = threading.Lock()
_kept: dict[tuple[Path, _Stamp], TemporaryDirectory] = {}


def unpacked(path: Path) -> TemporaryDirectory | None:
    """Return a folder with the same bag, its files not compressed as a whole; None = as it is.

    It is removed when nobody holds it any more.

    Raises:
        OSError, zstd.ZstdError, EOFError: The files are damaged, or the disk is full.
    """
    metadata = path / "metadata.yaml"
    if not metadata.is_file():
        return None
    text = metadata.read_text(encoding="utf-8", errors="replace")
    files = sorted(path.glob(f"*{_SUFFIX}"))
    if not (files and _FILE_MODE.search(text)):
        return None
    states = [(file, file.stat()) for file in (metadata, *files)]
    stamp = tuple((file.name, state.st_mtime_ns, state.st_size) for file, state in states)
    key = path.resolve(), stamp
    with _lock:
        if key not in _kept:
            _kept.clear()
            _kept[key] = _unpack(files, text)
        return _kept[key]


def _unpack(files: list[Path], metadata: str) -> TemporaryDirectory:
    zstd = import_zstd()
    folder = TemporaryDirectory(prefix="openvla_ros_bag_")
    for file in files:
        with zstd.open(file, "rb") as packed, (Path(folder.name) / file.stem).open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    text = _MODE_VALUE.sub(r"\1 ''", _NAMED_FILE.sub(r"\1", metadata))
    (Path(folder.name) / "metadata.yaml").write_text(text, encoding="utf-8")
    return folder


def import_zstd() -> Any:
    """Return the module that `rosbags` brings along; from Python 3.14 on it is a part of Python."""
    try:
        from compression import zstd
    except ImportError:
        from backports import zstd
    return zstd
