"""steps.csv: a row per step that reads back as it was."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
from test_episode_record import record

from openvla_ros.evaluation.replay.step_table import columns, write_step_table


def test_every_number_reads_back_to_the_last_bit(tmp_path: Path) -> None:
    one = record(3)
    recorded = one.recorded.copy()
    recorded[1] = np.nan
    valid = np.array([True, False, True])
    one = replace(one, recorded=recorded, is_valid=valid, instruction='say "hi", twice')
    write_step_table(tmp_path / "steps.csv", [("base", one), ("int4", record(2))], 7)
    with (tmp_path / "steps.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["step"]) for row in rows] == [
        *(("base", str(step)) for step in range(3)),
        *(("int4", str(step)) for step in range(2)),
    ]
    names = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    for step, row in enumerate(rows[:3]):
        for kind, values in (("predicted", one.predicted), ("normalized", one.normalized)):
            assert [float(row[f"{kind}_{n}"]) for n in names] == values[step].tolist()
        assert [int(row[f"token_{n}"]) for n in names] == one.token_ids[step].tolist()
        assert int(row["stamp_ns"]) == one.stamps_ns[step]
        assert float(row["latency_ms"]) == one.latency_ms[step]
        assert row["instruction"] == 'say "hi", twice'
    assert [float(rows[0][f"recorded_{n}"]) for n in names] == recorded[0].tolist()
    assert {rows[1][f"recorded_{n}"] for n in names} == {""}
    assert [row["is_valid"] for row in rows[:3]] == ["true", "false", "true"]


def test_numbers_of_another_robot_are_counted() -> None:
    assert "predicted_0" in columns(8) and "token_7" in columns(8)
    assert "predicted_x" in columns(7) and "predicted_0" not in columns(7)
