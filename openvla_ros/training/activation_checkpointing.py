"""What each block keeps for the backward pass, and compiling blocks; no weight changes its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.vision import VisionTransformer
from openvla_ros.training.config import CHECKPOINTING, require_choice


def transformer_blocks(model: OpenVLAForActionPrediction) -> Iterator[nn.Module]:
    """Yield the blocks that are computed: those of the towers, then the language model's layers."""
    for tower in model.vision_backbone.children():
        assert isinstance(tower, VisionTransformer)
        yield from tower.blocks[:-1]  # the last one only stores weights
    yield from model.language_model.model.layers


def checkpoint_activations(model: OpenVLAForActionPrediction, mode: str) -> None:
    """Make blocks forget their activations and compute them again in the backward pass.

    Gradients stay the same, dropout included. Call it before the model is spread over processes.

    Args:
        model: Changed in place.
        mode: "none"; "selective", the MLP of each block; "full", whole blocks.

    Raises:
        ConfigurationError: Not one of the modes.
    """
    require_choice("run.activation_checkpointing", mode, CHECKPOINTING)
    if mode == "none":
        return
    for block in transformer_blocks(model):
        module = block if mode == "full" else block.get_submodule("mlp")
        module.forward = _forgetting(module.forward)


def compile_blocks(model: OpenVLAForActionPrediction) -> None:
    """Compile each block in place; equal blocks share their code.

    Call it after `checkpoint_activations`, and before the model is spread over processes.
    """
    for block in transformer_blocks(model):
        block.compile()


def _forgetting(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def compute(*inputs: Any, **options: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        return checkpoint(forward, *inputs, use_reentrant=False, **options)

    return compute
