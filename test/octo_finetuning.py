#!/usr/bin/env python3
"""Fine-tune a small network on 25 recorded episodes with every strategy, and say what each reaches.

    python test/octo_finetuning.py --out FOLDER --document docs/benchmarks/finetune_octo.md

The network is OpenVLA's in small (two towers, projector, Llama decoder; 11 million weights, most of
them in the vocabulary). Its random weights first learn the episodes as one camera saw them; this is
the base. Then every strategy fine-tunes the base on the same episodes seen by another camera, from
another side, which the base has never seen. All of it by the pipeline that users run. Runs that are
finished are not repeated, interrupted ones go on. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from bridge_episodes import EPISODES, WHY_NOT
from overfitted_policy import _TEXT as TEXT
from overfitted_policy import _TOWERS as TOWERS

from openvla_ros.model.action_stats import STATISTICS_FILE
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.processing import PROCESSOR_FILE, settings_of
from openvla_ros.model.random_weights import BRIDGE_STATISTICS, copy_tokenizer
from openvla_ros.model.shards import new_folder, write_json, write_shards
from openvla_ros.ros.frame_sources import shared_data_folder
from openvla_ros.training.config import FinetuneConfig
from openvla_ros.training.config_file import config_from
from openvla_ros.training.finetune import RESULT_FOLDER, finetune

#: Strategy -> learning rate with which it was tried.
RATES = {
    "lora": 3e-3,
    "qlora": 3e-3,
    "full": 1e-3,
    "sandwich": 1e-3,
    "frozen_vision": 1e-3,
    "last_layer": 1e-3,
}
BASE, BASE_RATE = "base", 2.5e-3
BASE_CAMERA, TUNED_CAMERA = "image_0", "image_1"
STEPS = 1500
TARGET_ACCURACY = 0.97
STEPS_OF_ALL = 225  # 25 episodes of ten steps, without the first one


def build_random_base(out: Path, seed: int = 0) -> Path:
    """Return `out`, filled with a small checkpoint of random weights, once."""
    if out.exists():
        return out
    torch.manual_seed(seed)
    config = OpenVLAConfig(
        timm_model_ids=list(TOWERS),
        vit_specs=TOWERS,
        text_config=TEXT,
        norm_stats=BRIDGE_STATISTICS,
        architectures=["OpenVLAForActionPrediction"],
        dtype="float32",
    )
    weights = OpenVLAForActionPrediction(config).state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    with new_folder(out) as folder:
        write_shards(folder, shapes, weights.__getitem__, torch.float32)
        config.save_pretrained(folder)
        write_json(folder / PROCESSOR_FILE, settings_of(config))
        write_json(folder / STATISTICS_FILE, BRIDGE_STATISTICS)
        copy_tokenizer(folder)
    return out


def base_config(folder: Path) -> FinetuneConfig:
    """Return the run that makes the base of random weights."""
    start = build_random_base(folder / "random")
    return octo_config("full", start, folder / BASE, BASE_CAMERA, BASE_RATE)


def tuned_config(strategy: str, folder: Path) -> FinetuneConfig:
    """Return the run of a strategy on the camera that the base has not seen."""
    start = folder / BASE / RESULT_FOLDER
    return octo_config(strategy, start, folder / strategy, TUNED_CAMERA, RATES[strategy])


def octo_config(
    strategy: str, start: Path, out: Path, camera: str, learning_rate: float
) -> FinetuneConfig:
    """Return a run on all episodes; step 0, which never moves, is left out."""
    data = shared_data_folder()
    assert data is not None, WHY_NOT
    return config_from(
        {
            "base": str(start),
            "data": {
                "sources": [
                    {
                        "path": str(data / EPISODES),
                        "name": "octo",
                        "camera": camera,
                        "rate_hz": 5.0,
                        "drop_first_steps": 1,
                    }
                ],
                "held_out": 0.0,
                "image_augmentation": False,
                "workers": 0,
                "cache_folder": str(out.parent / "cache"),
            },
            "strategy": {"name": strategy},
            "optimization": {
                "learning_rate": learning_rate,
                "weight_decay": 0.0,
                "schedule": "cosine",
                "warmup_steps": 100,
                "gradient_clip": 1.0,
                "max_steps": STEPS,
            },
            "run": {
                "out": str(out),
                "device": "cpu",
                "precision": "float32",
                "save_every": 250,
                "evaluate_every": 250,
                "evaluation_samples": STEPS_OF_ALL,
                "log_every": 50,
                "target_accuracy": TARGET_ACCURACY,
                "tensorboard": False,
            },
        }
    )


def run(config: FinetuneConfig) -> dict[str, Any]:
    """Return what metrics.json of a run holds, training it when it is not finished."""
    start = time.perf_counter()
    result = finetune(config)
    print(f"{config.run.out}: {time.perf_counter() - start:.0f} s", flush=True)
    return result.metrics


def main() -> None:
    """Run what is asked for; print one line each, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where base and runs go")
    parser.add_argument("--strategies", default=",".join(RATES))
    parser.add_argument("--document", type=Path)
    arguments = parser.parse_args()
    found = {BASE: run(base_config(arguments.out))}
    for strategy in filter(None, arguments.strategies.split(",")):
        found[strategy] = run(tuned_config(strategy, arguments.out))
        figures = found[strategy]["evaluation"]["training"]
        print(strategy, json.dumps(figures["free_running"]), flush=True)


if __name__ == "__main__":
    main()
