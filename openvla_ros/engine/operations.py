"""Which arithmetic the engine runs on: own GPU kernels, or plain torch, and why.

This file knows the two modules of operations, not what they compute.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from openvla_ros.engine import torch_operations
from openvla_ros.engine.weights import LanguageWeights


@dataclass(frozen=True)
class Operations:
    """One implementation of the engine's arithmetic; `torch_operations` documents each function."""

    name: str
    prompt_norm: Callable[..., Any]
    store_prompt: Callable[..., torch.Tensor]
    attend_prompt: Callable[..., torch.Tensor]
    embed_norm: Callable[..., tuple[torch.Tensor, Any]]
    qkv: Callable[..., torch.Tensor]
    attend: Callable[..., torch.Tensor]
    output_add_norm: Callable[..., tuple[torch.Tensor, Any]]
    gate_up: Callable[..., Any]
    down_add_norm: Callable[..., tuple[torch.Tensor, Any]]
    head: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    add_layer_norm: Callable[..., tuple[torch.Tensor, torch.Tensor]]


def choose_operations(weights: LanguageWeights) -> tuple[Operations, str]:
    """Return the fastest arithmetic that runs these weights where they are, and why it is that."""
    why_not = _why_no_triton(weights)
    if why_not:
        return _of_module("torch", torch_operations), why_not
    from openvla_ros.engine import triton_operations

    return _of_module("triton", triton_operations), "an NVIDIA GPU with Triton"


def _why_no_triton(weights: LanguageWeights) -> str | None:
    device = weights.embedding.device
    if device.type != "cuda":
        return f"the weights are on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than the kernels support (sm_80)"
    if weights.embedding.dtype not in (torch.bfloat16, torch.float16):
        return f"the kernels are for 16-bit weights, these are {weights.embedding.dtype}"
    from openvla_ros.engine import triton_operations

    return triton_operations.why_unsupported(weights.width, weights.head_dim)


def _of_module(name: str, module: ModuleType) -> Operations:
    fields = [field for field in Operations.__annotations__ if field != "name"]
    functions = {field: getattr(module, field) for field in fields}
    return Operations(name=name, **functions)
