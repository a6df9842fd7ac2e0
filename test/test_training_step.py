from __future__ import annotations

import math
from typing import Any

from training_cases import CPU, PAD, made_up_samples, prepared_small_model

from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.training.config import (
    DataConfig,
    FinetuneConfig,
    OptimizationConfig,
    StrategyConfig,
)
from openvla_ros.training.distributed import Ranks
from openvla_ros.training.loop import Run, train_step
from openvla_ros.training.objective import Objective
from openvla_ros.training.optimizer import build_optimizer, trained_parameters
from openvla_ros.training.samples import collate
from openvla_ros.training.trainee import Trainee


def run_of(accumulation: int) -> Run:
    strategy = StrategyConfig("last_layer")
    config = FinetuneConfig(
        base="made up",
        data=DataConfig(mixture="bridge", mixture_folder="made up"),
        strategy=strategy,
        optimization=OptimizationConfig(accumulation=accumulation, learning_rate=1e-3),
    )
    objective = Objective(prepared_small_model(strategy).model, ActionTokenizer()).train()
    parameters = trained_parameters(objective)
    trainee = Trainee(parameters, build_optimizer(parameters, config))
    ranks = Ranks(0, 1, 0, CPU)
    no_data: Any = None  # a step is given its batches
    return Run(config, ranks, objective, objective, trainee, no_data, {}, PAD)


def test_passes_that_are_accumulated_are_one_batch() -> None:
    """But for the order of float32 sums, and AdamW's division by the gradient's size."""
    samples = [sample.sample for sample in made_up_samples(6)]
    whole, parts = run_of(1), run_of(3)
    for step in range(2):
        one = train_step(whole, step, [collate(samples, PAD)])
        three = train_step(parts, step, [collate(samples[i : i + 2], PAD) for i in (0, 2, 4)])
        for name in ("loss", "action_accuracy", "l1", "gradient_norm"):
            off = abs(one[name] - three[name]) / max(abs(one[name]), 1e-9)
            assert off < 1e-4, f"{name} of step {step} differs by {off:.1e} of itself"
    squares = [
        float((p - parts.trainee.parameters[name]).detach().square().mean())
        for name, p in whole.trainee.parameters.items()
    ]
    updates = math.sqrt(sum(squares) / len(squares)) / 1e-3
    assert updates < 1e-2, f"weights are {updates:.1e} updates apart"
