"""Columns of Parquet files as arrays, and pictures out of one column a few at a time (pyarrow)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros.errors import ConfigurationError, DependencyError

_PICTURES_AT_ONCE = 8
_BUFFER_BYTES = 1 << 20  # read ahead within one column, instead of a whole row group


def column_names(path: Path) -> list[str]:
    """Return the names of the columns of a file.

    Raises:
        ConfigurationError: Missing, damaged, or no Parquet file.
        DependencyError: pyarrow is not installed.
    """
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def require_pictures(path: Path, name: str) -> None:
    """Return when a column of {bytes, path} is there, as LeRobot embeds pictures.

    Raises:
        ConfigurationError: It is not; or the file is missing or damaged.
        DependencyError: pyarrow is not installed.
    """
    import pyarrow as pa

    with _opened(path) as file:
        index = file.schema_arrow.get_field_index(name)
        kind = file.schema_arrow.field(index).type if index >= 0 else None
    fields = [f.name for f in kind] if kind is not None and pa.types.is_struct(kind) else []
    if "bytes" not in fields:
        found = f"holds {kind}" if kind is not None else "is absent"
        raise ConfigurationError(
            f"{path}: the column {name!r} {found}; pictures must be embedded, as {{bytes, path}}. "
            "Write the dataset again with LeRobot."
        )


def read_columns(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return whole columns by name, as pyarrow arrays without a missing value.

    Raises:
        ConfigurationError: Missing, damaged, no Parquet file, or a column is absent or has gaps.
        DependencyError: pyarrow is not installed.
    """
    with _opened(path) as file:
        absent = [name for name in names if name not in file.schema_arrow.names]
        if absent:
            raise ConfigurationError(
                f"{path} has no column {absent[0]!r}; it has: "
                f"{', '.join(file.schema_arrow.names[:40])}."
            )
        table = file.read(columns=list(names), use_threads=False)
        columns = {name: table.column(name).combine_chunks() for name in names}
        for name, column in columns.items():
            column.validate(full=True)
            if column.null_count:
                raise ConfigurationError(f"{path}: {column.null_count} rows lack {name!r}.")
        return columns


def to_numbers(path: Path, name: str, column: Any) -> np.ndarray:
    """Return a column of numbers as (N,), int64 or float64.

    Raises:
        ConfigurationError: It holds something else.
    """
    import pyarrow as pa

    if pa.types.is_integer(column.type):
        return column.to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_floating(column.type):
        return column.to_numpy(zero_copy_only=False).astype(np.float64)
    raise ConfigurationError(f"{path}: the column {name!r} holds {column.type}, not numbers.")


def to_vectors(path: Path, name: str, column: Any, length: int) -> np.ndarray:
    """Return a column of lists of numbers as (N, length), in the type that is stored.

    Raises:
        ConfigurationError: It holds something else, or a list has another length.
    """
    import pyarrow as pa

    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    is_list = is_list or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise ConfigurationError(f"{path}: the column {name!r} holds {kind}, not lists of floats.")
    values = column.flatten()
    lengths = {len(row) for row in column} if not pa.types.is_fixed_size_list(kind) else set()
    if values.null_count or len(values) != len(column) * length or lengths - {length}:
        raise ConfigurationError(
            f"{path}: each row of {name!r} must hold {length} numbers; {len(column)} rows hold "
            f"{len(values) - values.null_count}."
        )
    return values.to_numpy(zero_copy_only=False).reshape(-1, length)


@dataclass(frozen=True)
class PictureRows:
    """The pictures of rows `start` to `end` - 1 of one column of {bytes, path}.

    Attributes:
        path: The file.
        column: Its name.
        start: First row.
        end: Last row and one.
    """

    path: Path
    column: str
    start: int
    end: int

    def __call__(self) -> Iterator[bytes]:
        """Yield each picture as it is stored; a few are in memory.

        Raises:
            ConfigurationError: The file is damaged, or a row has no picture in it.
        """
        with _opened(self.path) as file:
            groups, row = self._row_groups(file)
            batches = file.iter_batches(
                batch_size=_PICTURES_AT_ONCE,
                row_groups=groups,
                columns=[f"{self.column}.bytes"],
                use_threads=False,
            )
            for batch in batches:
                stored = batch.column(self.column).field("bytes")
                for offset in range(max(self.start - row, 0), min(self.end - row, len(stored))):
                    picture = stored[offset].as_py()
                    if picture is None:
                        raise ConfigurationError(
                            f"{self.path}: row {row + offset} of {self.column!r} names a file and "
                            "holds no picture. Write the dataset with its pictures embedded."
                        )
                    yield picture
                row += len(stored)
                if row >= self.end:
                    return
        raise ConfigurationError(f"{self.path} ends at row {row} of {self.end}.")

    def _row_groups(self, file: Any) -> tuple[list[int], int]:
        """The groups that hold the rows, and the first row of the first of them."""
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = [
            i
            for i, end in enumerate(ends)
            if end > self.start and end - sizes[i] < self.end and sizes[i]
        ]
        first = int(ends[groups[0]]) - sizes[groups[0]] if groups else self.start
        return groups, first


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, whose footer has been read; what pyarrow raises becomes an error of ours."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DependencyError(
            "Reading a LeRobot dataset needs pyarrow: pip install '.[lerobot]'"
        ) from error
    if not path.is_file():
        raise ConfigurationError(f"the file {path} is missing. Fetch the dataset completely.")
    damage = (pa.ArrowException, OSError, ValueError, LookupError, OverflowError, MemoryError)
    try:
        with pq.ParquetFile(
            path,
            pre_buffer=False,
            buffer_size=_BUFFER_BYTES,
            page_checksum_verification=True,
        ) as file:
            yield file
    except damage as error:
        raise ConfigurationError(
            f"{path} is not a readable Parquet file ({type(error).__name__}: {error}). It was cut "
            "short or damaged; fetch it again."
        ) from error
