"""A file is there whole or not at all, and a full disk is told before it is full."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from openvla_ros.data.atomic_files import (
    SPARE_BYTES,
    remove_abandoned,
    require_space,
    write_whole_file,
)
from openvla_ros.errors import StorageError


def test_a_file_is_written_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_whole_file(path, [b"one", memoryview(b"two")])
    assert path.read_bytes() == b"onetwo"
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"new"
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(StorageError, match=r"file cannot be written: .*No space left"):
        write_whole_file(path, parts())
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_has_left_is_removed_and_what_is_being_written_is_not(
    tmp_path: Path,
) -> None:
    def parts() -> Iterator[bytes]:
        yield b"new"
        remove_abandoned(tmp_path)  # another process, meanwhile

    old = tmp_path / ".file.abc.partial"
    old.write_bytes(b"half")
    os.utime(old, (0, 0))
    write_whole_file(tmp_path / "file", parts())
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"new")]


def test_room_is_asked_for_with_something_to_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=SPARE_BYTES + 10))
    require_space(tmp_path / "new", 10, "A thing")
    with pytest.raises(StorageError, match=r"A thing takes 11 bytes and .* larger disk"):
        require_space(tmp_path / "new", 11, "A thing")


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    """A cache that several users share would hold files that only the first can open."""
    write_whole_file(tmp_path / "a", [b"1"])
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
