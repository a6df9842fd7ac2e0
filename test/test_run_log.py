"""Lines of metrics: what is written comes back, and a resumed run forgets what it did not reach."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from openvla_ros.errors import DependencyError
from openvla_ros.training import run_log
from openvla_ros.training.config import FinetuneConfig
from openvla_ros.training.config_file import config_from
from openvla_ros.training.run_log import (
    METRICS_FILE,
    TENSORBOARD_FOLDER,
    RunLog,
    append_line,
    cut_back,
    flat_numbers,
    read_lines,
    require_log_libraries,
)


def config(**run: object) -> FinetuneConfig:
    data = {"sources": [{"path": "p", "name": "n"}]}
    return config_from({"base": "b", "data": data, "run": {"tensorboard": False} | run})


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    with RunLog(tmp_path, config(), 0) as log:
        log.write("train", 10, {"loss": 1 / 3, "nested": {"per_dim": [0.1, 0.2]}})
    (line,) = read_lines(tmp_path / METRICS_FILE)
    assert line == {
        "step": 10,
        "kind": "train",
        "loss": 1 / 3,
        "nested": {"per_dim": [0.1, 0.2]},
    }


def test_a_full_disk_is_an_error_of_storage_wherever_it_is_noticed(tmp_path: Path) -> None:
    """Events are written by a thread, and cannot be flushed afterwards either."""
    pytest.importorskip("tensorboard", reason="needs the extra `train`")
    code = """
import resource, sys
from pathlib import Path
from openvla_ros.errors import StorageError
from openvla_ros.training.config_file import config_from
from openvla_ros.training.run_log import RunLog, append_line, cut_back
data = {"sources": [{"path": "p", "name": "n"}]}
config = config_from({"base": "b", "data": data})
folder = Path(sys.argv[1])
append_line(folder / "lines", {"step": 1, "text": "x" * 5000})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with RunLog(folder, config, 0) as log:
        for step in range(10000):
            log._forward("train", step, {"loss": 0.5})
except StorageError as error:
    print(error)
try:
    cut_back(folder / "lines", 5)
except StorageError as error:
    print(error)
"""
    line = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(line, capture_output=True, text=True, check=True)
    first, second = run.stdout.splitlines()
    assert "tensorboard cannot be written" in first and "make room" in first
    assert "lines cannot be written" in second and run.stderr == ""
    assert len(read_lines(tmp_path / "lines")) == 1


def test_nan_is_no_invalid_json(tmp_path: Path) -> None:
    append_line(tmp_path / "a", {"step": 1, "loss": math.nan, "l": [math.inf]})
    assert json.loads((tmp_path / "a").read_text()) == {"step": 1, "loss": None, "l": [None]}


def test_a_resumed_run_cuts_back_what_lies_ahead(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    for step in (10, 20, 30):
        append_line(path, {"step": step, "loss": 1 / step})
    before = path.read_text().splitlines(keepends=True)
    cut_back(path, 20)
    assert path.read_text() == "".join(before[:2])


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    append_line(path, {"step": 10})
    with path.open("a") as file:
        file.write('{"step": 20, "lo')
    assert read_lines(path) == [{"step": 10}]
    cut_back(path, 20)
    assert path.read_text() == '{"step": 10}\n'


def test_numbers_are_flattened_for_tensorboard() -> None:
    figures = {"a": 1, "b": {"c": 2.5, "d": [3, 4]}, "e": None, "f": "text", "g": True}
    assert flat_numbers(figures, "x/") == {"x/a": 1.0, "x/b/c": 2.5, "x/b/d/0": 3.0, "x/b/d/1": 4.0}


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, config(tensorboard=True), 0) as log:
        log.write("train", 10, {"loss": 0.5, "l1": {"x": 0.25}})
        log.write_timing(10, {"samples_per_s": 40.0})
    events = EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER)).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/l1/x", "timing/samples_per_s"}
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(10, 0.5)]


@pytest.mark.parametrize(
    ("run", "advice"),
    [({"wandb_project": "arm"}, "pip install wandb"), ({"tensorboard": True}, r"\.\[train\]")],
)
def test_a_library_that_is_missing_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch, run: dict[str, object], advice: str
) -> None:
    monkeypatch.setattr(run_log, "_is_installed", lambda name: False)
    with pytest.raises(DependencyError, match=advice):
        require_log_libraries(config(**run))
    require_log_libraries(config())


class FakeWandb:
    """Stands for the module, and for the run it gives."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.options: dict[str, object] = {}
        self.is_finished = False

    def init(self, **options: object) -> FakeWandb:
        self.options = options
        return self

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.lines.append((step, numbers))

    def finish(self) -> None:
        self.is_finished = True


def test_wandb_gets_every_number_and_knows_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = []
    for step in (0, 10):
        fake = FakeWandb()
        monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
        with RunLog(tmp_path, config(wandb_project="arm"), step) as log:
            log.write("train", step + 10, {"loss": 0.5})
        assert fake.is_finished and fake.lines == [(step + 10, {"train/loss": 0.5})]
        assert fake.options["project"] == "arm" and fake.options["resume"] == "allow"
        ids.append(fake.options["id"])
    assert ids[0] == ids[1]
