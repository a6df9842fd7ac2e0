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

from openvla_ros.engine import cpu_operations, packed, torch_operations
from openvla_ros.engine.weights import LanguageWeights
from openvla_ros.model.modeling import OpenVLAForActionPrediction


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


def choose_operations(
    weights: LanguageWeights, model: OpenVLAForActionPrediction, *, keeps_modules: bool = False
) -> tuple[LanguageWeights, Operations, str]:
    """Return the weights, the fastest arithmetic that runs them where they are, and why that.

    Args:
        weights: The language model's, fused. Used up, if they come back in another layout.
        model: Whose modules are views into them.
        keeps_modules: These must go on running: the layout stays as it is.
    """
    why_no_triton = _why_no_triton(weights)
    if why_no_triton is None:
        from openvla_ros.engine import triton_operations

        return weights, _of_module("triton", triton_operations), "an NVIDIA GPU with Triton"
    if weights.embedding.device.type != "cpu":
        return weights, _of_module("torch", torch_operations), why_no_triton
    asked = "the Hugging Face modules stay beside it" if keeps_modules else None
    why_not_packed = asked or packed.why_not(weights)
    if why_not_packed is None:
        weights = packed.pack(weights, model)
        return weights, _of_module("cpu", cpu_operations), "bfloat16, packed for oneDNN"
    return weights, _of_module("torch", torch_operations), f"on a CPU; {why_not_packed}"


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
