"""When two recordings or checkpoints are the same one, and when they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from openvla_ros.data.fingerprint import fingerprint

MIB = 2**20


def test_content_decides_and_dates_do_not(tmp_path: Path) -> None:
    one, copy = tmp_path / "one", tmp_path / "copy"
    one.write_bytes(b"a" * 100)
    copy.write_bytes(b"a" * 100)
    os.utime(copy, (1, 1))
    assert fingerprint(one) == fingerprint(copy)
    copy.write_bytes(b"a" * 99 + b"b")
    assert fingerprint(one) != fingerprint(copy)


@pytest.mark.parametrize("size", [3 * MIB, 2 * MIB, MIB + 7])
def test_a_change_at_either_end_of_a_large_file_is_seen(tmp_path: Path, size: int) -> None:
    path = tmp_path / "large"
    content = bytearray(os.urandom(size))
    path.write_bytes(content)
    before = fingerprint(path)
    found = {before}
    for place in (0, MIB - 1, size - 1, size // 2):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        found.add(fingerprint(path))
    path.write_bytes(content + b"x")
    found.add(fingerprint(path))
    assert len(found) == 6


def test_weights_that_changed_between_the_ends_are_others(tmp_path: Path) -> None:
    """The first and the last MiB decided: of a model trained on with the same first and last
    tensor, records of old and new weights would have been mixed.
    """
    path = tmp_path / "model.safetensors"
    content = bytearray(os.urandom(16 * MIB))
    path.write_bytes(content)
    before = fingerprint(path)
    content[6 * MIB : 7 * MIB] = os.urandom(MIB)  # one tensor of many
    path.write_bytes(content)
    assert fingerprint(path) != before


def test_a_folder_is_its_files_with_their_names(tmp_path: Path) -> None:
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag" / "a").write_bytes(b"1")
    (tmp_path / "bag" / "b").write_bytes(b"2")
    before = fingerprint(tmp_path / "bag")
    moved = (tmp_path / "bag").rename(tmp_path / "elsewhere")
    assert fingerprint(moved) == before
    (moved / "a").rename(moved / "c")
    assert fingerprint(moved) != before
