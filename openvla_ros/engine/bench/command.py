"""The command: what it is told, and where its answer goes.

Needs torch, transformers, numpy and Pillow; nothing is downloaded. Plots need matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from openvla_ros.engine.bench.catalogue import catalogue, choose
from openvla_ros.engine.bench.comparison import compare
from openvla_ros.engine.bench.plan import PROCESSES, PROFILES, Amounts, Plan, make_plan
from openvla_ros.engine.bench.plots import draw_plots, require_matplotlib
from openvla_ros.engine.bench.processes import run_child
from openvla_ros.engine.bench.report import markdown
from openvla_ros.engine.bench.session import setting_of
from openvla_ros.errors import OpenVLAError
from openvla_ros.model.runtime_choices import choose_device

_DESCRIPTION = (
    "Latency, memory and equality of ids of this engine beside Hugging Face's, bitsandbytes' and "
    "torchao's, on random weights, in one run."
)
_STDOUT = "-"


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Measure, write and print; return the exit code.

    Args:
        arguments: Of the command; None means those of this process.
        program: What the help calls it.
    """
    options = _parser(program).parse_args(arguments)
    try:
        return _run(options)
    except OpenVLAError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _parser(program: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=_DESCRIPTION)
    parser.add_argument("--profile", choices=PROFILES, default="tiny")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="leave out others")
    parser.add_argument("--skip", nargs="+", default=[], metavar="VARIANT", help="leave these out")
    parser.add_argument("--list", action="store_true", help="print the variants, and stop")
    parser.add_argument(
        "--processes",
        choices=PROCESSES,
        default="auto",
        help="all variants in one process, in turns, or one for each; auto: as memory allows",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything here; - prints it")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write tables here")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw PNGs (needs matplotlib)")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # a plan: one variant of a whole run
    amounts = parser.add_argument_group("amounts", "Defaults depend on profile and device.")
    for item in fields(Amounts):
        amounts.add_argument("--" + item.name.replace("_", "-"), type=int, metavar="N")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.child:
        plan = Plan.from_dict(json.loads(options.child))
        entries, _ = choose(setting_of(plan), plan.only, plan.skip)
        _write(Path(options.json), json.dumps(run_child(plan, entries)))
        return 0
    device, _ = choose_device(options.device)
    given = {item.name: getattr(options, item.name) for item in fields(Amounts)}
    plan = make_plan(
        options.profile,
        device,
        options.dtype,
        only=tuple(options.only),
        skip=tuple(options.skip),
        processes=options.processes,
        amounts={name: value for name, value in given.items() if value is not None},
    )
    if options.list:
        _list(plan)
        return 0
    if options.plots:
        require_matplotlib()  # before minutes of measuring

    def save(report: Mapping[str, Any]) -> None:
        if options.json and options.json != _STDOUT:
            _write(Path(options.json), json.dumps(report, indent=1) + "\n")

    report = compare(plan, lambda text: print(text, file=sys.stderr, flush=True), save)
    if options.markdown:
        _write(options.markdown, markdown(report))
    if options.plots:
        draw_plots(report, options.plots)
    print(json.dumps(report, indent=1) if options.json == _STDOUT else markdown(report))
    return 0


def _list(plan: Plan) -> None:
    setting = setting_of(plan)
    for entry in catalogue():
        why = entry.why_not(setting)
        print(f"{entry.name}: {entry.how}" + (f" [left out here: {why}]" if why else ""))


def _write(path: Path, text: str) -> None:
    """Replace a file's text at once: a reader never finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
