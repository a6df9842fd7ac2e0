"""Runs a cell with a 30 Hz VGA camera, and measures what it costs and how steady the twist is.

    python test/load_run.py --duration 600                            # or: make load
    python test/load_run.py --duration 600 --document docs/benchmarks/faults.md

Exit code 0: no frame lost on its way, no gap in the twist at which MoveIt Servo would stop, memory
flat.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import conftest  # noqa: F401  gives this process a ROS domain of its own
import numpy as np
from fault_report import write_document
from fault_run import work_folder
from process_cell import Cell
from process_usage import Usage, percentiles, processes_of, remove_segments, usage_of

from openvla_ros.messages import stamp_ns
from openvla_ros.sim.kinematic_arm import COMMAND_TIMEOUT_S

CAMERA_HZ = 30.0
PARAMETERS = {
    "mock_latency_s": 0.15,
    "mock_action": [0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
}
SETTLE_S = 5.0  # imports, discovery and first allocations belong to no load
SAMPLE_S = 1.0
WINDOW = 20  # samples
FLAT_KIB_PER_MIN = 200.0  # 12 MB in an hour; the images in flight make the slope uncertain by 50
SHORT_S = 300.0  # too short a run for a slope
LOST_FRACTION = 0.01


@dataclass
class Load:
    """What one run has given; times in seconds."""

    mode: str
    duration_s: float
    cpu: dict[str, float]  # share of one core
    memory: dict[str, tuple[float, float]]  # MiB at the end, KiB per minute
    ages_s: list[float]  # stamp of the image to answer
    periods_s: list[float]  # between twists, by their stamps
    stream_period_s: float
    frames_sent: int
    frames_received: int
    frames_replaced: int
    problems: list[str] = field(default_factory=list)


def run_load(mode: str, duration_s: float, folder: Path) -> Load:
    """Return what a moving cell does for some time."""
    with Cell(folder, split=mode == "split", rate_hz=CAMERA_HZ, **PARAMETERS) as cell:
        cell.start_all()
        time.sleep(SETTLE_S)
        load = measure(cell, mode, duration_s)
    load.problems += [f"process {pid} still lives" for pid in processes_of(folder)]
    remove_segments(cell.own_segments)
    judge(load)
    return load


def measure(cell: Cell, mode: str, duration_s: float) -> Load:
    """Watch for `duration_s`."""
    observer = cell.observer
    begin_s, begin = time.time(), time.monotonic()
    first = {role: usage_of(pid) for role, pid in cell.pids.items()}
    counted = observer.statuses[-1]
    samples: dict[str, list[tuple[float, Usage]]] = {role: [] for role in cell.roles}
    while time.monotonic() - begin < duration_s:
        time.sleep(SAMPLE_S)
        cell.check()
        for role, pid in cell.pids.items():
            samples[role].append((time.monotonic() - begin, usage_of(pid)))
    end_s, elapsed_s = time.time(), time.monotonic() - begin
    last = observer.statuses[-1]
    counted_s = (stamp_ns(last.header.stamp) - stamp_ns(counted.header.stamp)) * 1e-9
    stamps = [t.stamp_s for t in list(observer.twists) if begin_s <= t.stamp_s <= end_s]
    return Load(
        mode=mode,
        duration_s=elapsed_s,
        cpu={r: (samples[r][-1][1].cpu_s - first[r].cpu_s) / elapsed_s for r in cell.roles},
        memory={role: memory_trend(seen) for role, seen in samples.items()},
        ages_s=list(answer_ages(cell, begin_s)),
        periods_s=[b - a for a, b in itertools.pairwise(stamps)],
        stream_period_s=1.0 / cell.config.motion.stream_rate,
        frames_sent=round(counted_s * CAMERA_HZ),
        frames_received=last.frames_received - counted.frames_received,
        frames_replaced=last.frames_dropped - counted.frames_dropped,
    )


def memory_trend(seen: list[tuple[float, Usage]]) -> tuple[float, float]:
    """Return MiB at the end, and KiB per minute: the slope of the least in every 20 s.

    Images in flight come and go, 0.9 MB each; what is lost for ever lifts the least. The first
    quarter is left out: allocators fill their pools.
    """
    late = seen[len(seen) // 4 :]
    windows = [late[i : i + WINDOW] for i in range(0, len(late) - WINDOW + 1, WINDOW)]
    times = [float(np.mean([t for t, _ in window])) for window in windows]
    least = [min(u.memory_kib for _, u in window) for window in windows]
    slope = float(np.polyfit(times, least, 1)[0]) * 60.0 if len(windows) > 2 else float("nan")
    return seen[-1][1].memory_kib / 1024.0, slope


def answer_ages(cell: Cell, begin_s: float) -> Iterator[float]:
    """Age of every image when its answer was complete."""
    for action in list(cell.observer.actions):
        stamp, end = stamp_ns(action.header.stamp), stamp_ns(action.inference_end)
        if end * 1e-9 >= begin_s:
            yield (end - stamp) * 1e-9


def judge(load: Load) -> None:
    """Note what a robot would not forgive."""
    longest = max(load.periods_s, default=float("inf"))
    if longest >= COMMAND_TIMEOUT_S:
        load.problems.append(f"{longest:.3f} s between two twists: MoveIt Servo stops at 0.1 s")
    lost = load.frames_sent - load.frames_received
    if lost > LOST_FRACTION * load.frames_sent + CAMERA_HZ:  # the status is up to 0.5 s old
        load.problems.append(f"{lost} of {load.frames_sent} frames were lost on their way")
    if load.duration_s >= SHORT_S:
        load.problems += [
            f"the memory of {role} grows by {slope:.0f} KiB per minute"
            for role, (_, slope) in load.memory.items()
            if slope > FLAT_KIB_PER_MIN
        ]
    if not load.ages_s:
        load.problems.append("no image was answered")


def report(loads: list[Load]) -> str:
    """Return the numbers as Markdown."""
    names = [load.mode for load in loads]
    rows = [["", *names], ["---"] * (len(names) + 1)]
    rows.append(["duration", *(f"{load.duration_s:.0f} s" for load in loads)])
    for role in ("camera", "node", "streamer", "consumer"):
        if any(role in load.cpu for load in loads):
            rows.append([f"CPU of {role}, share of a core", *(_cpu(x, role) for x in loads)])
            rows.append([f"memory of {role}, slope", *(_memory(x, role) for x in loads)])
    rows += [
        ["answers", *(str(len(load.ages_s)) for load in loads)],
        ["image to action, p50 / p99", *(_ms(x.ages_s, 50, 99) for x in loads)],
        ["twist period, p50 / p99 / max", *(_ms(x.periods_s, 50, 99, 100) for x in loads)],
        ["off the period, p50 / p99 / max", *(_ms(jitter(x), 50, 99, 100) for x in loads)],
        ["frames sent (rate × time)", *(str(x.frames_sent) for x in loads)],
        ["frames received", *(str(x.frames_received) for x in loads)],
        ["of these replaced by a newer one", *(str(x.frames_replaced) for x in loads)],
    ]
    table = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(
        [*table, "", *(f"- {x.mode}: {p}" for x in loads for p in x.problems)]
    ).rstrip()


def jitter(load: Load) -> list[float]:
    """How far every period is from what it shall be."""
    return [abs(p - load.stream_period_s) for p in load.periods_s]


def _cpu(load: Load, role: str) -> str:
    return f"{100.0 * load.cpu[role]:.1f} %" if role in load.cpu else "–"


def _memory(load: Load, role: str) -> str:
    if role not in load.memory:
        return "–"
    size, slope = load.memory[role]
    trend = "too short for a slope" if load.duration_s < SHORT_S else f"{slope:+.0f} KiB/min"
    return f"{size:.0f} MiB, {trend}"


def _ms(values: list[float], *wanted: float) -> str:
    return " / ".join(f"{1000.0 * v:.1f}" for v in percentiles(values, *wanted)) + " ms"


def main() -> int:
    """Run the load, print the table; returns a process exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--duration", type=float, default=600.0, help="seconds, for each mode")
    parser.add_argument("--mode", choices=("single", "split", "both"), default="both")
    parser.add_argument("--logs", type=Path, help="keep the logs of the processes here")
    parser.add_argument("--document", type=Path, help="write the numbers into this file")
    options = parser.parse_args()
    modes = ["single", "split"] if options.mode == "both" else [options.mode]
    with work_folder(options.logs) as folder:
        loads = [run_load(mode, options.duration, folder.resolve() / mode) for mode in modes]
    text = report(loads)
    print(text)
    if options.document:
        write_document(options.document, "load", text)
    return 1 if any(load.problems for load in loads) else 0


if __name__ == "__main__":
    sys.exit(main())
