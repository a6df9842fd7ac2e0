"""The output folder: whole or resumable, never something in between."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from replay_cases import ACTION
from test_episode_record import record

from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.replay import folder as replay_folder
from openvla_ros.evaluation.replay.folder import ReplayFolder, plain, writing_file
from openvla_ros.evaluation.replay.policy_description import describe
from openvla_ros.mock_policy import MockPolicy

PLAN = {"format": 1, "sources": ["a"], "versions": {"numpy": "2"}}


def filled(path: Path) -> Path:
    """A folder as a run that came to its end leaves it."""
    with ReplayFolder(path, PLAN) as folder:
        folder.write_record("base", "0000_a", record())
        folder.write_policy("base", describe(MockPolicy(ACTION)))
        folder.write_probes("base", {"x": 1})
        with folder.writing_folder("replay_bag") as bag:
            bag.mkdir()
            (bag / "a.mcap").write_bytes(b"1")
        folder.write_json("metrics.json", {"format": 1})
        (path / "report.html").write_text("report")
    return path


def test_the_same_plan_goes_on_and_its_old_results_are_gone_at_once(tmp_path: Path) -> None:
    filled(tmp_path / "out")
    with ReplayFolder(tmp_path / "out", PLAN) as folder:
        found, why = folder.read_record("base", "0000_a")
        assert found is not None and len(found) == 3 and why == ""
        policy = folder.read_policy("base")
        assert policy is not None and policy.unnorm_key == "mock"
        assert folder.read_probes("base") == {"x": 1}
        left = {path.name for path in (tmp_path / "out").iterdir()}
        assert left == {"replay.json", "records", "policies", "probes", ".lock"}


def test_another_plan_is_refused_untouched_and_says_what_differs(tmp_path: Path) -> None:
    filled(tmp_path / "out")
    other = PLAN | {"sources": ["b"]}
    with pytest.raises(ConfigurationError, match=r"its sources differ.*--restart"):
        ReplayFolder(tmp_path / "out", other)
    assert (tmp_path / "out" / "metrics.json").exists()
    assert (tmp_path / "out" / "report.html").exists()
    with ReplayFolder(tmp_path / "out", other, restart=True) as folder:
        assert folder.read_record("base", "0000_a") == (None, "")
        assert folder.read_policy("base") is None and folder.read_probes("base") is None
    assert json.loads((tmp_path / "out" / "replay.json").read_text()) == other


def test_restart_begins_anew_with_the_same_plan_too(tmp_path: Path) -> None:
    filled(tmp_path / "out")
    with ReplayFolder(tmp_path / "out", PLAN, restart=True) as folder:
        assert folder.read_record("base", "0000_a") == (None, "")


def test_without_a_record_another_plan_needs_no_restart(tmp_path: Path) -> None:
    """A first run that failed on a wrong topic used to be in the way of the corrected one."""
    with ReplayFolder(tmp_path / "out", PLAN):
        pass
    with ReplayFolder(tmp_path / "out", PLAN | {"options": {"camera": "wrist"}}):
        pass


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for restart in (False, True):
        with pytest.raises(ConfigurationError, match=r"holds other files \(thesis.tex\)"):
            ReplayFolder(tmp_path, PLAN, restart=restart)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_files_added_later_by_a_user_stay(tmp_path: Path) -> None:
    filled(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("look at step 3")
    with ReplayFolder(tmp_path / "out", PLAN, restart=True):
        pass
    assert (tmp_path / "out" / "notes.txt").exists()


def test_a_damaged_record_is_reported_and_counts_as_absent(tmp_path: Path) -> None:
    filled(tmp_path / "out")
    path = tmp_path / "out" / "records" / "base" / "0000_a.npz"
    path.write_bytes(path.read_bytes()[:200])
    with ReplayFolder(tmp_path / "out", PLAN) as folder:
        found, why = folder.read_record("base", "0000_a")
    assert found is None and "evaluated again" in why


@pytest.mark.parametrize("text", ["", "{", "[]", '{"info": 1}'])
def test_damaged_descriptions_and_probes_are_made_again(tmp_path: Path, text: str) -> None:
    filled(tmp_path / "out")
    (tmp_path / "out" / "policies" / "base.json").write_text(text)
    (tmp_path / "out" / "probes" / "base.json").write_text(text if text != '{"info": 1}' else "")
    with ReplayFolder(tmp_path / "out", PLAN) as folder:
        assert folder.read_policy("base") is None and folder.read_probes("base") is None


def test_a_damaged_plan_is_not_taken_for_the_same(tmp_path: Path) -> None:
    filled(tmp_path / "out")
    (tmp_path / "out" / "replay.json").write_text('{"format": 1, "sour')
    with pytest.raises(ConfigurationError, match=r"replay\.json is absent or damaged"):
        ReplayFolder(tmp_path / "out", PLAN)


def test_leftovers_of_a_killed_process_are_swept_up(tmp_path: Path) -> None:
    out = filled(tmp_path / "out")
    (out / "records" / "base" / ".0000_b.npz.x1y2").write_bytes(b"half")
    (out / ".metrics.json.abc.partial").write_bytes(b"half")
    (out / ".partial" / "replay_bag").mkdir(parents=True)
    with ReplayFolder(out, PLAN):
        pass
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    first = ReplayFolder(tmp_path / "out", PLAN)
    with pytest.raises(ConfigurationError, match="Another replay works in"):
        ReplayFolder(tmp_path / "out", PLAN)
    first.close()
    with ReplayFolder(tmp_path / "out", PLAN):
        pass


def test_a_refused_folder_is_free_again(tmp_path: Path) -> None:
    filled(tmp_path / "out")
    with pytest.raises(ConfigurationError, match="differ"):
        ReplayFolder(tmp_path / "out", {"format": 2})
    with ReplayFolder(tmp_path / "out", PLAN):
        pass


def full(*_arguments: object, **_more: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_says_so_and_leaves_what_was_whole(tmp_path: Path, monkeypatch) -> None:
    out = filled(tmp_path / "out")
    with ReplayFolder(out, PLAN) as folder:
        monkeypatch.setattr(replay_folder.os, "fsync", full)
        with pytest.raises(ConfigurationError, match=r"metrics.json cannot be written.*Make room"):
            folder.write_json("metrics.json", {"format": 1})
        monkeypatch.setattr(replay_folder, "write_record", full)
        with pytest.raises(ConfigurationError, match=r"0000_b.npz cannot.*No space left.*goes on"):
            folder.write_record("base", "0000_b", record())
        error = pytest.raises(ConfigurationError, match="Make room")
        with error, folder.writing_folder("replay_bag") as bag:
            bag.mkdir()
            full()
    assert not (out / "metrics.json").exists() and not (out / "replay_bag").exists()
    assert not list(out.rglob("*.partial")) and not (out / ".partial").exists()


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        ReplayFolder(tmp_path / "file" / "out", PLAN)


def test_a_file_that_is_not_finished_does_not_replace_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), writing_file(path) as partial:
        partial.write_text("half of the n")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["steps.csv"] and path.read_text() == "old"


def test_json_has_null_where_a_number_is_none() -> None:
    value = {"a": (np.float64("nan"), np.array([1.0, np.inf])), "b": {"c": np.int64(3)}, "d": True}
    assert plain(value) == {"a": [None, [1.0, None]], "b": {"c": 3}, "d": True}
