"""The report shows a live replay beside the offline one, where there was one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_case import invented_records, write_replay
from test_live_result import answers, offline

from openvla_ros.evaluation.replay.live_result import LIVE_FILE, live_result
from openvla_ros.evaluation.report.live_section import live_section
from openvla_ros.evaluation.report.results import read_results


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_replay(tmp_path, {"base": invented_records(1, 4)})
    return tmp_path


def test_ages_drops_and_equal_answers_are_shown_with_units(folder: Path) -> None:
    record = offline()
    states = {"RUNNING OK": 20, "HOLD STALE_IMAGE": 1200}
    found = live_result(
        answers(record)[:4], [record], images_in_bag=1234, images_received=9, states=states
    )
    (folder / LIVE_FILE).write_text(json.dumps(found.to_dict()))
    html = live_section(read_results(folder)).body_html
    assert "1,234" in html and "DRY_RUN" in html
    assert f"{1000 * found.age_s['p50']:.0f}" in html and "ms" in html
    assert html.index("HOLD STALE_IMAGE") < html.index("RUNNING OK"), "the most frequent first"


def test_a_replay_without_live_has_no_such_section(folder: Path) -> None:
    assert read_results(folder).live is None
