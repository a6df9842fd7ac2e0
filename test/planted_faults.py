#!/usr/bin/env python3
"""Which planted faults the replay report and the audit name, and what they say of sound data.

    python test/planted_faults.py --document docs/benchmarks/planted_faults.md

A small policy learns recorded episodes by heart (`overfitted_policy.py`): a random one would detect
nothing. Not collected by pytest; `test_planted_faults.py` asks the same of a smaller one.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers
from bridge_episodes import WHY_NOT, has_recordings, octo_episodes
from fault_planting import (
    FAULTS,
    Cell,
    Fault,
    Outcome,
    recorded_episodes,
    statistics_of_three_datasets,
)
from measured_document import origin, write_section
from overfitted_policy import build_overfitted_checkpoint, training_of

STEPS = 1200
#: Answers to every frame of the sound sets are probed, so that parts of them can be judged.
ALL_FRAMES = 1000
CHOICES = 200


def main() -> int:
    """Learn, plant, print; returns a process exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="batches to learn from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="use it, or learn and keep it here")
    parser.add_argument("--document", type=Path, help="write the numbers into this file")
    options = parser.parse_args()
    os.environ["OPENVLA_ROS_CACHE"] = "off"
    torch.set_num_threads(1)  # the policy is tiny: more threads wait for each other
    if not has_recordings():
        sys.exit(WHY_NOT)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or Path(folder) / "checkpoint"
        if not checkpoint.exists():
            build_overfitted_checkpoint(
                checkpoint,
                octo_episodes()[1::2],
                steps=options.steps,
                seed=options.seed,
                statistics=statistics_of_three_datasets(),
            )
        training = training_of(checkpoint)
        print(training, flush=True)
        text = (
            f"The policy: {training.parameters / 1e6:.1f} million trained weights, "
            f"{training.steps} batches over {training.frames} frames, loss {training.loss:.4f} per "
            "id at the end.\n\n" + _report(Cell(checkpoint, seed=options.seed))
        )
    print(text)
    if options.document:
        libraries = f"torch {torch.__version__}, transformers {transformers.__version__}"
        write_section(options.document, "faults", text, origin(options.seed, libraries))
    return 0


def _report(cell: Cell) -> str:
    episodes = recorded_episodes()
    known, unseen = episodes[1::2], episodes[::2]
    sound = {
        "episodes it has learnt": cell.run(known, most_frames=ALL_FRAMES),
        "episodes it has never seen": cell.run(unseen, most_frames=ALL_FRAMES),
        "a camera it has never seen": cell.run(recorded_episodes(1), most_frames=ALL_FRAMES),
    }
    return "\n".join(
        [
            f"### Planted in the {len(known)} episodes it has learnt\n",
            *_faults(cell, known),
            "\n### What the replay said\n",
            *_words(cell, known),
            "\n### Sound data\n",
            *_sound(sound),
            "\n### Some of the sound episodes, drawn at random\n",
            *_drawn(cell, sound),
            f"\n### Planted in the {len(unseen)} episodes it has never seen\n",
            *_faults(cell, unseen),
        ]
    )


def _faults(cell: Cell, episodes: Sequence) -> Iterator[str]:
    yield "| fault | planted | named by the replay | named by the audit | audit warns of |"
    yield "| --- | --- | --- | --- | --- |"
    before = {f.item for f in cell.run(episodes).audit if f.level == "warn"}
    for fault in FAULTS:
        found = cell.run(episodes, fault)
        warned = [f.item for f in found.audit if f.level == "warn" and f.item not in before]
        yield (
            f"| {fault.name} | {fault.planted} | {_named(found, fault)} | "
            f"{_list(found.named_by_audit)} | {_list(warned)} |"
        )


def _named(found: Outcome, fault: Fault) -> str:
    items = [f"**{item}**" if item == fault.item else item for item in found.named]
    return _list(items)


def _words(cell: Cell, episodes: Sequence) -> Iterator[str]:
    for fault in FAULTS:
        for finding in cell.run(episodes, fault).replay:
            if finding.level == "problem":
                yield f"- {fault.name}: *{finding.item}*: {finding.value}."


def _sound(sound: dict[str, Outcome]) -> Iterator[str]:
    yield (
        "| episodes | number | correlation with the recordings | problems by the replay | "
        "problems by the audit | verdicts of the replay | not judged |"
    )
    yield "| --- | --: | --: | --- | --- | --: | --: |"
    for name, found in sound.items():
        shift = next(f for f in found.replay if f.item == "time shift")
        unjudged = sum(f.value == "cannot be judged" for f in found.replay)
        follows = re.search(r"correlation (-?[0-9.]+)", shift.value + shift.reason)
        yield (
            f"| {name} | {len(found.records)} | {follows and follows[1]} | {_list(found.named)} | "
            f"{_list(found.named_by_audit)} | {len(found.replay) - unjudged} | {unjudged} |"
        )


def _drawn(cell: Cell, sound: dict[str, Outcome]) -> Iterator[str]:
    yield "| from | episodes | draws | verdicts given | draws with a problem | named |"
    yield "| --- | --: | --: | --: | --: | --- |"
    for name, found in sound.items():
        for size in (1, 3, 5, 8):
            judged, alarms = cell.false_alarms(found, size, CHOICES)
            items = sorted({item for named in alarms for item in named})
            yield f"| {name} | {size} | {CHOICES} | {judged} | {len(alarms)} | {_list(items)} |"


def _list(items: Sequence[str]) -> str:
    return ", ".join(items) or "–"


if __name__ == "__main__":
    sys.exit(main())
