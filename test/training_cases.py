"""What tests of training share: small checkpoints prepared by a strategy, and made-up batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from replay_cases import shared_checkpoint

from openvla_ros.model.checkpoint import read_config
from openvla_ros.training.batch import EvaluationSample, Origin, TrainingBatch, TrainingSample
from openvla_ros.training.config import StrategyConfig
from openvla_ros.training.samples import collate
from openvla_ros.training.strategies import PreparedModel, prepare_model

CPU = torch.device("cpu")
PAD = 32000
STOP = 2
EMPTY = 29871


def prepared_small_model(
    strategy: StrategyConfig, precision: str = "float32", seed: int = 0
) -> PreparedModel:
    """Return a network of a few 10,000 weights with random ones, prepared for training."""
    folder = Path(shared_checkpoint())
    torch.manual_seed(seed)
    return prepare_model(folder, read_config(folder), strategy, device=CPU, precision=precision)


def made_up_samples(
    count: int, *, predict_stop_token: bool = True, episodes: int = 2, seed: int = 0
) -> list[EvaluationSample]:
    """Return samples of noise with prompts of 6 to 8 ids; the same for the same arguments.

    They take turns between the episodes; the first step of an episode has no action before it.
    """
    random = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        prompt = np.r_[1, random.integers(3, 29000, 4 + index % 3), EMPTY]
        token_ids = random.integers(31744, 32000, 7)
        input_ids = torch.from_numpy(np.r_[prompt, token_ids, STOP])
        labels = input_ids.clone()
        labels[: len(prompt)] = -100
        if not predict_stop_token:
            labels[-1] = -100
        pixels = torch.from_numpy(random.normal(size=(6, 224, 224)).astype(np.float32))
        step, episode = divmod(index, episodes)
        before = samples[index - episodes].token_ids if step else None
        origin = Origin("made_up", f"episode_{episode}", step)
        samples.append(
            EvaluationSample(TrainingSample(input_ids, labels, pixels, origin), token_ids, before)
        )
    return samples


def made_up_batch(count: int = 3, *, predict_stop_token: bool = True) -> TrainingBatch:
    """Return a batch of noise whose samples differ in length."""
    samples = made_up_samples(count, predict_stop_token=predict_stop_token)
    return collate([sample.sample for sample in samples], PAD)


def weights_of(prepared: PreparedModel) -> dict[str, torch.Tensor]:
    """Return name -> copy of all weights."""
    return {name: p.detach().clone() for name, p in prepared.model.named_parameters()}
