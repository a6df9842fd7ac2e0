from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_case import SPEC, invented_records, write_replay

from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.report.results import read_results


def test_what_a_replay_wrote_is_read(tmp_path: Path):
    write_replay(tmp_path, {"base": invented_records(2, 5), "int4": invented_records(2, 5, seed=1)})
    results = read_results(tmp_path)
    assert results.variants == ["base", "int4"]
    assert results.spec == SPEC
    assert results.units.translation_scale == 1000.0
    names = [record.episode for _, record in results.records("int4")]
    assert names == ["episode_000000", "episode_000001"]
    assert results.findings
    assert results.versions["torch"] == "2.5.1"


def test_a_record_that_no_figure_is_made_of_is_passed_over(tmp_path: Path):
    """A replay that was interrupted, and goes on without a broken source, leaves such records."""
    write_replay(tmp_path, {"base": invented_records(3, 5)})
    write_replay(tmp_path, {"base": invented_records(2, 5)}, write_all=False)
    names = [record.episode for _, record in read_results(tmp_path).records("base")]
    assert names == ["episode_000000", "episode_000001"]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"versions": 1}'])
def test_versions_are_not_needed(tmp_path: Path, text: str | None):
    write_replay(tmp_path, {"base": invented_records(1, 5)})
    plan = tmp_path / "replay.json"
    plan.unlink() if text is None else plan.write_text(text)
    assert read_results(tmp_path).versions == {}


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", "null"])
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ConfigurationError, match="run it again with the same --out"):
        read_results(tmp_path)


def test_another_format_is_refused(tmp_path: Path):
    (tmp_path / "metrics.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(ConfigurationError, match="format 2; this version reads 1"):
        read_results(tmp_path)
