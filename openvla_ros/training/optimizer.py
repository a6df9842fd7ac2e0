"""AdamW and its learning rate, as OpenVLA is trained.

Built after the model is spread over processes: an optimiser holds the parameters it is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from openvla_ros.training.config import FinetuneConfig


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return name -> what is trained in an `Objective`, wrapped or not, auxiliary losses included.

    Names are those of the bare objective, such as "model.projector.fc1.weight": with LoRA they end
    in ".lora_A.default.weight". The order is the same in all processes and runs.
    """
    return {
        name.removeprefix("module."): parameter  # "module." is DDP's
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], config: FinetuneConfig
) -> torch.optim.AdamW:
    """Return AdamW over the parameters, with weight decay on none of the biases and norms.

    Args:
        parameters: From `trained_parameters`, after the objective was distributed.
        config: Of the run; the learning rate is set anew at each step.

    Source: openvla @ c8f03f4, prismatic/training/strategies/fsdp.py (decay groups).
    """
    decays = [p for name, p in parameters.items() if _decays(name, p)]
    others = [p for name, p in parameters.items() if not _decays(name, p)]
    groups = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((decays, config.weight_decay), (others, 0.0))
        if members
    ]
    on_gpu = all(parameter.device.type == "cuda" for parameter in parameters.values())
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.optimization.beta1, config.optimization.beta2),
        fused=on_gpu,
    )


def learning_rate_at(step: int, config: FinetuneConfig) -> float:
    """Return the learning rate of the update number `step`, which counts from 0.

    It rises in equal parts over the warm-up, whose last update has the full rate, and then stays or
    falls so that an update after the last one would have 0.
    """
    optimization, rate = config.optimization, config.learning_rate
    warmup, last = optimization.warmup_steps, optimization.max_steps
    if step < warmup:
        return rate * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, last - warmup))
    if optimization.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * progress))
    return rate * (1 - progress) if optimization.schedule == "linear" else rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Make the next update use a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not name.endswith(".bias")
