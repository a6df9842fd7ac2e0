"""The LIBERO runner around its loop: packages, assets, checkpoints, files."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import libero_package as made
import pytest

from openvla_ros import cli
from openvla_ros.errors import ActionStatsError, ConfigurationError, DependencyError
from openvla_ros.evaluation.libero.assets import missing_assets, require_assets
from openvla_ros.evaluation.libero.environment import (
    CONFIG_VARIABLE,
    Libero,
    find_libero,
    load_tasks,
)
from openvla_ros.evaluation.libero.protocol import MAX_STEPS, camera_path
from openvla_ros.evaluation.libero.run import LiberoRun, protocol_options


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.bddl"
    path.write_text(made.TASK)
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-in's `libero.libero`, on sys.path for this test alone."""
    root = made.make_package(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv(CONFIG_VARIABLE, "")  # what a run sets goes with the test
    forget()
    yield root
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "libero"]:
        del sys.modules[name]


def test_all_assets_are_there(task: Path, tmp_path: Path) -> None:
    assets = made.make_assets(tmp_path / "assets")
    assert missing_assets(assets, [task]) == []
    require_assets(assets, [task])


@pytest.mark.parametrize("name", made.NEEDED)
@pytest.mark.parametrize("how", ["absent", "empty", "pointer"])
def test_each_missing_file_is_found(task: Path, tmp_path: Path, name: str, how: str) -> None:
    assets = made.make_assets(tmp_path / "assets")
    if how == "absent":
        (assets / name).unlink()
    else:
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
        (assets / name).write_text("" if how == "empty" else pointer)
    assert list(map(str, missing_assets(assets, [task]))) == [name]


def test_missing_assets_are_named_with_where_they_come_from(task: Path, tmp_path: Path) -> None:
    with pytest.raises(DependencyError) as refused:
        require_assets(tmp_path / "nowhere", [task])
    said = str(refused.value)
    assert "1 of 1 tasks" in said and "4 files" in said and made.SCENE in said
    assert str(tmp_path / "nowhere") in said and "--assets" in said and "LIBERO" in said


def test_a_damaged_document_is_named(task: Path, tmp_path: Path) -> None:
    assets = made.make_assets(tmp_path / "assets")
    (assets / made.SCENE).write_text("<mujoco>")
    with pytest.raises(DependencyError, match=r"libero_tabletop_base_style\.xml is damaged"):
        missing_assets(assets, [task])


def test_a_task_of_another_benchmark_is_refused(task: Path, tmp_path: Path) -> None:
    task.write_text(made.TASK.replace("- plate", "- teapot"))
    with pytest.raises(ConfigurationError, match="teapot"):
        missing_assets(tmp_path, [task])


@pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="hf-libero is not installed")
@pytest.mark.parametrize("suite", MAX_STEPS)
def test_the_tasks_of_the_real_suites_are_known(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("libero")
    root = Path(next(iter(spec.submodule_search_locations))) / "libero"
    monkeypatch.setenv(CONFIG_VARIABLE, "")
    forget()
    tasks = load_tasks(Libero(root, tmp_path), suite, tmp_path / "run")
    forget()
    assert [task.initial_states for task in tasks] == [50] * 10
    assert all(missing_assets(tmp_path, [task.bddl]) for task in tasks), "nothing is there"
    assert len({task.instruction for task in tasks}) == 10


def test_without_the_packages_the_line_that_installs_them_is_said(
    package: Path, tmp_path: Path
) -> None:
    old = tmp_path / "site" / "robosuite-1.4.0.dist-info"
    old.rename(old.with_name("robosuite-1.5.2.dist-info"))
    metadata = tmp_path / "site" / "robosuite-1.5.2.dist-info" / "METADATA"
    metadata.write_text("Name: robosuite\nVersion: 1.5.2\n")
    with pytest.raises(DependencyError) as refused:
        find_libero("libero_goal")
    said = str(refused.value)
    assert "robosuite 1.4.0 (1.5.2)" in said
    assert "hf-libero 0.1.4" not in said, "what is right is not complained about"
    assert "pip install --no-deps hf-libero==0.1.4 robosuite==1.4.0 bddl==1.0.1" in said


def test_assets_are_looked_for_before_anything_is_loaded(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint does not even exist; what is said is about the assets."""
    given = ["sim", "libero", "--checkpoint", str(tmp_path / "none"), "--suite", "libero_goal"]
    code = cli.main([*given, "--assets", str(tmp_path / "empty"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 1 and found["type"] == "DependencyError"
    assert "2 of 2 tasks lack LIBERO's own assets" in found["error"]


def test_the_command_runs_a_suite_and_writes_what_it_prints(
    package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    reference_checkpoints: Path,
) -> None:
    made.make_assets(package / "assets")  # where they are found without being named
    out = tmp_path / "out"
    given = ["sim", "libero", "--checkpoint", str(reference_checkpoints / "A_fused")]
    given += ["--suite", "libero_goal", "--unnorm-key", "tiny_bridge", "--device", "cpu"]
    given += ["--out", str(out)]
    assert cli.main([*given, "--episodes-per-task", "2", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)  # LIBERO's own lines are not in between
    assert result == json.loads((out / "result.json").read_text())
    assert (result["success_rate"], result["episodes"], result["seed"]) == (1.0, 4, 7)
    assert list(result["per_instruction"]) == ["task 0", "task 1"]
    assert result["max_steps"] == 300 and result["unnorm_key"] == "tiny_bridge"
    steps = "rotate_180, then jpeg_round_trip, then lanczos3, then center_crop"
    assert result["choices"]["image path"].startswith(steps)
    lines = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert [(line["number"], line["steps"]) for line in lines] == [(0, 3), (1, 3)] * 2
    assert "4/4  success after 3 steps: task 1 (1)" in captured.err
    assert str(package / "assets") in (out / "config.yaml").read_text()

    first, second = sys.modules["libero.libero.envs"].made
    assert first.options["bddl_file_name"].endswith("libero_goal/task_0.bddl")
    assert first.options["camera_heights"] == first.options["camera_widths"] == 256
    expected = [("seed", 0), "reset", ("state", [0, 1]), "reset", ("state", [2, 3]), "close"]
    assert first.calls == expected
    assert second.calls[2] == ("state", [10, 11])

    assert cli.main(given) == 1
    assert "holds an evaluation" in capsys.readouterr().err
    assert os.environ[CONFIG_VARIABLE] == str(out)


def test_an_unknown_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="libero_spatial, libero_object, libero_goal"):
        LiberoRun("x", "libero_90", tmp_path)


def checkpoint(folder: Path, key: str, *, is_ours: bool) -> str:
    folder.mkdir()
    statistics = {"action": {"q01": [0.0] * 7, "q99": [1.0] * 7}}
    (folder / "config.json").write_text(json.dumps({"norm_stats": {key: statistics}}))
    if is_ours:
        base = {"checkpoint": "x", "revision": "", "fingerprint": "0"}
        (folder / "finetune.json").write_text(json.dumps({"base": base}))
    return str(folder)


@pytest.mark.parametrize(
    ("is_ours", "asked", "crops"),
    [
        (False, None, True),  # all published ones were trained with augmentation
        (False, False, False),
        (True, None, False),  # then the stored options decide, which these are added to
        (True, True, True),
    ],
)
def test_who_decides_about_the_crop(
    tmp_path: Path, is_ours: bool, asked: bool | None, crops: bool
) -> None:
    folder = checkpoint(tmp_path / "c", "libero_goal_no_noops", is_ours=is_ours)
    run = LiberoRun(folder, "libero_goal", tmp_path, center_crop=asked)
    assert protocol_options(run) == ("libero_goal_no_noops", camera_path(crops))


def test_a_checkpoint_of_another_suite_is_refused_unless_its_key_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "libero_object", is_ours=False)
    with pytest.raises(ActionStatsError, match="--unnorm-key"):
        protocol_options(LiberoRun(folder, "libero_goal", tmp_path))
    named = LiberoRun(folder, "libero_goal", tmp_path, unnorm_key="libero_object")
    assert protocol_options(named)[0] == "libero_object"
