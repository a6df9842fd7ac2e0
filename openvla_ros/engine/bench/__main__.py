"""`python -m openvla_ros.engine.bench --json`: the comparison, unattended, on a bare machine.

Needs torch, transformers, numpy and Pillow; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import transformers

from openvla_ros.engine.bench.comparison import Plan, compare
from openvla_ros.engine.bench.profiles import PROFILES
from openvla_ros.model.runtime_choices import choose_device


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default="tiny")
    for name in ("device", "dtype"):
        parser.add_argument(f"--{name}", default="auto")
    for item in fields(Plan):
        if isinstance(item.default, int) and not isinstance(item.default, bool):
            option = "--" + item.name.replace("_", "-")
            parser.add_argument(option, type=int, default=item.default)
    parser.add_argument("--quantizations", nargs="*", default=[])
    parser.add_argument("--compiled", action="store_true", help="add hf_static_compile (minutes)")
    parser.add_argument("--no-hugging-face", dest="hugging_face", action="store_false")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    plan = Plan(**{item.name: getattr(arguments, item.name) for item in fields(Plan)})
    facts = {"machine": machine(plan.device), "plan": asdict(plan)}

    def save(report: Mapping[str, Any]) -> None:
        if arguments.out:
            text = json.dumps(facts | dict(report), indent=2)
            arguments.out.write_text(text + "\n", encoding="utf-8")

    report = compare(plan, lambda text: print(text, file=sys.stderr, flush=True), save)
    save(report)
    print(json.dumps(facts | dict(report), indent=2) if arguments.json else table(report))


def machine(device: str) -> dict[str, Any]:
    """Return what the figures depend on."""
    chosen, _ = choose_device(device)
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "architecture": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    if chosen.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(chosen)
        query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,memory.total"
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv"],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        facts["nvidia_smi"] = done.stdout.strip().splitlines()
    return facts


def table(report: Mapping[str, Any]) -> str:
    """Return the report's numbers as Markdown."""
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
    drafts = report["drafts"]
    lines += ["", "| right drafts | p50 ms | passes |", "|--:|--:|--:|"]
    lines += [
        f"| {p['right_drafts']} | {p['p50_ms']:.2f} | {p['mean_passes']:.2f} |"
        for p in drafts["latency"]
    ]
    floor = report["floor"]
    lines += ["", f"drafts: margin {drafts['margin']:.3g}, {drafts['exactness']}"]
    lines += ["", f"floor {floor['total_ms']:.2f} ms: {floor['definition']}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
