"""`openvla-ros doctor`: what is here, what will be chosen and why, what stands in the way."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from openvla_ros.cli.doctor_checks import (
    checkpoint_findings,
    choice_findings,
    hardware_findings,
    software_findings,
    stored_parameter_count,
)
from openvla_ros.cli.doctor_policy import policy_findings
from openvla_ros.cli.output import print_json, wide_console
from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.diagnosis import ros_findings
from openvla_ros.types import Finding

MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]note[/]", "problem": "[bold red]PROBLEM[/]"}


def doctor(
    checkpoint: Annotated[str, typer.Option(help="Also look at this folder or hub id.")] = "",
    run: Annotated[
        bool, typer.Option("--run", help="Load the checkpoint and answer a few made-up frames.")
    ] = False,
    quantization: Annotated[
        str, typer.Option(help="With --run: none, fp8, int8, int4, nf4 or bnb_int8.")
    ] = "none",
    exactness: Annotated[str, typer.Option(help="With --run: self, hf or approx.")] = "self",
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False,
) -> None:
    """Check this machine; exit code 1 when something prevents running the policy."""
    if run and not checkpoint:
        raise ConfigurationError("--run needs --checkpoint: the folder or hub id to load.")
    findings = [
        *software_findings(),
        *hardware_findings(),
        *choice_findings(stored_parameter_count(checkpoint) if checkpoint else 0),
        *ros_findings(),
        *(checkpoint_findings(checkpoint) if checkpoint else []),
        *(policy_findings(checkpoint, quantization, exactness) if run else []),
    ]
    problems = [finding for finding in findings if finding.level == "problem"]
    if as_json:
        print_json({"usable": not problems, "findings": [asdict(item) for item in findings]})
    else:
        _print_tables(findings, problems)
    if problems:
        raise typer.Exit(1)


def _print_tables(findings: list[Finding], problems: list[Finding]) -> None:
    console = wide_console()
    for section in dict.fromkeys(finding.section for finding in findings):
        table = Table(title=section, title_justify="left", show_header=False, expand=True)
        table.add_column(style="bold", no_wrap=True, max_width=34)
        table.add_column(overflow="fold", ratio=2)
        table.add_column(overflow="fold", ratio=3, style="dim")
        table.add_column(no_wrap=True, justify="right")
        for item in findings:
            if item.section == section:
                row = (item.item, item.value, item.reason)
                table.add_row(*map(escape, row), MARKS[item.level])
        console.print(table)
    for item in problems:
        text = f"{item.item}: {item.value}. {item.reason}"
        console.print(f"[bold red]Prevents running:[/] {escape(text)}", soft_wrap=True)
    if not problems:
        console.print("[green]Nothing prevents running.[/]")
