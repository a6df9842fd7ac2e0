"""Paths, tasks and episodes as the meta/ folder of a LeRobot dataset says them."""

from __future__ import annotations

from pathlib import Path

import pytest
import recording_formats as formats

from openvla_ros.data.lerobot_meta import DatasetInfo, read_entries, read_info, read_tasks
from openvla_ros.errors import ConfigurationError

pytest.importorskip("pyarrow")
pytest.importorskip("av")

RECS = [formats.recording(1, 3), formats.recording(2, 4, "open the drawer")]
INFO = DatasetInfo(Path("/d"), "v2.1", 5.0, {}, 1, 1000, "", "")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet", True),
        ("{video_key}/{episode_index}", "observation.images.top/1234567"),
        ("plain", "plain"),
    ],
)
def test_templates_are_filled_in(template: str, expected: object) -> None:
    values = {"episode_chunk": 7, "episode_index": 1234567, "video_key": "observation.images.top"}
    if expected is True:
        expected = template.format(**values)
    assert INFO.path(template, values) == Path("/d") / str(expected)


@pytest.mark.parametrize(
    "template",
    [
        "",
        "/etc/passwd",
        "../{episode_index}",
        "a/../../b",
        "{unknown}",
        "{episode_index:999999999d}",
        "{episode_index.real}",
        "a\0b",
    ],
)
def test_templates_that_lead_elsewhere_are_refused(template: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be filled in"):
        INFO.path(template, {"episode_index": 1})


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_both_versions_say_the_same(tmp_path: Path, version: str) -> None:
    info = read_info(formats.write_lerobot(tmp_path / "dataset", RECS, version))
    assert (info.version, info.rate_hz, info.episodes) == (version, 5.0, 2)
    assert read_tasks(info) == {0: "open the drawer", 1: "pick up the cup"}
    first, second = read_entries(info, formats.CAMERA)
    assert (first.index, first.steps, first.video_start_s) == (0, 3, 0.0)
    assert (second.index, second.steps) == (1, 4)
    assert second.video_start_s == (0.6 if version == "v3.0" else 0.0)
    for entry in (first, second):
        assert entry.data_file.is_file() and entry.video_file and entry.video_file.is_file()
    assert read_entries(info, None)[0].video_file is None
