from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_case import invented_records, write_replay

from openvla_ros.evaluation.report.charts import styles_of
from openvla_ros.evaluation.report.metric_table import COSINE, TRANSLATION
from openvla_ros.evaluation.report.results import Results
from openvla_ros.evaluation.report.verdict_sections import (
    baselines_section,
    beats,
    comparison_section,
    incomplete_notice,
    summary_line,
)


def results_of(tmp_path: Path, **changes: object) -> Results:
    variants = {"base": invented_records(6, 10), "int4": invented_records(6, 10, error=2.0)}
    metrics = write_replay(tmp_path, variants, findings=[], write_all=False)
    return Results(tmp_path, json.loads(json.dumps({**metrics, **changes})))


def test_lower_errors_and_higher_cosines_win_and_a_draw_does_not():
    assert beats(TRANSLATION, 1.0, 2.0) is True
    assert beats(TRANSLATION, 2.0, 2.0) is False
    assert beats(COSINE, 0.9, 0.2) is True
    assert beats(COSINE, None, 0.2) is None


def test_a_comparison_has_interval_verdict_and_notes(tmp_path: Path):
    body = comparison_section(results_of(tmp_path)).body_html.replace("\u00a0", " ")
    assert '<span class="problem">worse</span>' in body
    assert "% points" in body and "95 % interval" in body
    assert "Latency: time says nothing about quality" in body


def test_a_comparison_without_numbers_is_na(tmp_path: Path):
    empty = dict.fromkeys(("difference", "low", "high", "reference_value", "variant_value"))
    entry = {
        "metric": "gripper_accuracy",
        "reference": "base",
        "variant": "int4",
        "verdict": "n/a",
        "unit": "",
        "steps": 0,
        "episodes": 0,
        "note": "no step that both answered has this metric",
        **empty,
    }
    body = comparison_section(results_of(tmp_path, comparisons=[entry])).body_html
    assert body.count("n/a") == 5
    assert "Gripper accuracy: no step that both answered has this metric." in body


def test_a_whole_replay_has_no_notice(tmp_path: Path):
    assert incomplete_notice(results_of(tmp_path)) == ""
    assert "INCOMPLETE" in incomplete_notice(results_of(tmp_path, complete=False, problems=[]))


def test_the_summary_says_how_much_was_replayed(tmp_path: Path):
    words = summary_line(results_of(tmp_path)).replace("\u00a0", " ")
    assert words.startswith("6 episodes with 60 steps from 1 source, answered by base and int4.")


def test_a_baseline_that_does_not_exist_says_why(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="a report needs matplotlib: the extra `plots`")
    metrics = write_replay(tmp_path, {"base": invented_records(3, 1)}, findings=[], write_all=False)
    assert metrics["variants"]["base"]["baselines"]["previous_action"] is None
    body = baselines_section(Results(tmp_path, metrics), styles_of(["base"])).body_html
    assert "Previous action: n/a, because no recorded step follows another." in body
