#!/usr/bin/env python3
"""What low-bit weights change, and how often drafts are right, on real frames.

    python test/quantized_accuracy.py --document docs/benchmarks/quantized_accuracy.md

A small policy learns recorded episodes by heart (`overfitted_policy.py`), because random weights
have no margins worth the name. Every answer is free-running: each id follows the policy's own ids.
Not collected by pytest; `test_quantized_accuracy.py` asks the same of a smaller one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from accuracy_measurement import FrameSet, compare, frame_sets, measure_drafts, measure_roundings
from accuracy_report import accuracy_report, drafts_report, int4_report, recorded_report
from bridge_episodes import WHY_NOT, has_recordings, octo_episodes
from draft_acceptance import LatencyCurve, recorded_acceptance
from measured_document import origin, write_section
from overfitted_policy import build_overfitted_checkpoint, training_of

ROOT = Path(__file__).resolve().parents[1]
CURVE = ROOT / "docs" / "benchmarks" / "raw" / "h200_final_08ed644.json"
STEPS = 1200


def main() -> int:
    """Learn, measure, print; returns a process exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="batches to learn from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency", type=Path, default=CURVE, help="JSON of a bench with drafts")
    parser.add_argument("--checkpoint", type=Path, help="use it, or learn and keep it here")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--document", type=Path, help="write the numbers into this file")
    options = parser.parse_args()
    os.environ["OPENVLA_ROS_CACHE"] = "off"  # rounded copies of a temporary checkpoint
    torch.set_num_threads(1)  # the policy is tiny: more threads wait for each other
    if not has_recordings():
        sys.exit(WHY_NOT)
    sets = frame_sets()
    curve = LatencyCurve.read(options.latency)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or Path(folder) / "checkpoint"
        if not checkpoint.exists():
            build_overfitted_checkpoint(
                checkpoint, sets[0].episodes, steps=options.steps, seed=options.seed
            )
        print(training_of(checkpoint), flush=True)
        for name in options.sections:
            text = SECTIONS[name](checkpoint, sets, curve)
            print(f"\n## {name}\n\n{text}", flush=True)
            if options.document:
                libraries = f"torch {torch.__version__}, transformers {transformers.__version__}"
                write_section(options.document, name, text, origin(options.seed, libraries))
    return 0


def _accuracy(checkpoint: Path, sets: Sequence[FrameSet], curve: LatencyCurve) -> str:
    return accuracy_report(compare(checkpoint, sets), training_of(checkpoint))


def _recorded(checkpoint: Path, sets: Sequence[FrameSet], curve: LatencyCurve) -> str:
    return recorded_report(list(recorded_acceptance(octo_episodes())), curve)


def _drafts(checkpoint: Path, sets: Sequence[FrameSet], curve: LatencyCurve) -> str:
    return drafts_report(measure_drafts(checkpoint, sets), curve)


def _int4(checkpoint: Path, sets: Sequence[FrameSet], curve: LatencyCurve) -> str:
    return int4_report(measure_roundings(checkpoint, sets), sets)


#: Section of the document -> what measures and writes it.
SECTIONS: dict[str, Callable[[Path, Sequence[FrameSet], LatencyCurve], str]] = {
    "accuracy": _accuracy,
    "recorded": _recorded,
    "drafts": _drafts,
    "int4": _int4,
}


if __name__ == "__main__":
    sys.exit(main())
