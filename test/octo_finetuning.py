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
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from bridge_episodes import EPISODES, WHY_NOT
from overfitted_policy import TEXT, TOWERS

from openvla_ros.model.action_stats import STATISTICS_FILE
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.checkpoint import read_config
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.processing import PROCESSOR_FILE, OpenVLAProcessor, settings_of
from openvla_ros.model.prompts import prompt_form
from openvla_ros.model.random_weights import BRIDGE_STATISTICS, copy_tokenizer
from openvla_ros.model.shards import new_folder, write_json, write_shards
from openvla_ros.ros.frame_sources import shared_data_folder
from openvla_ros.training.config import FinetuneConfig
from openvla_ros.training.config_file import config_from
from openvla_ros.training.datasets import open_training_sets
from openvla_ros.training.finetune import RESULT_FOLDER, SUMMARY_FILE, finetune
from openvla_ros.training.free_running import evaluate_slice
from openvla_ros.training.loader import TrainingData
from openvla_ros.training.objective import Objective
from openvla_ros.training.run_log import METRICS_FILE, TIMINGS_FILE
from openvla_ros.training.strategies import prepare_model

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
#: Strategies that are tried on random weights too: these leave most of the network as it is.
RANDOM, ON_RANDOM = "random_", ("lora", "last_layer")
BASE_CAMERA, TUNED_CAMERA = "image_0", "image_1"
STEPS = 1500
#: What the seven numbers are; bag and npz do not say it.
BRIDGE_ACTIONS = {
    "kind": "eef_delta",
    "translation_frame": "base",
    "rotation_frame": "base",
    "rotation_form": "euler_xyz",
    "translation_unit_m": 1.0,
    "rotation_unit_rad": 1.0,
    "gripper_open": 1.0,
    "gripper_closed": 0.0,
}
ALL = (*RATES, *(f"{RANDOM}{name}" for name in ON_RANDOM))
TARGET_ACCURACY = 0.97
STEPS_OF_ALL = 225  # 25 episodes of ten steps, without the first one

DOCUMENT = Path(__file__).with_name("octo_finetuning_document.md")


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


def random_config(strategy: str, folder: Path) -> FinetuneConfig:
    """Return the run of a strategy on random weights, with the pictures of the base."""
    start = build_random_base(folder / "random")
    out = folder / f"{RANDOM}{strategy}"
    return octo_config(strategy, start, out, BASE_CAMERA, RATES[strategy])


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
                        "action_spec": BRIDGE_ACTIONS,
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
    parser.add_argument("--strategies", default=",".join(ALL))
    parser.add_argument("--document", type=Path)
    arguments = parser.parse_args()
    run(base_config(arguments.out))
    for strategy in filter(None, arguments.strategies.split(",")):
        is_random = strategy.startswith(RANDOM)
        make = random_config if is_random else tuned_config
        metrics = run(make(strategy.removeprefix(RANDOM), arguments.out))
        figures = metrics["evaluation"]["training"]
        print(strategy, json.dumps(figures["free_running"]), flush=True)
    if arguments.document:
        arguments.document.write_text(document(arguments.out), encoding="utf-8")


def document(folder: Path) -> str:
    """Return the text of docs/benchmarks/finetune_octo.md, from the runs that are finished."""
    before = judge_base(folder)
    runs = {name: read_run(folder / name) for name in (BASE, *ALL)}
    finished = {name: found for name, found in runs.items() if found}
    tuned = [row(name, finished[name]) for name in RATES if name in finished]
    on_random = {"full": finished[BASE]}
    on_random |= {name: finished[f"{RANDOM}{name}"] for name in ON_RANDOM}
    return DOCUMENT.read_text(encoding="utf-8").format(
        curve=curve_table(folder / BASE),
        before=row("none: the base as it is", {"evaluation": {"training": before}, "step": 0}),
        tuned="\n".join(tuned),
        dimensions=dimension_table({name: finished[name] for name in (BASE, *RATES)}, before),
        on_random="\n".join(row(name, found) for name, found in on_random.items()),
        machine=f"{platform.machine()}, 2 cores, torch {torch.__version__}, one thread per run",
    )


def read_run(folder: Path) -> dict[str, Any] | None:
    """Return metrics.json of a finished run, with its seconds per step; None without one."""
    path = folder / SUMMARY_FILE
    if not path.exists():
        return None
    lines = (folder / TIMINGS_FILE).read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found["step_s"] = statistics.median(json.loads(line)["step_s"] for line in lines)
    return found


def judge_base(folder: Path) -> dict[str, Any]:
    """Return the figures of the base on the pictures that it is going to be tuned on."""
    config = tuned_config("full", folder)
    checkpoint = Path(config.base)
    described = read_config(checkpoint)
    model = prepare_model(
        checkpoint, described, config.strategy, device=torch.device("cpu"), precision="float32"
    ).model
    tokenizer = ActionTokenizer(described.action_vocab_size, described.n_action_bins)
    processor = OpenVLAProcessor.from_pretrained(checkpoint, prompt_form(described.llm_backbone_id))
    sets = open_training_sets(config.data, config.run.seed)
    data = TrainingData(sets, processor, config.data, config.run.seed, tokenizer)
    data.prepare()
    samples = data.slice("training", STEPS_OF_ALL)
    found = evaluate_slice(Objective(model, tokenizer), samples, tokenizer, described.pad_token_id)
    return found.to_dict()


def row(name: str, found: dict[str, Any]) -> str:
    """Return one line of the table of strategies."""
    figures = found["evaluation"]["training"]
    shares = [
        figures[key]["accuracy"] for key in ("teacher_forced", "free_running", "swapped_images")
    ]
    cells = [name, str(found["step"]), *(f"{share:.1%}" for share in shares)]
    return f"| {' | '.join([*cells, format(figures['free_running']['l1'], '.4f')])} |"


def curve_table(folder: Path) -> str:
    """Return the evaluations of a run, one line each."""
    lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    found = [entry for entry in map(json.loads, lines) if entry["kind"] == "evaluation"]
    return "\n".join(row("full", {"evaluation": e, "step": e["step"]}) for e in found)


def dimension_table(runs: dict[str, dict[str, Any]], before: dict[str, Any]) -> str:
    """Return the free-running accuracy of each number of the action, baselines first."""
    rows = {key: before[key]["accuracy_per_dimension"] for key in ("constant", "previous")}
    for name, found in runs.items():
        free = found["evaluation"]["training"]["free_running"]
        rows[name] = free["accuracy_per_dimension"]
    return "\n".join(
        f"| {name} | {' | '.join(f'{share:.0%}' for share in shares)} |"
        for name, shares in rows.items()
    )


if __name__ == "__main__":
    main()
