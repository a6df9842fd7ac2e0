from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_case import invented_records, write_replay

from openvla_ros.evaluation.report.charts import styles_of
from openvla_ros.evaluation.report.detail_sections import (
    MOST_EVENTS,
    axes_section,
    gripper_section,
    latency_section,
)
from openvla_ros.evaluation.report.results import Results
from openvla_ros.evaluation.report.selection import digest


def results_of(tmp_path: Path, *, write_all: bool = False, **variants: list) -> Results:
    return Results(tmp_path, write_replay(tmp_path, variants, findings=[], write_all=write_all))


def test_every_axis_has_its_unit(tmp_path: Path):
    body = axes_section(results_of(tmp_path, base=invented_records(2, 10))).body_html
    assert body.count("\u00a0mm</td>") == 3 and body.count("°</td>") == 3
    assert body.count("\u00a0%</td>") == 7 and "n/a" not in body


def test_missed_and_late_events_are_listed_and_punctual_ones_counted(tmp_path: Path):
    results = results_of(tmp_path, base=invented_records(3, 20, error=0.0))
    assert (
        "6\u00a0recorded events are answered at the same step" in gripper_section(results).body_html
    )
    late = results_of(tmp_path, base=invented_records(3, 20), slow=invented_records(3, 20, late=2))
    body = gripper_section(late).body_html
    assert body.count("2\u00a0steps (0.400\u00a0s) late") == 6
    assert body.count("at the same step</span>") == 6
    missed = results_of(tmp_path, base=invented_records(3, 40, late=10))
    assert "not within 1 s" in gripper_section(missed).body_html


def test_many_events_are_cut_and_the_number_is_said(tmp_path: Path):
    results = results_of(tmp_path, base=invented_records(30, 20, late=1))
    body = gripper_section(results).body_html
    assert f"{MOST_EVENTS} of 60 are listed" in body
    assert body.count("late</span>") == MOST_EVENTS


def test_without_a_gripper_the_reason_is_said(tmp_path: Path):
    records = invented_records(2, 10)
    for record in records:
        record.recorded[:, 6] = np.nan
    body = gripper_section(results_of(tmp_path, base=records)).body_html
    assert "n/a: no gripper was recorded" in body
    assert "No opening or closing was recorded." in body


def test_answers_slower_than_a_step_are_counted(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="a report needs matplotlib: the extra `plots`")
    records = invented_records(2, 10, latency_ms=900.0)
    results = results_of(tmp_path, write_all=True, base=records)
    digests = {"base": digest(results, "base")}
    body = latency_section(results, digests, styles_of(["base"])).body_html
    assert '<span class="warn">100\u00a0%</span>' in body
    assert "A step of the recordings lasts 200\u00a0ms." in body
    assert "dash-dotted: one step 200\u00a0ms" in body
