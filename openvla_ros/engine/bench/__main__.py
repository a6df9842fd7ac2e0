"""`python -m openvla_ros.engine.bench --json`: the comparison, unattended, on a bare machine.

Needs torch, transformers, numpy and Pillow; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from openvla_ros.engine.bench import variants as make
from openvla_ros.engine.bench.floors import measure_floor
from openvla_ros.engine.bench.measure import agreement, latencies
from openvla_ros.engine.bench.profiles import (
    ACTION_DIM,
    PROFILES,
    PROMPT_IDS,
    bench_config,
    prepare_inputs,
    random_images,
    random_model,
)
from openvla_ros.engine.engine import Engine
from openvla_ros.model.runtime_choices import choose_device, choose_dtype

_REFERENCE = "hf_eager"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--calls", type=int, default=100, help="per round, of the engine")
    parser.add_argument("--hf-calls", type=int, default=30, help="per round, of the others")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--compiled", action="store_true", help="add hf_static_compile (minutes)")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    report = run(arguments, log=sys.stderr)
    text = json.dumps(report, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text if arguments.json else table(report))


def run(arguments: argparse.Namespace, log: Any) -> dict[str, Any]:
    """Return the whole report."""

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:7.1f} s] {text}", file=log, flush=True)

    start = time.perf_counter()
    device, _ = choose_device(arguments.device)
    dtype, _ = choose_dtype(arguments.dtype, device)
    config = bench_config(arguments.profile)
    floor = measure_floor(config, len(PROMPT_IDS), ACTION_DIM - 1, device, dtype)
    say(f"floor {floor.total_ms:.2f} ms")
    model = random_model(config, device, dtype)
    input_ids, images = prepare_inputs(config, random_images(arguments.images))
    say("model and inputs")
    hugging_face = {
        "hf_eager": make.plain_loop(model, "eager"),
        "hf_sdpa": make.plain_loop(model, "sdpa"),
        "hf_generate_sdpa": make.generate(model, "sdpa", cache=None),
    }
    if arguments.compiled:
        hugging_face["hf_static_compile"] = make.generate(model, "sdpa", cache="static")
    report: dict[str, Any] = {
        "machine": machine(device),
        "profile": arguments.profile,
        "dtype": str(dtype),
        "positions": config_positions(config),
        "floor": floor.as_dict(),
        "variants": {},
        "failed": {},
    }
    tokens = {}
    for name, variant in list(hugging_face.items()):
        try:
            tokens[name] = collect(variant, input_ids, images, device, report, name)
        except Exception as error:  # a stock variant that does not run here is a result, too
            report["failed"][name] = f"{type(error).__name__}: {str(error)[:300]}"
            del hugging_face[name]
        say(name)
    unfused = latencies({"hf_sdpa": hugging_face["hf_sdpa"]}, input_ids, images, {"hf_sdpa": 20}, 1)
    report["hf_sdpa_before_fusing_p50_ms"] = unfused["hf_sdpa"]["p50_ms"]
    runtime = Engine(model)
    report["choices"] = runtime.choices
    ours = {"ours_ar": make.engine(runtime)}
    for name, variant in ours.items():
        tokens[name] = collect(variant, input_ids, images, device, report, name)
        say(name)
    every = hugging_face | ours
    calls = {name: arguments.calls if name in ours else arguments.hf_calls for name in every}
    for name, numbers in latencies(every, input_ids, images, calls, arguments.rounds).items():
        report["variants"][name] |= numbers
        report["variants"][name]["floor_share"] = floor.total_ms / numbers["p50_ms"]
    for name in every:
        report["variants"][name]["tokens_equal_reference"] = agreement(
            tokens[name], tokens[_REFERENCE]
        )
    report["stages_ms"] = stages(runtime, input_ids, images)
    report["seconds"] = time.perf_counter() - start
    return report


def collect(
    variant: make.Variant,
    input_ids: torch.Tensor,
    images: list[torch.Tensor],
    device: torch.device,
    report: dict[str, Any],
    name: str,
) -> list[list[int]]:
    """Return the tokens of every image; the peak memory goes into the report."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    variant(input_ids, images[0])
    first = time.perf_counter() - started
    variant(input_ids, images[0])
    tokens = [variant(input_ids, pixels) for pixels in images]
    report["variants"][name] = {"first_call_s": first, "warm_s": time.perf_counter() - started}
    if device.type == "cuda":
        report["variants"][name]["peak_bytes"] = torch.cuda.max_memory_allocated(device)
        report["variants"][name]["reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    return tokens


def stages(
    runtime: Engine, input_ids: torch.Tensor, images: list[torch.Tensor]
) -> dict[str, float]:
    """Return the median of every stage of the engine."""
    spans: dict[str, list[float]] = {}
    for pixels in images:
        tokens = runtime.generate_action_tokens(input_ids, pixels, ACTION_DIM)
        for name, value in tokens.timings.items():
            spans.setdefault(name, []).append(value)
    return {name: sorted(values)[len(values) // 2] for name, values in spans.items()}


def config_positions(config: Any) -> int:
    """Return the prompt's length in positions, image included."""
    patches = (config.image_sizes[0] // config.towers()[0].patch_size) ** 2
    return patches + len(PROMPT_IDS)


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the figures depend on."""
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "architecture": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,memory.total"
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv"],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        facts["nvidia_smi"] = done.stdout.strip().splitlines()
    return facts


def table(report: dict[str, Any]) -> str:
    """Return the variants as a Markdown table."""
    lines = [
        "| variant | p50 ms | p90 | p99 | max | % of floor | peak GB | equal actions |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, v in report["variants"].items():
        peak = f"{v['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in v else "–"
        lines.append(
            f"| {name} | {v['p50_ms']:.2f} | {v['p90_ms']:.2f} | {v['p99_ms']:.2f} | "
            f"{v['max_ms']:.2f} | {100 * v['floor_share']:.0f} | {peak} | "
            f"{v['tokens_equal_reference']['action']:.3f} |"
        )
    floor = report["floor"]
    lines.append(f"\nfloor {floor['total_ms']:.2f} ms: {floor['definition']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
