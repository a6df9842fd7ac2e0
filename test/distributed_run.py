"""A few training steps of tiny models, in one process or in one of several that torchrun started.

Run as a program: `python distributed_run.py OUT STRATEGY...`. Rank 0 writes for each strategy its
trained weights, whole (OUT/STRATEGY.safetensors), and losses, gradient norms and generated ids
(OUT/STRATEGY.json).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.random_weights import profile_config, random_tensor
from openvla_ros.training.activation_checkpointing import checkpoint_activations
from openvla_ros.training.batch import TrainingBatch
from openvla_ros.training.config import DataConfig, FinetuneConfig, SourceConfig, StrategyConfig
from openvla_ros.training.distributed import (
    Ranks,
    bare_objective,
    clip_gradients,
    distribute,
    full_tensor,
    mean_over_ranks,
    put_full,
    start_ranks,
    stop_ranks,
    without_sync,
)
from openvla_ros.training.lora import compute_adapters_without_casts
from openvla_ros.training.objective import Objective
from openvla_ros.training.optimizer import build_optimizer, trained_parameters
from openvla_ros.training.strategies import choose_trained

STEPS = 3
LEARNING_RATE = 5e-4
GLOBAL_BATCH = 4
ACCUMULATION = 2
MAX_NORM = 1.0


def run_strategy(name: str, ranks: Ranks, out: Path) -> None:
    """Train a tiny model by one strategy and write what came out.

    NAME@bfloat16 computes so; NAME@tied has one matrix for embeddings and output head.
    """
    bare_name, _, variant = name.partition("@")
    strategy = StrategyConfig(name=bare_name, lora_rank=4)
    objective = _objective(strategy, variant, seed=0 if ranks.is_main else 1)
    module = distribute(objective, strategy, ranks)
    parameters = trained_parameters(module)
    config = FinetuneConfig("base", DataConfig((SourceConfig("path", "name"),)), strategy=strategy)
    optimizer = build_optimizer(parameters, config)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    batch, records = _batch(GLOBAL_BATCH), []
    share = GLOBAL_BATCH // ACCUMULATION // ranks.world_size
    for _ in range(STEPS):
        total = 0.0
        for micro in range(ACCUMULATION):
            start = (micro * ranks.world_size + ranks.rank) * share
            with without_sync(module, micro < ACCUMULATION - 1):
                loss = module(_rows(batch, start, start + share))["loss"] / ACCUMULATION
                loss.backward()
            total += float(loss.detach())
        norm = clip_gradients(parameters.values(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        records.append({**mean_over_ranks({"loss": total}, ranks), "gradient_norm": norm})
    ids = bare_objective(module).generate(batch.input_ids[:2, :12], batch.pixel_values[:2], 7)
    whole = {key: full_tensor(value.detach()).clone() for key, value in parameters.items()}
    for key, value in parameters.items():  # what is put back is what was taken out
        put_full(value, whole[key] + 1)
        assert torch.equal(full_tensor(value.detach()), whole[key] + 1), key
    if ranks.is_main:
        save_file({k: v.contiguous() for k, v in whole.items()}, out / f"{name}.safetensors")
        facts = {"steps": records, "ids": ids.tolist()}
        (out / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")


def _objective(strategy: StrategyConfig, variant: str, seed: int) -> Objective:
    """Return an objective over fixed weights; new adapters depend on the seed."""
    config = profile_config("tiny")
    model = OpenVLAForActionPrediction(config).float()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.copy_(random_tensor(key, tuple(weight.shape), config, 0))
    if variant == "tied":
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    precision = "bfloat16" if variant == "bfloat16" else "float32"
    torch.manual_seed(seed)
    choose_trained(model, strategy)
    for parameter in model.parameters():
        if not parameter.requires_grad and precision == "bfloat16":
            parameter.data = parameter.data.bfloat16()
    if strategy.is_adapter:
        compute_adapters_without_casts(model)
    checkpoint_activations(model, "selective")
    tokenizer = ActionTokenizer(config.action_vocab_size, config.n_action_bins)
    return Objective(model.train(), tokenizer, precision=precision)


def _batch(size: int) -> TrainingBatch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 30000, (size, 20), generator=generator)
    ids[:, 0] = 1
    ids[:, -8:] = torch.randint(31744, 32000, (size, 8), generator=generator)
    labels = torch.full_like(ids, -100)
    labels[:, -8:] = ids[:, -8:]
    pixels = torch.randn(size, 6, 224, 224, generator=generator)
    return TrainingBatch(ids, labels, torch.ones_like(ids, dtype=torch.bool), pixels)


def _rows(batch: TrainingBatch, start: int, stop: int) -> TrainingBatch:
    return TrainingBatch(
        batch.input_ids[start:stop],
        batch.labels[start:stop],
        batch.attention_mask[start:stop],
        batch.pixel_values[start:stop],
    )


def main(out: Path, strategies: list[str]) -> None:
    """Run each strategy in turn."""
    ranks = start_ranks("cpu")
    for name in strategies:
        run_strategy(name, ranks, out)
    stop_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
