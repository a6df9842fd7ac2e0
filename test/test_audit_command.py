"""`openvla-ros audit`: files, exit codes, options."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from bridge_episodes import EPISODES, WHY_NOT, has_recordings

from openvla_ros.cli.audit import audit
from openvla_ros.errors import ActionStatsError, ConfigurationError
from openvla_ros.model.random_weights import BRIDGE_STATISTICS
from openvla_ros.ros.frame_sources import shared_data_folder

pytestmark = pytest.mark.skipif(not has_recordings(), reason=WHY_NOT)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"norm_stats": BRIDGE_STATISTICS}))
    return folder


@pytest.fixture
def episodes(tmp_path: Path) -> Path:
    """Five of the real episodes, in a folder of their own."""
    data = shared_data_folder()
    assert data is not None
    folder = tmp_path / "episodes"
    folder.mkdir()
    for index in range(5):
        name = f"episode_{index:03d}.npz"
        shutil.copyfile(data / EPISODES / name, folder / name)
    return folder


def run(source: Path, checkpoint: Path | None, **options: object) -> int:
    values = {
        "topics": None,
        "camera": "image_0",
        "rate_hz": 5.0,
        "pose_key": "",
        "unnorm_key": "",
        "out": None,
        "as_json": False,
        **options,
    }
    try:
        audit([source], checkpoint=str(checkpoint or ""), **values)
    except typer.Exit as end:
        return end.exit_code
    return 0


def plant(episodes: Path) -> None:
    """Y of every episode runs backwards."""
    for path in episodes.glob("*.npz"):
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        arrays["action"] = arrays["action"] * np.array([1, -1, 1, 1, 1, 1, 1], np.float32)
        np.savez(path, **arrays)


def test_clean_episodes_exit_with_0_and_write_both_files(episodes, checkpoint, tmp_path, capsys):
    out = tmp_path / "made" / "here"
    assert run(episodes, checkpoint, out=out) == 0
    content = json.loads((out / "audit.json").read_text())
    assert (content["usable"], content["episodes"], content["unnorm_key"]) == (
        True,
        5,
        "bridge_orig",
    )
    assert content["sources"] == [str(episodes)]
    assert "<h2>Findings</h2>" in (out / "audit.html").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["audit.html", "audit.json"]
    printed = capsys.readouterr().out
    assert "No problem found" in printed and "action lag" in printed


def test_problem_exits_with_1_and_still_writes_the_files(episodes, checkpoint, tmp_path, capsys):
    plant(episodes)
    assert run(episodes, checkpoint, out=tmp_path / "out") == 1
    assert not json.loads((tmp_path / "out" / "audit.json").read_text())["usable"]
    assert "y of the action runs backwards" in capsys.readouterr().out


def test_json_is_only_json(episodes, checkpoint, capsys):
    assert run(episodes, checkpoint, as_json=True) == 0
    content = json.loads(capsys.readouterr().out)
    assert {finding["level"] for finding in content["findings"]} == {"ok", "warn"}


def test_a_folder_of_recordings_is_audited_whole(episodes, checkpoint, tmp_path, capsys):
    demos = tmp_path / "demos"
    for name in ("monday", "tuesday"):
        shutil.copytree(episodes, demos / name)
    run(demos, checkpoint, as_json=True)
    assert json.loads(capsys.readouterr().out)["episodes"] == 10


def test_key_alone_gives_units_and_no_scale(episodes, capsys):
    assert run(episodes, None, unnorm_key="bridge_orig", as_json=True) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["measured"]["idle"] is not None
    assert content["measured"]["scale"] is None


def test_unknown_keys_are_errors_with_and_without_a_checkpoint(episodes, checkpoint):
    with pytest.raises(ConfigurationError, match=r"key 'bridge'\..*bridge_orig"):
        run(episodes, None, unnorm_key="bridge")
    with pytest.raises(ActionStatsError, match="bridge_orig"):
        run(episodes, checkpoint, unnorm_key="bridge")


def test_topic_file_without_a_bag_is_refused_and_not_passed_over(episodes, tmp_path):
    with pytest.raises(ConfigurationError, match="no source is a bag"):
        run(episodes, None, topics=tmp_path / "absent.yaml")


def test_folder_that_cannot_be_written_is_known_before_anything_is_read(episodes, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"--out .*file cannot be made a folder"):
        run(episodes, None, out=tmp_path / "file", camera="not looked at yet")


def test_rate_and_topics_reach_the_reader_of_a_bag(capsys):
    data = shared_data_folder()
    assert data is not None
    topics = Path(__file__).parents[1] / "config" / "topics" / "bridge_sample.yaml"
    bag = data / "bridge_rosbag2_mcap"
    options = {"camera": "", "topics": topics, "unnorm_key": "bridge_orig", "as_json": True}
    found = []
    for rate_hz in (None, 2.5):
        assert run(bag, None, rate_hz=rate_hz, **options) == 0
        content = json.loads(capsys.readouterr().out)
        found.append((content["steps"], content["measured"]["timing"]["stated_hz"]))
    assert found == [(30, [5.0, 5.0]), (15, [2.5, 2.5])]
