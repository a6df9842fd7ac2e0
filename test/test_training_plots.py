"""The curves of a run: what is drawn from its lines of metrics."""

from __future__ import annotations

from pathlib import Path

import matplotlib.figure
import pytest
from PIL import Image

from openvla_ros.errors import DependencyError
from openvla_ros.training.plots import draw_plots
from openvla_ros.training.run_log import append_line


def write_lines(folder: Path) -> None:
    for step in (10, 20, 30):
        figures = {"loss": 1.0 / step, "action_accuracy": step / 100}
        append_line(folder / "metrics.jsonl", {"step": step, "kind": "train", **figures})
    score = {"accuracy": 0.5}
    held_out = {"loss": 0.4, "free_running": score, "constant": {"accuracy": 0.2}}
    line = {"step": 30, "kind": "evaluation", "held_out": {**held_out, "previous": None}}
    append_line(folder / "metrics.jsonl", line)


def test_curves_show_training_evaluations_and_baselines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path)
    drawn: list[dict[str, list[float]]] = []
    real = matplotlib.figure.Figure.savefig

    def save(figure: matplotlib.figure.Figure, *arguments: object, **options: object) -> None:
        lines = figure.axes[0].get_lines()
        drawn.append({str(line.get_label()): list(line.get_ydata()) for line in lines})
        real(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", save)
    paths = draw_plots(tmp_path)
    assert [path.name for path in paths] == ["loss.png", "accuracy.png"]
    assert all(Image.open(path).size[0] > 600 for path in paths)
    assert drawn[0] == {"training batches": [0.1, 0.05, 1 / 30], "held-out slice": [0.4]}
    assert drawn[1] == {
        "training batches, teacher-forced": [0.1, 0.2, 0.3],
        "held-out slice, free-running": [0.5],
        "held-out slice, always the most frequent ids": [0.2, 0.2],
    }


def test_a_run_without_lines_still_has_plots(tmp_path: Path) -> None:
    assert all(path.exists() for path in draw_plots(tmp_path))


def test_missing_matplotlib_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match=r"\.\[train\]"):
        draw_plots(tmp_path)
