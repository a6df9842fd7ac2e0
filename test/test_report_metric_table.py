from __future__ import annotations

from dataclasses import fields

from report_case import SPEC, STATS, TOKENIZER, invented_records

from openvla_ros.evaluation.metrics.summary import summarize
from openvla_ros.evaluation.report.metric_table import (
    AGAINST_BASELINES,
    BASELINES,
    METRICS,
    TRANSLATION,
    missing_notes,
)
from openvla_ros.evaluation.report.quantities import Units

STORED = summarize(invented_records(2, 10), SPEC, STATS, TOKENIZER).to_dict()


def test_every_number_is_in_what_a_replay_writes():
    for metric in METRICS:
        assert isinstance(metric.of(STORED["metrics"]), float), metric.path
    assert set(BASELINES) == set(STORED["baselines"])
    for name in BASELINES:
        for metric in AGAINST_BASELINES[:2]:
            assert isinstance(metric.of(STORED["baselines"][name]), float), (name, metric.path)


def test_every_number_has_words():
    for metric in METRICS:
        assert all(getattr(metric, f.name) or f.name in ("unit", "better") for f in fields(metric))
    assert len({metric.label for metric in METRICS}) == len(METRICS)


def test_a_missing_number_has_its_reason_once():
    notes = missing_notes([(METRICS[0], None), (METRICS[1], None), (METRICS[0], None)])
    assert notes == [f"{METRICS[0].label}, {METRICS[1].label}: {METRICS[0].missing}."]
    assert missing_notes([(METRICS[0], 1.0)]) == []
    assert TRANSLATION.of(None) is None and TRANSLATION.of({"translation_error": None}) is None


def test_units_are_those_of_the_file():
    assert TRANSLATION.shown(2.0, Units("mm", "deg")) == "2.00\u00a0mm"
    assert TRANSLATION.shown(2.0, Units("dataset units", "deg")) == "2.00\u00a0dataset units"
