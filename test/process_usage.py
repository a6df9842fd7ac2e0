"""What a process holds, as /proc says it, and on which machine. Linux only."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MARK = "OPENVLA_ROS_CELL"  # environment variable that tells the processes of one run


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    threads: int
    descriptors: int
    memory_kib: int  # its own: shared memory belongs to all
    cpu_s: float


def usage_of(pid: int | str) -> Usage:
    """Return what a process holds now; `self` for this one."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return Usage(
        threads=int(status["Threads"]),
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208
        memory_kib=int(status["RssAnon"].split()[0]),
        cpu_s=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
    )


def is_stopped(pid: int) -> bool:
    """True when every thread of a process has been stopped."""
    states = [
        (task / "stat").read_text().rsplit(")", 1)[1].split()[0]
        for task in Path(f"/proc/{pid}/task").iterdir()
    ]
    return all(state == "T" for state in states)


def segments_of(pid: int) -> set[str]:
    """Files in /dev/shm that a process has mapped: all of them belong to its DDS domain."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/maps").read_text().split()
        return {w for w in words if w.startswith("/dev/shm/") and "fast" in w}
    return set()


def remove_segments(names: set[str]) -> int:
    """Remove segments that nobody maps any more; return how many there were.

    A process that is killed leaves its own behind.
    """
    in_use: set[str] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            in_use |= segments_of(int(entry.name))
    left = [Path(name) for name in names - in_use if Path(name).exists()]
    for path in left:
        for companion in (path, path.with_name(f"{path.name}_el")):
            companion.unlink(missing_ok=True)
    return len(left)


def processes_of(folder: Path) -> list[int]:
    """Processes that a run in this folder has started and that still live, zombies included."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def offset_s() -> float:
    """System time minus steady time: constant, unless somebody sets the clock."""
    return time.time() - time.monotonic()


def percentiles(values: list[float], *wanted: float) -> list[float]:
    """Percentiles of a list; NaN of an empty one."""
    return [float(np.percentile(values, p)) if values else float("nan") for p in wanted]


def machine() -> Mapping[str, str]:
    """What a table of numbers says about where it was made."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown CPU",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": str(os.cpu_count()), "memory": f"{memory:.0f} GiB"}
