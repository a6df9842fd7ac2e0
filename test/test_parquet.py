"""Columns of Parquet files, and pictures a few at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openvla_ros.data import parquet
from openvla_ros.errors import ConfigurationError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PICTURES = [bytes([n]) * (n + 1) for n in range(40)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """40 rows in groups of 7; the columns' names hold dots, and one begins like another."""
    table = pa.table(
        {
            "cam.a": [{"bytes": picture, "path": ""} for picture in PICTURES],
            "cam.a.b": [{"bytes": b"other", "path": ""}] * 40,
            "n": pa.array(range(40), pa.int32()),
            "v": pa.array([[n, n / 2] for n in range(40)], pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    return tmp_path / "a.parquet"


@pytest.mark.parametrize(("start", "end"), [(0, 40), (0, 1), (6, 8), (7, 14), (13, 29), (39, 40)])
def test_exactly_the_rows_of_an_episode_come(path: Path, start: int, end: int) -> None:
    assert list(parquet.PictureRows(path, "cam.a", start, end)()) == PICTURES[start:end]


def test_rows_beyond_the_end_are_refused(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ends at row 40 of 41"):
        list(parquet.PictureRows(path, "cam.a", 38, 41)())


def test_numbers_and_vectors_come_back(path: Path) -> None:
    columns = parquet.read_columns(path, ["v", "n"])
    assert parquet.to_numbers(path, "n", columns["n"]).tolist() == list(range(40))
    vectors = parquet.to_vectors(path, "v", columns["v"], 2)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, np.arange(40)[:, None] * np.array([1, 0.5]))


def test_columns_of_another_kind_are_refused(path: Path) -> None:
    columns = parquet.read_columns(path, ["v", "n"])
    with pytest.raises(ConfigurationError, match="not lists of floats"):
        parquet.to_vectors(path, "n", columns["n"], 2)
    with pytest.raises(ConfigurationError, match="not numbers"):
        parquet.to_numbers(path, "v", columns["v"])
    with pytest.raises(ConfigurationError, match="must hold 3 numbers"):
        parquet.to_vectors(path, "v", columns["v"], 3)
    with pytest.raises(ConfigurationError, match=r"no column 'x'; it has: cam\.a, "):
        parquet.read_columns(path, ["x"])
    with pytest.raises(ConfigurationError, match="must be embedded"):
        parquet.require_pictures(path, "n")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(ConfigurationError, match="not a readable Parquet file"):
        parquet.column_names(tmp_path / "a.parquet")
    with pytest.raises(ConfigurationError, match="is missing"):
        parquet.column_names(tmp_path / "b.parquet")
