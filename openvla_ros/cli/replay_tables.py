"""What `openvla-ros replay` shows in a terminal: the report has the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from openvla_ros.cli.doctor import MARKS
from openvla_ros.cli.output import wide_console
from openvla_ros.types import Finding

#: Path in `metrics`, heading, unit word ("translation", "rotation", "%", "ms" or "").
_COLUMNS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("translation_error", "mean"), "translation", "translation"),
    (("rotation_error", "mean"), "rotation", "rotation"),
    (("direction_cosine", "mean"), "direction", ""),
    (("gripper", "f1"), "gripper F1", ""),
    (("tokens", "equal"), "tokens", "%"),
    (("clip_rate",), "clipped", "%"),
    (("invalid_rate",), "invalid", "%"),
    (("latency_ms", "p50"), "latency p50", "ms"),
    (("latency_ms", "p99"), "latency p99", "ms"),
)


def show_metrics(metrics: Mapping[str, Any]) -> None:
    """Print the figures of every variant with the baselines, comparisons and findings."""
    console = wide_console()
    steps = sum(source["steps"] for source in metrics["sources"])
    episodes = sum(source["episodes"] for source in metrics["sources"])
    table = Table(
        title=f"{episodes} episodes, {steps} steps: mean errors per step", title_justify="left"
    )
    table.add_column("", no_wrap=True)
    for _, heading, _unit in _COLUMNS:
        table.add_column(heading, justify="right")
    for name, variant in metrics["variants"].items():
        table.add_row(escape(name), *_cells(variant["metrics"], metrics["units"]), style="bold")
    first = next(iter(metrics["variants"].values()))
    for name, figures in first["baselines"].items():
        label = f"[dim]baseline: {name.replace('_', ' ')}[/]"
        table.add_row(label, *_cells(figures or {}, metrics["units"]), style="dim")
    console.print(table)
    _show_comparisons(metrics["comparisons"])
    show_findings([Finding(**finding) for finding in metrics["findings"]])


def show_findings(findings: Sequence[Finding]) -> None:
    """Print findings, problems first; what is well, and what cannot be judged, in a line each."""
    from openvla_ros.evaluation.diagnosis.evidence import not_judged

    console = wide_console()
    for level in ("problem", "warn"):
        for finding in findings:
            if finding.level == level:
                text = f"{finding.section}: {finding.item}: {finding.value}. {finding.reason}"
                console.print(f"{MARKS[level]} {escape(text)}", soft_wrap=True, highlight=False)
    unjudged = not_judged("", "").value
    well = [f for f in findings if f.level == "ok"]
    for heading, chosen in (
        (MARKS["ok"], [f.item for f in well if f.value != unjudged]),
        (f"[dim]{unjudged}:[/]", [f.item for f in well if f.value == unjudged]),
    ):
        if chosen:
            console.print(f"{heading} {escape(', '.join(dict.fromkeys(chosen)))}", soft_wrap=True)


def show_live(live: Mapping[str, Any]) -> None:
    """Print what the live node did with the frames."""
    ages = ", ".join(f"{name} {1000 * age:.0f} ms" for name, age in live["age_s"].items())
    drops = ", ".join(f"{reason} {count}" for reason, count in live["drop_reasons"].items())
    parts = (
        f"live: {live['answered']} of {live['images_in_bag']} images answered",
        f"age {ages or 'n/a'}",
        drops or "no answer",
        f"{live['equal']} of {live['compared']} equal to the offline replay",
    )
    wide_console().print("; ".join(parts), soft_wrap=True)


def _show_comparisons(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    table = Table(title="paired differences, 95 % interval", title_justify="left")
    for heading in ("metric", "variant", "difference", "interval", "verdict"):
        table.add_column(heading)
    for row in rows:
        interval = f"{_number(row['low'])} … {_number(row['high'])}"
        against = f"{row['variant']} - {row['reference']}"
        metric = row["metric"].replace("_", " ")
        cells = (metric, against, f"{_number(row['difference'])} {row['unit']}", interval)
        table.add_row(*map(escape, cells), escape(row["verdict"]))
    wide_console().print(table)


def _cells(figures: Mapping[str, Any], units: Mapping[str, str]) -> list[str]:
    return [_cell(_at(figures, path), units.get(unit, unit)) for path, _, unit in _COLUMNS]


def _at(figures: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = figures
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _cell(value: float | None, unit: str) -> str:
    if value is None:
        return "n/a"
    if unit == "%":
        return f"{100 * value:.1f} %"
    return f"{_number(value)} {unit}".strip()


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}"
