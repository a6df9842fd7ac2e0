"""`steps.csv`: one row per step and variant, for spreadsheets and data frames.

Numbers are written so that they read back as they were; an empty cell is "not known".
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from openvla_ros.evaluation.episode_record import EpisodeRecord

SEVEN = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
_FIRST = ("variant", "source", "episode", "step", "stamp_ns")
_LAST = ("is_valid", "latency_ms", "passes", "instruction")


def write_step_table(path: Path, rows: Iterable[tuple[str, EpisodeRecord]], length: int) -> None:
    """Write the table.

    Args:
        path: File to write; not whole before this returns.
        rows: Variant and record, in the order of the table.
        length: Numbers per action.

    Raises:
        OSError: The disk is full, or the folder is not writable.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns(length))
        for variant, record in rows:
            writer.writerows(_rows(variant, record))


def columns(length: int) -> list[str]:
    """Return the heading for actions of `length` numbers.

    `recorded_*` and `predicted_*` are in dataset units, `normalized_*` in [-1, 1], `token_*` the
    generated ids. Seven numbers have their names, others are counted from 0.
    """
    names: Sequence[str] = SEVEN if length == len(SEVEN) else [str(i) for i in range(length)]
    kinds = ("recorded", "predicted", "normalized", "token")
    return [*_FIRST, *(f"{kind}_{name}" for kind in kinds for name in names), *_LAST]


def _rows(variant: str, record: EpisodeRecord) -> Iterator[list[str | int | float]]:
    for step, stamp_ns in enumerate(record.stamps_ns.tolist()):
        numbers = [
            "" if math.isnan(number) else repr(number)
            for array in (record.recorded, record.predicted, record.normalized)
            for number in array[step].tolist()
        ]
        yield [
            variant,
            record.source,
            record.episode,
            step,
            stamp_ns,
            *numbers,
            *record.token_ids[step].tolist(),
            "true" if record.is_valid[step] else "false",
            repr(float(record.latency_ms[step])),
            int(record.passes[step]),
            record.instruction,
        ]
