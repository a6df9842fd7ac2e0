"""How many samples per second the data of a configuration gives, per number of worker processes.

    python -m openvla_ros.training.loader_speed --config finetune.yaml --workers 0 1 2 4

The base checkpoint gives tokenizer and image path; no weights are read. A training run waits for
data when it makes more samples per second than its workers do.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.checkpoint import read_config, resolve_checkpoint
from openvla_ros.model.processing import OpenVLAProcessor
from openvla_ros.model.prompts import prompt_form
from openvla_ros.training.config import FinetuneConfig
from openvla_ros.training.config_file import parse_overrides, read_finetune_config
from openvla_ros.training.datasets import open_training_sets
from openvla_ros.training.loader import TrainingData

_WARM_UP = 2  # batches before the clock starts: workers begin, and files are mapped


def measure_loader(
    config: FinetuneConfig, workers: Sequence[int], batches: int
) -> dict[int, float]:
    """Return number of worker processes -> samples per second, with prepared pictures.

    Args:
        config: Its data, batch size and base are used.
        workers: Numbers to try.
        batches: How many are timed for each.

    Raises:
        OpenVLAError: The data or the base cannot be read.
    """
    folder = resolve_checkpoint(config.base, config.revision or None)
    model = read_config(folder)
    processor = OpenVLAProcessor.from_pretrained(folder, prompt_form(model.llm_backbone_id))
    tokenizer = ActionTokenizer(model.action_vocab_size, model.n_action_bins)
    seed, size = config.run.seed, config.optimization.batch_size
    sets = open_training_sets(config.data, seed)
    found: dict[int, float] = {}
    for count in workers:
        data = TrainingData(sets, processor, replace(config.data, workers=count), seed, tokenizer)
        data.prepare()
        start = 0.0
        for number, _ in enumerate(data.batches(size, 1, 0, _WARM_UP + batches)):
            if number == _WARM_UP - 1:
                start = time.perf_counter()
        found[count] = batches * size / (time.perf_counter() - start)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures of a configuration file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="as for openvla-ros finetune")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--batches", type=int, default=40, help="timed for each number of workers")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of a table")
    given = parser.parse_args(arguments)
    config = read_finetune_config(Path(given.config), parse_overrides(given.set))
    found = measure_loader(config, given.workers, given.batches)
    if given.json:
        print(json.dumps({"samples_per_s": found, "cpus": os.cpu_count()}))
        return
    print(f"{os.cpu_count()} CPUs, batches of {config.optimization.batch_size}")
    print("workers  samples/s")
    for count, speed in found.items():
        print(f"{count:7d}  {speed:9.1f}")


if __name__ == "__main__":
    main()
