"""The whole comparison: floors, every variant in turns, drafts, equality of ids.

The report grows as it goes and is handed out after every step: a run may be cut short.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from openvla_ros.engine.bench import tokens
from openvla_ros.engine.bench.catalogue import Entry, choose
from openvla_ros.engine.bench.floors import DEFINITION, Floor, floor_of, measure_rates
from openvla_ros.engine.bench.machine import describe_machine, gpu_state
from openvla_ros.engine.bench.memory import Memory
from openvla_ros.engine.bench.plan import Plan
from openvla_ros.engine.bench.processes import SeparateSessions, choose_processes
from openvla_ros.engine.bench.profiles import ACTION_DIM, HEAD_NOTE, PROMPT_IDS, random_model
from openvla_ros.engine.bench.session import DRAFTED, Session, setting_of

#: Whose ids the others are compared with: the first of these that was measured.
REFERENCES = ("hf_eager", "hf_sdpa", DRAFTED)
_FLOAT32_BYTES = 4
_ROOM = 1.2  # a float32 copy needs its weights and something to work with

Report = dict[str, Any]


def compare(
    plan: Plan, log: Callable[[str], None], save: Callable[[Report], None]
) -> Mapping[str, Any]:
    """Return the report of a plan.

    Args:
        plan: What to measure.
        log: Told of every step.
        save: Given the report as far as it goes after every step.
    """
    started = time.perf_counter()

    def step(text: str) -> None:
        log(f"[{time.perf_counter() - started:6.1f} s] {text}")
        save(comparison.report)

    comparison = _Comparison(plan, step)
    comparison.run()
    comparison.report["seconds"] = time.perf_counter() - started
    save(comparison.report)
    return comparison.report


class _Comparison:
    def __init__(self, plan: Plan, log: Callable[[str], None]) -> None:
        self.plan = plan
        self.log = log
        self.setting = setting_of(plan)
        self.entries, skipped = choose(self.setting, plan.only, plan.skip)
        separate, why = choose_processes(plan, self.setting, self.entries)
        self.session = SeparateSessions(plan, log) if separate else Session(plan, self.setting, log)
        self.floors: dict[str, Floor] = {}
        self.report: Report = {
            "machine": describe_machine(self.setting.device),
            "plan": plan.as_dict(),
            "processes": f"{'one for each variant' if separate else 'one for all'}: {why}",
            "note": HEAD_NOTE,
            "reference": "",
            "floor": {"definition": DEFINITION},
            "variants": {},
            "skipped": skipped,
            "failed": {},
        }

    def run(self) -> None:
        """Measure everything."""
        self._measure_floors()
        self.session.prepare(self.entries)
        for _ in self.session.rounds():
            self._update()
            self.log("saved")
        self._update()
        drafts = self.session.drafts()
        if drafts is not None:
            self.report["drafts"] = drafts
        busy = self.session.busy()
        if busy is not None:
            self.report["busy"] = busy
        self.report["machine"]["gpu_state_after"] = gpu_state(self.setting.device)
        self.session.release()
        self._judge()

    def _measure_floors(self) -> None:
        setting = self.setting
        rates = measure_rates(setting.config, len(PROMPT_IDS), setting.device, setting.dtype)
        self.report["floor"] |= asdict(rates)
        for kind in {entry.kind for entry in self.entries} | {"none"}:
            floor = floor_of(
                setting.config, len(PROMPT_IDS), ACTION_DIM - 1, rates, setting.dtype, kind
            )
            self.floors[kind] = floor
            self.report["floor"][kind] = asdict(floor) | {"total_ms": floor.total_ms}
        self.log(f"floor {self.floors['none'].total_ms:.2f} ms")

    def _update(self) -> None:
        """Write what the session knows by now into the report."""
        self.report["failed"] = dict(self.session.failed)
        measured = self.session.measured
        if not measured:
            return
        found = {name: one.tokens for name, one in measured.items()}
        reference = next((name for name in REFERENCES if name in found), next(iter(found)))
        self.report["reference"] = reference
        self.report["mismatches"] = tokens.mismatches(found)
        entries: dict[str, Entry] = {entry.name: entry for entry in self.entries}
        for name, one in measured.items():
            floor = self.floors[entries[name].kind]
            numbers = one.summary()
            self.report["variants"][name] = {
                "how": entries[name].how,
                **numbers,
                "tokens_equal_reference": tokens.equal_actions(one.tokens, found[reference]),
                "first_ids_equal_reference": tokens.equal_first_ids(one.tokens, found[reference]),
                "peak_bytes": one.peak_bytes,
                "floor_ms": floor.total_ms,
                "share_of_floor": floor.total_ms / numbers["p50_ms"],
                "stage_shares_of_floor": floor.shares(numbers["stages_ms"]),
                "cold_start": one.cold_start,
            }

    def _judge(self) -> None:
        """Ask a float32 copy of the network about every variant's ids."""
        count = self.plan.amounts.margin_images
        if not count:
            return
        if not isinstance(self.session, Session):
            why = "every variant ran in a process of its own"
            self.report["margins"] = {"skipped": why}
            return
        setting = self.setting
        needed = _ROOM * _FLOAT32_BYTES * setting.parameters
        free = Memory(setting.device).free()
        if free and needed > free:
            self.report["margins"] = {
                "skipped": f"a float32 copy needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free"
            }
            return
        model = random_model(setting.config, setting.device, torch.float32)
        judge = tokens.Judge(model, self.session.input_ids, self.session.images[:count])
        variants = {name: judge.margins(one.tokens) for name, one in self.session.measured.items()}
        self.report["margins"] = {"definition": tokens.MARGIN_NOTE, "variants": variants}
        self.log(f"asked float32 about the ids of {len(variants)} variants")
