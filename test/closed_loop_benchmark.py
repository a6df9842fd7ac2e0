#!/usr/bin/env python3
"""Measure how often a policy does what it is told in the simulated cell, and write the document.

    python test/closed_loop_benchmark.py --out FOLDER --document docs/benchmarks/closed_loop.md

Every measurement is one call of `openvla-ros sim eval`. What is finished, with the same options and
the same weights, is not repeated. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measured_document import ROOT, origin

from openvla_ros.data.fingerprint import fingerprint
from openvla_ros.model.checkpoint import resolve_checkpoint

#: Parameters of the node for the rows that execute late answers too.
LATE_FILE = "late.yaml"
LATE = "openvla_node:\n  ros__parameters:\n    max_action_age: 1.5\n"
#: Name of a measurement → its options; the long ones first, so that two at a time end together.
MEASUREMENTS: Mapping[str, str] = {
    "pick": "--task pick --episodes 100 --through ros",
    "pick_swapped": "--task pick --episodes 50 --swap-instruction",
    "black": "--episodes 50 --black-image",
    "latency": "--episodes 30 --latency-ms 0,100,200,400,600,1000",
    "modes": "--episodes 30 --mode stretch,exact,hold --latency-ms 0,300",
    "late": f"--episodes 30 --latency-ms 800,1000 --params-file {LATE_FILE}",
    "ros": "--episodes 100 --through ros",
    "process": "--episodes 100",
    "swapped": "--episodes 100 --swap-instruction",
    "dtype": "--episodes 30 --dtype float32,bfloat16",
    "low_bit": "--episodes 30 --quantization int8,int4",
    "constant": "--episodes 100 --policy constant",
    "nearest": "--episodes 100 --policy nearest",
    "expert": "--episodes 100 --policy expert",
    "expert_reach": "--task reach --episodes 100 --policy expert --through ros",
    "expert_push": "--task push --episodes 100 --policy expert --through ros",
    "expert_pick": "--task pick --episodes 100 --policy expert --through ros",
    "expert_place": "--task place --episodes 100 --policy expert --through ros",
}
#: Of the expert: those that are not measured have no row.
CEILING = {f"expert_{task}": task for task in ("reach", "push", "pick", "place")}
FOLLOWS = {
    "ros": "through ROS topics",
    "process": "in process",
    "swapped": "another block is named",
    "black": "black pictures",
    "nearest": "the nearest block, whatever the text",
    "constant": "the expert's mean action",
    "expert": "the expert, which sees the state",
}
PICKS = {"pick": "through ROS topics", "pick_swapped": "in process, another block is named"}
DOCUMENT = Path(__file__).with_name("closed_loop_benchmark_document.md")
PLOTS = "plots"
RAW = "raw/closed_loop.json"
_OURS, _LATE = "#2a6f97", "#c1121f"
_DPI = 110


def main() -> None:
    """Measure what is asked for and not yet there; write the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--checkpoint", default="openvla-tiny")
    parser.add_argument("--measurements", default=",".join(MEASUREMENTS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    parser.add_argument("--document", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / LATE_FILE).write_text(LATE, encoding="utf-8")
    run = Run(given.out, given.checkpoint)
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(run.measure, given.measurements.split(",")))
    if given.document:
        found = {name: rows for name in MEASUREMENTS if (rows := run.read(name))}
        missing = [name for name in MEASUREMENTS if name not in found and name not in CEILING]
        if missing:
            sys.exit(f"not measured yet: {', '.join(missing)}")
        write_document(given.document, found)


class Run:
    """A folder of results of one checkpoint."""

    def __init__(self, out: Path, checkpoint: str) -> None:
        self._out = out
        is_folder = Path(checkpoint).is_dir()
        self._checkpoint = str(Path(checkpoint).resolve()) if is_folder else checkpoint
        self._weights = fingerprint(resolve_checkpoint(checkpoint))

    def measure(self, name: str) -> None:
        """Run one measurement, unless it is finished."""
        if self.read(name) is not None:
            print(f"{name}: finished before", flush=True)
            return
        start = time.perf_counter()
        threads = os.environ.get("OMP_NUM_THREADS", "1")
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": _python_path()}
        command = [sys.executable, "-m", "openvla_ros.cli", *self._options(name)]
        log = self._out / f"{name}.log"
        with log.open("w", encoding="utf-8") as told:
            code = subprocess.call(
                command, stdout=told, stderr=told, cwd=self._out, env=environment
            )
        if code:
            sys.exit(f"{name} failed: {log}")
        (self._out / _part(name)).replace(self._out / f"{name}.json")
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)

    def read(self, name: str) -> list[dict[str, Any]] | None:
        """Return the rows of a measurement; None when it is not finished, or was another one."""
        path = self._out / f"{name}.json"
        if not path.exists():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        rows: list[dict[str, Any]] = found.get("rows", [found])
        weights = {row["policy"].get("fingerprint", self._weights) for row in rows}
        is_same = rows[0]["command"] == shlex.join(["openvla-ros", *self._options(name)])
        return rows if is_same and weights == {self._weights} else None

    def _options(self, name: str) -> list[str]:
        given = ["--checkpoint", self._checkpoint, *shlex.split(MEASUREMENTS[name])]
        return ["sim", "eval", *given, "--out", _part(name)]


def _part(name: str) -> str:
    return f"{name}.part"


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


# The document -----------------------------------------------------------------------------------


def write_document(path: Path, found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Write the page, its plots, and the numbers without the single episodes."""
    policy, versions = found["ros"][0]["policy"], found["ros"][0]["versions"]
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("torch", "numpy"))
    text = DOCUMENT.read_text(encoding="utf-8").format(
        origin=origin(0, libraries),
        checkpoint=policy["checkpoint"],
        fingerprint=policy["fingerprint"][:16],
        follows="\n".join(follows_row(FOLLOWS[n], found[n][0]) for n in FOLLOWS),
        colours="\n".join(group_rows(found["ros"][0]["per_colour"])),
        pick="\n".join(follows_row(PICKS[n], found[n][0]) for n in PICKS),
        latency="\n".join(loop_row(row) for row in [*found["latency"], *found["late"]]),
        quantization="\n".join(weights_row(row) for row in quantized(found)),
        modes="\n".join(loop_row(row) for row in found["modes"]),
        expert="\n".join(
            expert_row(task, found[name][0]) for name, task in CEILING.items() if name in found
        ),
        command_ceiling="\n".join(command_of(name) for name in CEILING if name in found),
        late=LATE.rstrip(),
        **{f"command_{name}": command_of(name) for name in MEASUREMENTS},
    )
    path.write_text(text, encoding="utf-8")
    plots = path.parent / PLOTS
    plots.mkdir(exist_ok=True)
    plot_latency(found, plots / "closed_loop_latency.png")
    plot_quantization(found, plots / "closed_loop_quantization.png")
    raw = {name: [_without_episodes(row) for row in rows] for name, rows in found.items()}
    text = json.dumps(raw, indent=1).replace(str(Path.home()), "~")  # of nobody's machine
    (path.parent / RAW).write_text(text + "\n", encoding="utf-8")


def command_of(name: str) -> str:
    """Return the command of a measurement."""
    return f"openvla-ros sim eval {MEASUREMENTS[name]}"


def follows_row(name: str, row: Mapping[str, Any]) -> str:
    """Return one line of the table of what is followed."""
    went = row["went_to"]
    original = went["original"] if row["swapped_instructions"] else "-"
    first = [went["named"], original, went["other"], went["none"]]
    return _line(name, _success(row), _interval(row), _steps(row), *first, _nearest(row))


def expert_row(task: str, row: Mapping[str, Any]) -> str:
    """Return one line of the table of the expert."""
    return _line(task, _success(row), _interval(row), _steps(row))


def group_rows(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one line for each colour."""
    return [_line(name, _success(row), _interval(row)) for name, row in groups.items()]


def loop_row(row: Mapping[str, Any]) -> str:
    """Return one line of the tables of latencies and modes."""
    refused = sum(row["refused_answers"].values())
    return _line(
        f"{row['latency_ms']:g}",
        row["twist_mode"],
        f"{row['node_parameters'].get('max_action_age', 0.6):g}",
        _success(row),
        _interval(row),
        _steps(row),
        f"{refused} of {row['answers']}",
    )


def weights_row(row: Mapping[str, Any]) -> str:
    """Return one line of the table of number formats."""
    return _line(weights_name(row), _success(row), _interval(row), _steps(row))


def weights_name(row: Mapping[str, Any]) -> str:
    """Return in which numbers a policy was computed."""
    policy = row["policy"]
    quantization = policy["quantization"]
    dtype = policy["choices"]["dtype"].split(":")[0]
    return str(dtype) if quantization == "none" else f"{quantization} (rest {dtype})"


def quantized(found: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of number formats."""
    return [*found["dtype"], *found["low_bit"]]


def plot_latency(found: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw success against latency."""
    figure = _figure()
    axes = figure.subplots()
    curves = (("latency", _OURS, "max_action_age 0.6 s"), ("late", _LATE, "max_action_age 1.5 s"))
    for name, colour, label in curves:
        rows = found[name]
        at = [row["latency_ms"] for row in rows]
        axes.errorbar(at, *_bars(rows), fmt="o-", color=colour, capsize=3, label=label)
    axes.axvline(600, linestyle=":", color="black")
    axes.set(xlabel="from picture to answer [ms]", ylabel="success", ylim=(-0.03, 1.03))
    axes.legend()
    figure.savefig(path, dpi=_DPI, bbox_inches="tight")


def plot_quantization(found: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw success against the number format of the weights."""
    figure, rows = _figure(), quantized(found)
    axes = figure.subplots()
    rates, errors = _bars(rows)
    axes.bar([weights_name(row) for row in rows], rates, yerr=errors, color=_OURS, capsize=4)
    axes.set(ylabel="success", ylim=(0.0, 1.03))
    figure.savefig(path, dpi=_DPI, bbox_inches="tight")


def _figure() -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(6.5, 3.6))


def _bars(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[list[float]]]:
    """Success rates, and how far Wilson's interval goes below and above."""
    rates = [row["success_rate"] for row in rows]
    below = [max(row["success_rate"] - row["interval"][0], 0.0) for row in rows]
    above = [max(row["interval"][1] - row["success_rate"], 0.0) for row in rows]
    return rates, [below, above]


def _without_episodes(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "results"}


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _success(row: Mapping[str, Any]) -> str:
    return f"{row['successes']} of {row['episodes']}"


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def _steps(row: Mapping[str, Any]) -> str:
    steps = row["mean_steps_to_success"]
    return "-" if steps is None else f"{steps:.1f}"


def _nearest(row: Mapping[str, Any]) -> str:
    return f"{row['nearest_share']:.0%}"


if __name__ == "__main__":
    main()
