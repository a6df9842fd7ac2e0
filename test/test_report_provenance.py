from __future__ import annotations

from pathlib import Path

from report_case import invented_records, write_replay

from openvla_ros.evaluation.report.metric_table import METRICS
from openvla_ros.evaluation.report.provenance import (
    MOST_SOURCES,
    glossary_section,
    provenance_section,
)
from openvla_ros.evaluation.report.quantities import Units
from openvla_ros.evaluation.report.results import Results


def test_what_is_needed_to_do_it_again_is_there(tmp_path: Path):
    metrics = write_replay(tmp_path, {"base": invented_records(1, 4)}, findings=[], write_all=False)
    metrics["sources"] = [{"path": f"bag_{i}", "episodes": 1, "steps": 4} for i in range(80)]
    body = provenance_section(Results(tmp_path, metrics)).body_html
    for words in (
        metrics["command"],
        "2025-03-14 09:26 UTC",
        "bfloat16: the GPU computes in it",
        "2.5.1",
    ):
        assert words in body
    assert "31f090d05236101ebfc381b61c674dd4746d4ce0" in body and "eef_delta" in body
    assert f"{MOST_SOURCES} of 80" in body and f"bag_{MOST_SOURCES}" not in body


def test_every_number_is_explained(tmp_path: Path):
    body = glossary_section(Units("mm", "deg")).body_html
    assert all(metric.label in body for metric in METRICS)
    assert "[mm]" in body and "[°]" in body and "95 % interval" in body
