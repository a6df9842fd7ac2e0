"""A report as pictures. Needs matplotlib, which nothing else of this package does."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openvla_ros.errors import DependencyError

_STAGES = ("copy_ms", "towers_ms", "prefill_ms", "decode_ms")
_DPI = 110
_OURS, _THEIRS, _FLOOR = "#2a6f97", "#9aa5b1", "#c1121f"
_BINS = 8


def require_matplotlib() -> None:
    """Return if pictures can be drawn.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise DependencyError(
            "Plots need matplotlib, which is not installed: pip install '.[plots]' in the folder "
            "of openvla_ros, or leave --plots out."
        ) from error
    matplotlib.use("Agg")  # no window, whatever the machine has


def draw_plots(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the report's pictures and return their paths.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    require_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"latency": _latency(report["variants"]), "stages": _stages(report["variants"])}
    if "drafts" in report:
        drawn["drafts"] = _drafts(report["drafts"]["latency"])
    if "variants" in report.get("margins", {}):
        drawn["margins"] = _margins(report["margins"]["variants"])
    paths = []
    for name, figure in drawn.items():
        if figure is not None:
            figure.axes[0].set_title(_what(report), fontsize="small")
            path = folder / f"{report['plan']['profile']}_{name}.png"
            figure.savefig(path, dpi=_DPI, bbox_inches="tight")
            paths.append(path)
    return paths


def _what(report: Mapping[str, Any]) -> str:
    """A picture that is passed on alone says what was measured."""
    machine, plan = report["machine"], report["plan"]
    where = machine.get("gpu") or f"{machine['cores']} cores of {machine['cpu']}"
    return f"profile {plan['profile']}, {plan['dtype']}, {where}"


def _axes(rows: int) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(7.5, 1.2 + 0.35 * rows)).subplots()


def _colour(name: str) -> str:
    return _THEIRS if name.startswith("hf") else _OURS


def _latency(variants: Mapping[str, Any]) -> Any:
    """Bars of p50 with p99 as a whisker, and each variant's floor as a mark."""
    names = list(variants)[::-1]
    axes = _axes(len(names))
    p50 = [variants[name]["p50_ms"] for name in names]
    tails = [variants[name]["p99_ms"] - variants[name]["p50_ms"] for name in names]
    axes.barh(
        names,
        p50,
        xerr=[[0.0] * len(names), tails],
        color=[_colour(name) for name in names],
        ecolor="black",
        capsize=2,
    )
    floors = [variants[name]["floor_ms"] for name in names]
    axes.plot(floors, names, "|", color=_FLOOR, markersize=14, label="floor")
    axes.set_xlabel("ms per action: p50, whisker to p99")
    axes.legend(loc="lower right")
    return axes.figure


def _stages(variants: Mapping[str, Any]) -> Any:
    """Stacked medians of the stages, of the variants that tell them."""
    names = [name for name in variants if variants[name]["stages_ms"]][::-1]
    if not names:
        return None
    axes = _axes(len(names))
    left = [0.0] * len(names)
    for stage in _STAGES:
        widths = [variants[name]["stages_ms"].get(stage, 0.0) for name in names]
        axes.barh(names, widths, left=left, label=stage.removesuffix("_ms"))
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_xlim(left=0)
    axes.set_xlabel("ms per action, median of each stage")
    axes.legend(loc="lower right", ncols=4)
    return axes.figure


def _drafts(points: list[Mapping[str, Any]]) -> Any:
    """Latency by accepted draft ids, with plain decoding as a line across."""
    axes = _axes(8)
    curve = [(p["right_drafts"], p["p50_ms"]) for p in points if isinstance(p["right_drafts"], int)]
    axes.plot(*zip(*curve, strict=True), "o-", color=_OURS, label="draft verified in the prefill")
    others = {"plain": "plain decoding", "all, guard off": "all right, without the margin's guard"}
    for point, style in zip(
        [p for p in points if p["right_drafts"] in others], ("--", ":"), strict=False
    ):
        axes.axhline(
            point["p50_ms"], linestyle=style, color="black", label=others[point["right_drafts"]]
        )
    axes.set_xlabel("right ids at the beginning of the draft (chosen by the benchmark)")
    axes.set_ylabel("p50 ms per action")
    axes.set_ylim(bottom=0)
    axes.legend()
    return axes.figure


def _margins(variants: Mapping[str, Any]) -> Any:
    """Share of ids that differ from float32's, by float32's margin."""
    largest = 1.001 * max(point[0] for v in variants.values() for point in v["points"])
    edges = [largest * (i / _BINS) ** 2 for i in range(_BINS + 1)]  # narrow where it matters
    axes = _axes(8)
    for name, v in variants.items():
        middles, shares = [], []
        for low, high in itertools.pairwise(edges):
            same = [point[1] for point in v["points"] if low <= point[0] < high]
            if same:
                middles.append((low + high) / 2)
                shares.append(1 - sum(same) / len(same))
        axes.plot(middles, shares, ".-", label=name)
    axes.set_xlabel("float32's margin between the two highest logits")
    axes.set_ylabel("share of ids that are not float32's")
    axes.legend(fontsize="small")
    return axes.figure
