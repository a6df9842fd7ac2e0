"""A process for each variant, where the memory does not hold several.

Each round visits every variant, as in one process, but each visit builds the model again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import openvla_ros
from openvla_ros.engine.bench.catalogue import Entry, Setting
from openvla_ros.engine.bench.floors import bytes_per_weight
from openvla_ros.engine.bench.measure import Measured
from openvla_ros.engine.bench.memory import Memory
from openvla_ros.engine.bench.plan import Plan
from openvla_ros.engine.bench.session import DRAFTED, Session, setting_of

_MODULE = "openvla_ros.engine.bench"
_ROOT = Path(openvla_ros.__file__).resolve().parents[1]
_SHARE_OF_FREE = 0.9
_GB = 1e9


class SeparateSessions:
    """The same as `Session`, with every variant in a process of its own.

    Args:
        plan: What to measure.
        log: Told of every step.
    """

    def __init__(self, plan: Plan, log: Callable[[str], None]) -> None:
        self.plan = plan
        self.log = log
        self.measured: dict[str, Measured] = {}
        self.failed: dict[str, str] = {}
        self._names: list[str] = []
        self._drafts: dict[str, Any] | None = None

    def prepare(self, entries: Sequence[Entry]) -> None:
        """Remember which variants to visit."""
        self._names = [entry.name for entry in entries]

    def rounds(self) -> Iterator[int]:
        """Visit every variant once per round; yield after each."""
        for i in range(self.plan.amounts.rounds):
            for name in self._names:
                if name in self.failed:
                    continue
                self._visit(name, first=i == 0)
            yield i

    def drafts(self) -> dict[str, Any] | None:
        """Return what the engine's process found about drafts."""
        return self._drafts

    def busy(self) -> None:
        """Nothing: latencies beside busy cores are measured in one process only."""

    def release(self) -> None:
        """Nothing is held."""

    def _visit(self, name: str, *, first: bool) -> None:
        drafts = self.plan.amounts.draft_images if first and name == DRAFTED else 0
        amounts = replace(
            self.plan.amounts, rounds=1, draft_images=drafts, margin_images=0, busy_cores=0
        )
        plan = replace(self.plan, only=(name,), skip=(), processes="shared", amounts=amounts)
        found = _run_child(plan)
        if name in found["failed"]:
            self.failed[name] = found["failed"][name]
            self.log(f"{name} failed: {self.failed[name]}")
            return
        measured = Measured(**found["measured"][name])
        if name in self.measured:
            known = self.measured[name]
            known.times_ms += measured.times_ms
            known.stages_ms += measured.stages_ms
        else:
            self.measured[name] = measured
        self._drafts = found["drafts"] or self._drafts
        p50 = self.measured[name].summary()["p50_ms"]
        self.log(f"{name}: p50 {p50:.1f} ms, built in {measured.cold_start['build_s']:.1f} s")


def run_child(plan: Plan, entries: Sequence[Entry]) -> dict[str, Any]:
    """Return everything that a process of its own found, for `SeparateSessions` to read."""
    session = Session(plan, setting_of(plan), lambda text: None)
    session.prepare(entries)
    for _ in session.rounds():
        pass
    drafts = session.drafts()
    measured = {name: found.as_dict() for name, found in session.measured.items()}
    return {"measured": measured, "failed": session.failed, "drafts": drafts}


def choose_processes(plan: Plan, setting: Setting, entries: Sequence[Entry]) -> tuple[bool, str]:
    """Return whether each variant gets a process of its own, and why."""
    if plan.processes != "auto":
        return plan.processes == "separate", "requested"
    parameters = setting.parameters
    whole = parameters * setting.dtype.itemsize
    needed = whole * (1 + any(entry.weights == "shared" for entry in entries))  # 1: being built
    for entry in entries:
        if entry.weights != "shared":
            needed += round(parameters * bytes_per_weight(entry.kind, setting.dtype))
    free = Memory(setting.device).free()
    why = f"all variants together need {needed / _GB:.1f} GB, {free / _GB:.1f} GB are free"
    return bool(free) and needed > _SHARE_OF_FREE * free, why


def _run_child(plan: Plan) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "found.json")
        command = [sys.executable, "-m", _MODULE, "--child", json.dumps(plan.as_dict())]
        done = subprocess.run(
            [*command, "--json", str(out)],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return json.loads(out.read_text(encoding="utf-8"))
    last = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
    name = plan.only[0]
    how = f"its process ended with {done.returncode}"
    if done.returncode < 0:
        how += " (killed; -9 is what the system does when memory runs out)"
    return {"measured": {}, "failed": {name: f"{how}: {last}"}, "drafts": None}
