"""`python -m openvla_ros.training.bench`: every case in a process of its own, then the verdict.

A case that fails or takes too long costs no other one, and what is known is on disk after each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import openvla_ros
from openvla_ros.engine.bench.machine import describe_machine
from openvla_ros.model.runtime_choices import choose_device
from openvla_ros.training.bench.cases import CASES, measure

_ROOT = Path(openvla_ros.__file__).resolve().parents[1]
_MODULE = "openvla_ros.training.bench"
_ERROR_CHARACTERS = 2000
_SHORTEST_CASE_S = 20.0
Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Target:
    """One figure to reach.

    Attributes:
        text: What it is, with its bound.
        value: Cases → the figure, or None when it was not measured.
        is_met: Whether a figure is good enough.
    """

    text: str
    value: Callable[[Results], float | None]
    is_met: Callable[[float], bool]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases and print what came out; 0 when every case ran."""
    options = _parser().parse_args(arguments)
    profile = "tiny" if options.tiny else "7b"
    device, _ = choose_device("cpu" if options.tiny else options.device)
    if options.case:
        (case,) = (case for case in CASES if case.name == options.case)
        found = measure(case, profile, device, options.steps, options.warmup)
        options.json.write_text(json.dumps(found), encoding="utf-8")
        return 0
    report: dict[str, Any] = {
        "profile": profile,
        "machine": describe_machine(device),
        "arguments": {k: str(v) for k, v in vars(options).items()},
        "cases": {},
    }
    end = time.monotonic() + options.deadline_s
    for case in CASES:
        if options.only and case.name not in options.only:
            continue
        limit = min(options.case_s, end - time.monotonic())
        print(f"{case.name}: {case.what} ...", flush=True)
        found = _run_child(case.name, options, limit)
        report["cases"][case.name] = {**asdict(case), **found}
        if not options.tiny:  # tiny models say nothing about the targets
            report["targets"] = _judge(report["cases"])
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
        print(f"  {_describe(found)}", flush=True)
    for line in report.get("targets", []):
        print(f"{line['verdict']:>12}  {line['text']}: {line['figure']}")
    return int(any("error" in case for case in report["cases"].values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU, as a check")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--steps", type=int, default=12, help="timed steps per case")
    parser.add_argument("--warmup", type=int, default=4, help="steps before them")
    parser.add_argument("--case-s", type=float, default=180.0, help="longest time of a case, s")
    parser.add_argument("--deadline-s", type=float, default=540.0, help="of all cases, s")
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=(), help="these cases")
    parser.add_argument("--case", choices=names, help=argparse.SUPPRESS)
    return parser


def _run_child(name: str, options: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """Return what a case measured, or {"error": why it did not}."""
    if limit_s < _SHORTEST_CASE_S:
        return {"error": "no time was left (--deadline-s)"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "case.json"
        command = [sys.executable, "-m", _MODULE, "--case", name, "--json", str(out)]
        command += ["--steps", str(options.steps), "--warmup", str(options.warmup)]
        command += ["--tiny"] if options.tiny else ["--device", options.device]
        try:
            done = subprocess.run(
                command, cwd=_ROOT, capture_output=True, text=True, timeout=limit_s
            )
        except subprocess.TimeoutExpired:
            return {"error": f"took longer than {limit_s:.0f} s"}
        if done.returncode or not out.exists():
            last = done.stderr.strip()[-_ERROR_CHARACTERS:]
            return {"error": f"exit code {done.returncode}: {last}"}
        return json.loads(out.read_text(encoding="utf-8"))


def _judge(cases: Results) -> list[dict[str, str]]:
    """Return each target with its figure and whether it is met."""
    lines = []
    for target in TARGETS:
        value = target.value(cases)
        verdict = "not measured" if value is None else ("met" if target.is_met(value) else "MISSED")
        figure = "-" if value is None else f"{value:.2f}"
        lines.append({"text": target.text, "figure": figure, "verdict": verdict})
    return lines


def _speedup(name: str) -> Callable[[Results], float | None]:
    def value(cases: Results) -> float | None:
        speeds = [cases.get(case, {}).get("samples_per_s") for case in (name, "reference")]
        return speeds[0] / speeds[1] if speeds[0] and speeds[1] else None

    return value


def _peak(name: str) -> Callable[[Results], float | None]:
    return lambda cases: cases.get(name, {}).get("peak_gb")


TARGETS = (
    Target("ours / reference, samples per second, >= 1.5", _speedup("ours"), lambda v: v >= 1.5),
    Target(
        "ours compiled / reference, samples per second, >= 1.5",
        _speedup("ours_compiled"),
        lambda v: v >= 1.5,
    ),
    Target("LoRA, batch 16, peak GB, <= 60", _peak("ours"), lambda v: v <= 60),
    Target("LoRA, batch 1, peak GB, <= 20", _peak("ours_batch_1"), lambda v: v <= 20),
    Target("QLoRA, batch 1, peak GB, <= 12", _peak("qlora_batch_1"), lambda v: v <= 12),
)


def _describe(found: Mapping[str, Any]) -> str:
    if "error" in found:
        return f"FAILED, {found['error']}"
    memory = f", peak {found['peak_gb']:.1f} GB" if "peak_gb" in found else ""
    return f"{found['samples_per_s']:.2f} samples/s{memory}"
