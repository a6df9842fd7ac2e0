"""One case: a model with random weights, some training steps, their time and peak memory.

Both loops get the same batches on the host and do all that a step of theirs does, reading the loss
included. Random weights cost what trained ones do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from openvla_ros.engine.bench.profiles import PROMPT_IDS, bench_config, random_model
from openvla_ros.engine.bench.stock_low_bit import CONVERSIONS
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.modeling import IGNORE_INDEX, OpenVLAForActionPrediction
from openvla_ros.training.activation_checkpointing import checkpoint_activations, compile_blocks
from openvla_ros.training.batch import TrainingBatch
from openvla_ros.training.config import (
    DataConfig,
    FinetuneConfig,
    OptimizationConfig,
    RunConfig,
    SourceConfig,
    StrategyConfig,
)
from openvla_ros.training.distributed import clip_gradients
from openvla_ros.training.lora import adapter_targets
from openvla_ros.training.memory import estimate_memory
from openvla_ros.training.objective import Objective
from openvla_ros.training.optimizer import build_optimizer, trained_parameters
from openvla_ros.training.strategies import choose_trained, save_passes

_BATCHES = 4
_TINY_BATCH = 2
_EOS = 2
_DIMENSIONS = 7
_RANK, _ALPHA, _RATE = 32, 16, 5e-4

Step = Callable[[TrainingBatch], float]


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name: Key in the results.
        what: What it is, in words.
        batch_size: Samples per step.
        loop: "reference" or "ours".
        strategy: "lora" or "qlora".
        checkpointing: As `run.activation_checkpointing`.
        compile: Whether the blocks are compiled.
        float32_adapters: For the reference loop: adapters as PEFT makes them today.
    """

    name: str
    what: str
    batch_size: int
    loop: str = "ours"
    strategy: str = "lora"
    checkpointing: str = "none"
    compile: bool = False
    float32_adapters: bool = True


CASES = (
    Case(
        "reference",
        "finetune.py's loop: PEFT in bfloat16, all logits, mask, plain AdamW",
        16,
        loop="reference",
        float32_adapters=False,
    ),
    Case("ours", "this package's step", 16),
    Case("ours_compiled", "the same with run.compile", 16, compile=True),
    Case("ours_batch_1", "one sample per step", 1),
    Case("qlora_batch_1", "one sample per step, nf4 language model", 1, strategy="qlora"),
    Case(
        "reference_float32",
        "the reference's loop with PEFT's default, float32 adapters",
        16,
        loop="reference",
    ),
    Case("ours_selective", "MLPs computed again", 16, checkpointing="selective"),
)


def measure(
    case: Case, profile: str, device: torch.device, steps: int, warmup: int
) -> dict[str, Any]:
    """Return samples per second, milliseconds of each step, and peak memory in GB (GPU only).

    Args:
        case: What to run.
        profile: "7b" or "tiny".
        device: Where.
        steps: Timed ones.
        warmup: Steps before them.
    """
    if profile == "tiny":
        case = replace(case, batch_size=min(case.batch_size, _TINY_BATCH))
    torch.manual_seed(0)
    config = bench_config(profile)
    model = random_model(config, device, torch.bfloat16)
    if case.strategy == "qlora":
        CONVERSIONS["bnb_nf4"].convert(model)
        model.is_loaded_in_4bit = True  # by which PEFT chooses its layers
    batches = make_batches(config, case.batch_size)
    step = _reference_step(model, case) if case.loop == "reference" else _our_step(model, case)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    times, losses = [], []
    for i in range(warmup + steps):
        _wait(device)
        start = time.perf_counter()
        losses.append(step(batches[i % _BATCHES].to(device)))
        _wait(device)
        times.append(1e3 * (time.perf_counter() - start))
    timed = times[warmup:]
    found: dict[str, Any] = {
        "samples_per_s": 1e3 * case.batch_size / float(np.median(timed)),
        "step_ms": [round(ms, 2) for ms in timed],
        "warmup_ms": [round(ms, 2) for ms in times[:warmup]],
        "losses": [round(loss, 4) for loss in losses],
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "estimated_gb": estimate_memory(config, _finetune_config(case)).total / 1e9,
    }
    if device.type == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        found["peak_reserved_gb"] = torch.cuda.max_memory_reserved(device) / 1e9
    return found


def make_batches(config: OpenVLAConfig, batch_size: int) -> list[TrainingBatch]:
    """Return a few batches on the host, prompts of different lengths padded on the right."""
    generator = np.random.default_rng(0)
    found, pin = [], torch.cuda.is_available()
    first = config.action_vocab_size - config.n_action_bins
    channels, side = 3 * len(config.image_sizes), config.image_sizes[0]
    for _ in range(_BATCHES):
        rows = []
        for _ in range(batch_size):
            left_out = int(generator.integers(0, 9))  # instructions differ in length
            actions = generator.integers(first, config.action_vocab_size, _DIMENSIONS)
            rows.append([*PROMPT_IDS[:8], *PROMPT_IDS[8 + left_out :], *actions.tolist(), _EOS])
        width = max(len(row) for row in rows)
        ids = torch.full((batch_size, width), config.pad_token_id)
        labels = torch.full_like(ids, IGNORE_INDEX)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, len(row) - _DIMENSIONS - 1 : len(row)] = ids[i, len(row) - 8 : len(row)]
        pixels = generator.standard_normal((batch_size, channels, side, side), dtype=np.float32)
        tensors = (ids, labels, ids != config.pad_token_id, torch.from_numpy(pixels))
        ids, labels, mask, images = (t.pin_memory() if pin else t for t in tensors)
        found.append(TrainingBatch(ids, labels, mask, images))
    return found


def _our_step(model: OpenVLAForActionPrediction, case: Case) -> Step:
    """Return a step of `training.loop`, without data and logs."""
    finetune = _finetune_config(case)
    save_passes(choose_trained(model, finetune.strategy))
    checkpoint_activations(model, case.checkpointing)
    if case.compile:
        compile_blocks(model)
    tokenizer = ActionTokenizer(model.config.action_vocab_size, model.config.n_action_bins)
    objective = Objective(model, tokenizer, precision="bfloat16").to(model.device).train()
    parameters = trained_parameters(objective)
    optimizer = build_optimizer(parameters, finetune)

    def step(batch: TrainingBatch) -> float:
        found = objective(batch)
        found["loss"].backward()
        clip_gradients(parameters.values(), 0.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(found["loss"].detach())

    return step


def _reference_step(model: OpenVLAForActionPrediction, case: Case) -> Step:
    """Return a step as the reference's script takes it, written anew.

    Source: openvla @ c8f03f4, vla-scripts/finetune.py.
    """
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=_RANK,
        lora_alpha=_ALPHA,
        lora_dropout=0.0,
        target_modules=adapter_targets(model),
        init_lora_weights="gaussian",
    )
    adapted = get_peft_model(model, lora, autocast_adapter_dtype=case.float32_adapters).train()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_RATE)
    tokenizer = ActionTokenizer(model.config.action_vocab_size, model.config.n_action_bins)
    first = model.config.action_vocab_size - model.config.n_action_bins

    def step(batch: TrainingBatch) -> float:
        with torch.autocast(batch.input_ids.device.type, dtype=torch.bfloat16):
            output = adapted(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                pixel_values=batch.pixel_values.to(torch.bfloat16),
                labels=batch.labels,
            )
        output.loss.backward()
        patches = output.logits.shape[1] - batch.labels.shape[1]
        chosen, wanted = output.logits[:, patches:-1].argmax(dim=2), batch.labels[:, 1:]
        is_action = wanted >= first
        ((chosen == wanted) & is_action).sum().float().div(is_action.sum()).item()
        decoded = [tokenizer.decode(ids[is_action].cpu().numpy()) for ids in (chosen, wanted)]
        np.abs(decoded[0] - decoded[1]).mean()
        optimizer.step()
        optimizer.zero_grad()
        return float(output.loss.item())

    return step


def _finetune_config(case: Case) -> FinetuneConfig:
    return FinetuneConfig(
        base="random weights",
        data=DataConfig(sources=(SourceConfig(path="random", name="random"),)),
        strategy=StrategyConfig(name=case.strategy, lora_rank=_RANK, lora_alpha=_ALPHA),
        optimization=OptimizationConfig(learning_rate=_RATE, batch_size=case.batch_size),
        run=RunConfig(activation_checkpointing=case.checkpointing, compile=case.compile),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
