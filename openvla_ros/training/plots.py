"""Curves of a run as PNG, drawn from its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openvla_ros.errors import DependencyError
from openvla_ros.training.run_log import METRICS_FILE, read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS_PLOT, ACCURACY_PLOT = "loss.png", "accuracy.png"
_SIZE_INCHES = (8.0, 5.0)
_DPI = 120
_COLOURS = {"training": "tab:blue", "held_out": "tab:orange"}
_NAMES = {"training": "training", "held_out": "held-out"}
_BASELINES = {"constant": "always the most frequent ids", "previous": "the action before"}


def draw_plots(folder: Path) -> list[Path]:
    """Write loss.png and accuracy.png of a run into its folder; return them.

    Accuracy is teacher-forced while training, and free-running where the model was evaluated,
    beside the baselines.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise DependencyError(
            "The plots of a run need matplotlib, which is not installed: pip install '.[train]' in "
            "the folder of openvla_ros."
        ) from error
    lines = read_lines(folder / METRICS_FILE)
    steps = [line for line in lines if line["kind"] == "train"]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    written = []
    for name, draw in ((LOSS_PLOT, _draw_loss), (ACCURACY_PLOT, _draw_accuracy)):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.subplots()
        draw(axes, steps, evaluations)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend()
        figure.savefig(folder / name, dpi=_DPI)
        written.append(folder / name)
    return written


def _draw_loss(
    axes: Axes, steps: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> None:
    _plot(axes, _curve(steps, "loss"), "-", color="tab:gray", label="training batches")
    for name, colour in _COLOURS.items():
        _plot(
            axes,
            _curve(evaluations, name, "loss"),
            "o-",
            color=colour,
            label=f"{_NAMES[name]} slice",
        )
    axes.set_ylabel("loss (cross-entropy per id)")
    axes.set_title("Loss, teacher-forced")
    axes.set_ylim(bottom=0)


def _draw_accuracy(
    axes: Axes, steps: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> None:
    label = "training batches, teacher-forced"
    _plot(axes, _curve(steps, "action_accuracy"), "-", color="tab:gray", label=label)
    for name, colour in _COLOURS.items():
        free = _curve(evaluations, name, "free_running", "accuracy")
        _plot(axes, free, "o-", color=colour, label=f"{_NAMES[name]} slice, free-running")
        for baseline, style in (("constant", ":"), ("previous", "--")):
            _, levels = _curve(evaluations, name, baseline, "accuracy")
            if levels:  # the slice is the same in every evaluation, and so are its baselines
                text = f"{_NAMES[name]} slice, {_BASELINES[baseline]}"
                axes.axhline(levels[-1], linestyle=style, linewidth=1, color=colour, label=text)
    axes.set_ylabel("share of ids that are right")
    axes.set_title("Token accuracy")
    axes.set_ylim(0, 1)


def _plot(axes: Axes, curve: tuple[list[int], list[float]], style: str, **how: Any) -> None:
    """Draw a curve that has points."""
    if curve[0]:
        axes.plot(*curve, style, linewidth=1, markersize=4, **how)


def _curve(lines: Sequence[Mapping[str, Any]], *keys: str) -> tuple[list[int], list[float]]:
    """Return steps and values where a nested figure is known."""
    xs, ys = [], []
    for line in lines:
        value: Any = line
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, (int, float)):
            xs.append(int(line["step"]))
            ys.append(float(value))
    return xs, ys
