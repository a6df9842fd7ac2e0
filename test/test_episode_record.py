"""Records of replayed episodes: nothing is lost, nothing is half written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation import episode_record
from openvla_ros.evaluation.episode_record import EpisodeRecord, read_record, write_record


def record(steps: int = 3) -> EpisodeRecord:
    random = np.random.default_rng(0)
    actions = random.normal(size=(steps, 7))
    return EpisodeRecord(
        episode="episode_000",
        source="a bag",
        instruction="put the cup on the plate",
        rate_hz=5.0,
        stamps_ns=np.arange(steps, dtype=np.int64) * 200_000_000,
        recorded=actions,
        predicted=actions + 0.1,
        normalized=np.clip(actions, -1, 1),
        token_ids=random.integers(31744, 32000, (steps, 7)),
        is_valid=np.ones(steps, bool),
        latency_ms=random.uniform(1, 2, steps),
        passes=np.full(steps, 7),
        worst_steps=np.array([2, 0]),
        worst_frames=(np.arange(5, dtype=np.uint8), np.arange(9, dtype=np.uint8)),
    )


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    written = record()
    write_record(tmp_path / "new" / "a.npz", written)
    read = read_record(tmp_path / "new" / "a.npz")
    for f in dataclasses.fields(EpisodeRecord):
        old, new = getattr(written, f.name), getattr(read, f.name)
        if f.name == "worst_frames":
            assert all(np.array_equal(a, b) for a, b in zip(old, new, strict=True))
        else:
            assert np.array_equal(old, new), f.name
            assert np.asarray(old).dtype.kind == np.asarray(new).dtype.kind, f.name


def test_a_record_that_was_cut_short_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_record(path, record())
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigurationError, match="Remove it"):
            read_record(path)


def test_a_full_disk_leaves_the_old_record_and_no_rubbish(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.npz"
    write_record(path, record())

    def full(file, **_arrays) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(episode_record.np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        write_record(path, record(5))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    assert len(read_record(path)) == 3
