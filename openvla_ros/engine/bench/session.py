"""Variants in one process: built, warmed up, timed in turns."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from openvla_ros.engine.bench.catalogue import Entry, Models, Setting
from openvla_ros.engine.bench.drafts import check_exactness, draft_curve
from openvla_ros.engine.bench.measure import Measured, rotate, summary
from openvla_ros.engine.bench.memory import Memory
from openvla_ros.engine.bench.plan import DTYPES, Plan
from openvla_ros.engine.bench.profiles import bench_config, prepare_inputs, random_images
from openvla_ros.engine.bench.variants import Variant
from openvla_ros.engine.engine import Engine

DRAFTED = "ours_plain"
_EXACTNESS_SEED = 1


class Session:
    """One process's part of a plan; what it found is in its attributes.

    Args:
        plan: What to measure.
        setting: What on.
        log: Told of every step.
    """

    def __init__(self, plan: Plan, setting: Setting, log: Callable[[str], None]) -> None:
        self.plan = plan
        self.setting = setting
        self.log = log
        self.measured: dict[str, Measured] = {}
        self.failed: dict[str, str] = {}
        self.input_ids, self.images = prepare_inputs(
            setting.config, random_images(plan.amounts.images)
        )
        self._models = Models(setting)
        self._memory = Memory(setting.device)
        self._variants: dict[str, Variant] = {}

    def prepare(self, entries: Sequence[Entry]) -> None:
        """Build the variants, let them answer every image, and keep what that took."""
        for entry in entries:
            try:
                self._prepare(entry)
            except Exception as error:  # that it does not run here is a result, too
                text = str(error).strip().split("\n")[0][:300]
                self.failed[entry.name] = f"{type(error).__name__}: {text}"
                self.log(f"{entry.name} failed: {self.failed[entry.name]}")

    def _prepare(self, entry: Entry) -> None:
        self._memory.collect()
        before = self._memory.used()
        started = time.perf_counter()
        variant = entry.make(self._models)
        built = time.perf_counter() - started
        if entry.weights == "shared":
            before = self._models.used_before_shared
        self._memory.collect()
        cold = {"draw_weights_s": self._models.drawing_s, "build_s": built - self._models.drawing_s}
        for name in ("first_call_s", "second_call_s"):
            started = time.perf_counter()
            variant.call(self.input_ids, self.images[0])
            cold[name] = time.perf_counter() - started
        tokens = [variant.call(self.input_ids, pixels)[0] for pixels in self.images]
        peak = self._memory.peak()
        if peak is not None and before is not None:
            peak -= before
        self.measured[entry.name] = Measured(tokens, cold, peak)
        self._variants[entry.name] = variant
        self.log(f"{entry.name}: built in {built:.1f} s, first call {cold['first_call_s']:.1f} s")

    def rounds(self) -> Iterator[int]:
        """Time every variant once per round; yield after each round."""
        rotation = rotate(self.images)
        for i in range(self.plan.amounts.rounds):
            for name, variant in self._variants.items():
                calls = self._calls(name)
                self.measured[name].add_round(variant, self.input_ids, rotation, calls)
            self.log(f"round {i + 1} of {self.plan.amounts.rounds}")
            yield i

    def drafts(self) -> dict[str, Any] | None:
        """Return the curve over accepted drafts and the check of exactness, or None without."""
        engine = self._engine()
        count = self.plan.amounts.draft_images
        if engine is None or not count:
            return None
        tokens = self.measured[DRAFTED].tokens[:count]
        found = draft_curve(engine, self.input_ids, self.images[:count], tokens, self.log)
        if self.plan.amounts.exactness_images:
            images = random_images(self.plan.amounts.exactness_images, seed=_EXACTNESS_SEED)
            others = prepare_inputs(self.setting.config, images)[1]
            found["exactness"] = check_exactness(engine, self.input_ids, others)
        return found

    def busy(self) -> dict[str, Any] | None:
        """Return the engine's latencies beside processes that keep cores busy, or None."""
        cores = self.plan.amounts.busy_cores
        ours = {n: v for n, v in self._variants.items() if v.engine is not None}
        if not cores or not ours:
            return None
        found: dict[str, Any] = {}
        with _busy_processes(cores):
            for name, variant in ours.items():
                beside = Measured([], {}, None)
                beside.add_round(variant, self.input_ids, rotate(self.images), self._calls(name))
                found[name] = summary(beside.times_ms)
        return {"cores": cores, "variants": found}

    def release(self) -> None:
        """Forget every model."""
        self._variants.clear()
        self._models.release()
        self._memory.collect()

    def _engine(self) -> Engine | None:
        return self._variants[DRAFTED].engine if DRAFTED in self._variants else None

    def _calls(self, name: str) -> int:
        amounts = self.plan.amounts
        return amounts.hf_calls if name.startswith("hf") else amounts.calls


def setting_of(plan: Plan) -> Setting:
    """Return what a plan's variants run on."""
    return Setting(bench_config(plan.profile), torch.device(plan.device), DTYPES[plan.dtype])


@contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
