"""What `openvla-ros sim eval` shows: a row for each trial, or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from openvla_ros.cli.output import print_json, wide_console


def show(reports: Sequence[dict[str, Any]], out: Path | None, *, as_json: bool) -> None:
    """Print the reports, and write them to `out`: one as it is, several as `rows`."""
    document = reports[0] if len(reports) == 1 else {"rows": list(reports)}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        print_json(document)
        return
    console = wide_console()
    console.print(_table(reports))
    if len(reports) == 1:
        console.print(_groups(reports[0]))
    if out is not None:
        console.print(f"[bold]{escape(str(out))}[/]", soft_wrap=True)


def _table(reports: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Closed loop, simulated cell", title_justify="left")
    table.add_column("policy", overflow="fold")
    for name in ("task", "quantization", "dtype", "mode"):
        table.add_column(name)
    for name in ("latency", "success", "95 % interval", "steps", "nearest", "went to"):
        table.add_column(name, justify="right")
    for made in reports:
        policy, (low, high) = made["policy"], made["interval"]
        name = policy.get("checkpoint", policy["kind"])
        marks = [" black"] * bool(policy.get("black_image"))
        marks += [" swapped"] * made["swapped_instructions"]
        steps = made["mean_steps_to_success"]
        table.add_row(
            escape(name + "".join(marks)),
            made["task"],
            policy.get("quantization", "-"),
            policy.get("dtype", "-"),
            made["twist_mode"],
            f"{made['latency_ms']:g} ms",
            f"{made['successes']}/{made['episodes']}",
            f"{low:.0%} to {high:.0%}",
            "-" if steps is None else f"{steps:.1f}",
            f"{made['nearest_share']:.0%}",
            _went_to(made["went_to"]),
        )
    return table


def _went_to(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _groups(made: dict[str, Any]) -> Table:
    table = Table(title="By colour and instruction", title_justify="left")
    table.add_column("told")
    table.add_column("success", justify="right")
    table.add_column("95 % interval", justify="right")
    for groups in (made["per_colour"], made["per_instruction"]):
        for name, found in groups.items():
            low, high = found["interval"]
            table.add_row(
                name, f"{found['successes']}/{found['episodes']}", f"{low:.0%} to {high:.0%}"
            )
        table.add_section()
    return table
