"""The whole comparison: builds the models, warms every variant up, times them in turns."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from openvla_ros.engine.bench import variants as make
from openvla_ros.engine.bench.floors import Floor, measure_floor
from openvla_ros.engine.bench.measure import agreement, latencies, summary
from openvla_ros.engine.bench.profiles import (
    ACTION_DIM,
    PROMPT_IDS,
    bench_config,
    prepare_inputs,
    random_images,
    random_model,
)
from openvla_ros.engine.engine import Engine
from openvla_ros.model.runtime_choices import choose_device, choose_dtype

_REFERENCE = "hf_eager"
_CALIBRATION_IMAGES = 8


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        profile: Name of the model.
        device: "auto", "cpu", "cuda".
        dtype: "auto", "float32", "bfloat16".
        calls: Timed calls of an engine per round.
        hf_calls: Timed calls of another variant per round.
        rounds: Rounds.
        images: Different images to rotate through.
        exactness_images: Images on which drafts are compared with plain decoding.
        quantizations: Low-bit engines to add.
        hugging_face: Whether to measure the others at all.
        compiled: Whether to add the static cache with torch.compile, which takes minutes.
        busy_cores: Cores kept busy in an extra measurement of the engine; 0 leaves it out.
    """

    profile: str = "tiny"
    device: str = "auto"
    dtype: str = "auto"
    calls: int = 100
    hf_calls: int = 15
    rounds: int = 3
    images: int = 32
    exactness_images: int = 100
    quantizations: tuple[str, ...] = ()
    hugging_face: bool = True
    compiled: bool = False
    busy_cores: int = 0


@dataclass
class Comparison:
    """One run of a plan; `report` grows as it goes."""

    plan: Plan
    log: Callable[[str], None]
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device, _ = choose_device(self.plan.device)
        self.dtype, _ = choose_dtype(self.plan.dtype, self.device)
        self.config = bench_config(self.plan.profile)
        self.input_ids, self.images = prepare_inputs(self.config, random_images(self.plan.images))
        self.tokens: dict[str, list[list[int]]] = {}
        self.variants: dict[str, make.Variant] = {}

    def run(self) -> dict[str, Any]:
        """Measure everything and return the report."""
        floor = measure_floor(self.config, len(PROMPT_IDS), ACTION_DIM - 1, self.device, self.dtype)
        self.report |= {"floor": floor.as_dict(), "variants": {}, "failed": {}}
        self.log(f"floor {floor.total_ms:.2f} ms")
        model = self._random_model()
        if self.plan.hugging_face:
            self._add_hugging_face(model)
        plain = self._add_engine("ours_plain", "none", model)
        for quantization in self.plan.quantizations:
            self._add_engine(f"ours_{quantization}", quantization, None)
        self._time(floor, self._turns())
        self._drafts(plain)
        if self.plan.busy_cores:
            self._busy()
        if self.plan.compiled:  # after fusing, which moves the weights it compiles for
            self._compiled(model, floor)
        return self.report

    def _random_model(self) -> Any:
        return random_model(self.config, self.device, self.dtype)

    def _add_hugging_face(self, model: Any) -> None:
        for attention in ("eager", "sdpa"):
            self._try_add(f"hf_{attention}", make.plain_loop(model, attention))
        self._try_add("hf_generate_sdpa", make.generate(model, "sdpa", cache=None))

    def _add_engine(self, name: str, quantization: str, model: Any) -> Engine:
        before = self._allocated() if model is None else 0
        model = self._random_model() if model is None else model
        started = time.perf_counter()
        engine = Engine(model, quantization=quantization)
        del model
        gc.collect()
        built = time.perf_counter() - started
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        self._try_add(name, make.engine(engine))
        if name in self.report["variants"]:
            numbers = self.report["variants"][name]
            numbers["build_s"] = built
            if self.device.type == "cuda":
                numbers["peak_bytes"] = torch.cuda.max_memory_allocated(self.device) - before
            self._stages(name, engine)
        return engine

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def _try_add(self, name: str, variant: make.Variant) -> None:
        """Warm a variant up and keep its tokens; one that does not run here is a result, too."""
        started = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            variant(self.input_ids, self.images[0])
            first = time.perf_counter() - started
            variant(self.input_ids, self.images[0])
            self.tokens[name] = [variant(self.input_ids, pixels) for pixels in self.images]
        except Exception as error:
            self.report["failed"][name] = f"{type(error).__name__}: {str(error)[:300]}"
            self.log(f"{name} failed: {error}")
            return
        self.variants[name] = variant
        self.report["variants"][name] = {"first_call_s": first}
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            self.report["variants"][name]["peak_bytes"] = peak
        self.log(f"{name}: first call {first:.1f} s")

    def _time(self, floor: Floor, turns: list[list[str]]) -> None:
        numbers: dict[str, dict[str, Any]] = {}
        for names in turns:
            group = {name: self.variants[name] for name in names}
            calls = {
                name: self.plan.hf_calls if name.startswith("hf") else self.plan.calls
                for name in group
            }
            numbers |= latencies(group, self.input_ids, self.images, calls, self.plan.rounds)
            self.log(f"timed {', '.join(names)}")
        reference = self.tokens.get(_REFERENCE, self.tokens["ours_plain"])
        for name, timing in numbers.items():
            self.report["variants"][name] = (
                self.report["variants"][name]
                | timing
                | {
                    "floor_share": floor.total_ms / timing["p50_ms"],
                    "tokens_equal_reference": agreement(self.tokens[name], reference),
                }
            )

    def _turns(self) -> list[list[str]]:
        """Eager attention apart: changing the attention makes torch.compile start again."""
        eager = [name for name in self.variants if name == "hf_eager"]
        return [names for names in (eager, [n for n in self.variants if n not in eager]) if names]

    def _compiled(self, model: Any, floor: Floor) -> None:
        """Time the compiled variant in turns with two that were timed before."""
        name = "hf_static_compile"
        self._try_add(name, make.generate(model, "sdpa", cache="static"))
        if name in self.variants:
            before = {other: self.report["variants"][other] for other in ("hf_sdpa", "ours_plain")}
            self._time(floor, [[*before, name]])
            variants = self.report["variants"]
            self.report["beside_compiled"] = {
                other: dict(variants[other]) for other in (*before, name)
            }
            variants |= before

    def _stages(self, name: str, engine: Engine) -> None:
        spans: dict[str, list[float]] = {}
        for pixels in self.images:
            tokens = engine.generate_action_tokens(self.input_ids, pixels, ACTION_DIM)
            for stage, value in tokens.timings.items():
                spans.setdefault(stage, []).append(value)
        medians = {stage: sorted(v)[len(v) // 2] for stage, v in spans.items()}
        self.report["variants"][name]["stages_ms"] = medians

    def _drafts(self, engine: Engine) -> None:
        """Latency by the number of accepted drafts, and equality with plain decoding."""
        margin = engine.calibrate(self.input_ids, self.images[:_CALIBRATION_IMAGES], ACTION_DIM)
        plain = self.tokens["ours_plain"]
        curve: list[dict[str, Any]] = []
        for right in range(ACTION_DIM):
            drafts = [_draft(tokens, right) for tokens in plain]
            curve.append({"right_drafts": right} | self._time_drafts(engine, drafts))
            self.log(f"drafts {right}: {curve[-1]['p50_ms']:.2f} ms")
        engine.margin = -math.inf  # what a confirmed action costs, whatever its margins
        curve.append({"right_drafts": "all, guard off"} | self._time_drafts(engine, plain))
        engine.margin = margin
        self.report["drafts"] = {"margin": margin, "latency": curve}
        images = prepare_inputs(self.config, random_images(self.plan.exactness_images, seed=1))[1]
        self.report["drafts"]["exactness"] = self._exactness(engine, images)

    def _time_drafts(self, engine: Engine, drafts: Sequence[list[int]]) -> dict[str, float]:
        spent, passes, accepted = [], [], []
        pairs = list(zip(self.images, drafts, strict=True))
        for pixels, draft in [*pairs[:2], *pairs]:
            start = time.perf_counter()
            tokens = engine.verify_draft(self.input_ids, pixels, ACTION_DIM, draft)
            spent.append(1e3 * (time.perf_counter() - start))
            passes.append(tokens.passes)
            accepted.append(tokens.drafts_accepted)
        return {
            "p50_ms": summary([spent[2:]])["p50_ms"],
            "mean_passes": sum(passes[2:]) / len(pairs),
            "mean_accepted": sum(accepted[2:]) / len(pairs),
        }

    def _exactness(self, engine: Engine, images: Sequence[torch.Tensor]) -> dict[str, Any]:
        counts = {"inputs": 0, "drafts": 0, "mismatches": 0, "full_accepts": 0, "guard_fired": 0}
        for i, pixels in enumerate(images):
            plain = engine.generate_action_tokens(self.input_ids, pixels, ACTION_DIM).token_ids
            counts["inputs"] += 1
            for right in (i % ACTION_DIM, ACTION_DIM):
                tokens = engine.verify_draft(
                    self.input_ids, pixels, ACTION_DIM, _draft(plain, right)
                )
                counts["drafts"] += 1
                counts["mismatches"] += tokens.token_ids != plain
                full = tokens.drafts_accepted == ACTION_DIM - 1
                counts["full_accepts"] += full
                counts["guard_fired"] += full and tokens.passes > 1
        return counts

    def _busy(self) -> None:
        ours = {name: v for name, v in self.variants.items() if name.startswith("ours")}
        with _busy_processes(self.plan.busy_cores):
            calls = dict.fromkeys(ours, self.plan.calls)
            numbers = latencies(ours, self.input_ids, self.images, calls, self.plan.rounds)
        self.report["busy"] = {"cores": self.plan.busy_cores, "variants": numbers}


def _draft(tokens: Sequence[int], right: int) -> list[int]:
    """Return ids of which the first `right` are those given, and the next is another."""
    return [token if i < right else token ^ 1 for i, token in enumerate(tokens)]


@contextmanager
def _busy_processes(count: int) -> Any:
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def compare(
    plan: Plan, log: Callable[[str], None], save: Callable[[dict[str, Any]], None]
) -> Mapping[str, Any]:
    """Return the report of a plan.

    Args:
        plan: What to measure.
        log: Told of every step.
        save: Given the report as far as it goes after every step: a run may be cut short.
    """
    started = time.perf_counter()

    def step(text: str) -> None:
        log(f"[{time.perf_counter() - started:6.1f} s] {text}")
        save(comparison.report)

    comparison = Comparison(plan, step)
    report = comparison.run()
    return report | {"seconds": time.perf_counter() - started}
