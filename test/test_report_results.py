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
