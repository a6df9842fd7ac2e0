"""From a checkpoint folder to a network that runs: where, in which numbers, on which engine.

The half of `OpenVLAPolicy.from_pretrained` that concerns weights. Every choice is made once, and
its reason kept. This file knows nothing of images, prompts, statistics and actions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from openvla_ros.engine import low_bit
from openvla_ros.engine.engine import Engine
from openvla_ros.engine.weights import why_unsupported
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.adapter import load_adapter
from openvla_ros.model.checkpoint import load_model, stored_shapes
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.gpu_memory import memory_needed, require_gpu_memory
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.runtime_choices import (
    choose_attention,
    choose_device,
    choose_dtype,
    explain_quantization,
)

ADAPTER_MODES = ("auto", "merge", "attach")
ENGINES = ("auto", "off")


@dataclass(frozen=True)
class NetworkRequest:
    """How a network shall run: the arguments of `OpenVLAPolicy.from_pretrained` about weights.

    Attributes:
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto", "float32", "bfloat16" or "float16".
        quantization: "none", or the name of a mode.
        adapter: Folder of a PEFT LoRA adapter, or None.
        adapter_name: What the user calls it.
        adapter_mode: One of `ADAPTER_MODES`.
        attn_implementation: "sdpa" or "eager".
        min_free_gpu_memory_gib: What must be free on a GPU; 0 = the weights and 1 GiB.
        engine: One of `ENGINES`.
    """

    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "none"
    adapter: Path | None = None
    adapter_name: str = ""
    adapter_mode: str = "auto"
    attn_implementation: str = "sdpa"
    min_free_gpu_memory_gib: float = 0.0
    engine: str = "auto"


@dataclass(frozen=True)
class Network:
    """A loaded network.

    Attributes:
        model: In evaluation mode, on its device.
        engine: What runs it, or None when the model runs by itself.
        choices: Every automatic choice as "value: reason".
    """

    model: OpenVLAForActionPrediction
    engine: Engine | None
    choices: dict[str, str]


def load_network(folder: Path, config: OpenVLAConfig, request: NetworkRequest) -> Network:
    """Return the network of a checkpoint folder.

    Raises:
        CheckpointError: Something is missing, damaged or does not fit; nothing was loaded.
        GpuMemoryError: Less GPU memory is free; nothing was loaded.
        ConfigurationError, DeviceError, DependencyError: The request cannot be met here.
    """
    quantization = request.quantization
    merge = _merges(request.adapter_mode, quantization)
    attention, why_attention = choose_attention(request.attn_implementation)
    device, dtype, why_there = _choose_place(folder, request)
    model = load_model(
        folder,
        config,
        device=device,
        dtype=dtype,
        quantization="none" if quantization in low_bit.KINDS else quantization,
        attn_implementation=attention,
    )
    if request.adapter:
        model = load_adapter(model, request.adapter, merge=merge)
    engine, why_engine = _choose_engine(model, request.engine, quantization)
    choices = {
        **why_there,
        "attention": f"{attention}: {why_attention}",
        "engine": why_engine,
        "quantization": f"{quantization}: {explain_quantization(quantization)}",
        "adapter": _adapter_choice(request, merge),
    }
    return Network(model, engine, choices)


def _choose_engine(
    model: OpenVLAForActionPrediction, engine: str, quantization: str
) -> tuple[Engine | None, str]:
    """Return the engine to run the model on, if any, and why.

    Raises:
        ConfigurationError: Unknown name, or a quantization that only the engine has without it.
    """
    if engine not in ENGINES:
        raise ConfigurationError(f"engine {engine!r} is unknown; use one of {', '.join(ENGINES)}.")
    low = quantization in low_bit.KINDS
    reason = "requested" if engine == "off" else why_unsupported(model)
    if reason and low:
        raise ConfigurationError(
            f"quantization {quantization!r} is the engine's, which is off: {reason}. Use engine "
            "auto with a merged adapter, or quantization none, nf4 or bnb_int8."
        )
    if reason:
        return None, f"off: {reason}"
    runtime = Engine(model, quantization=quantization if low else "none")
    return runtime, runtime.choices["engine"]


def _choose_place(
    folder: Path, request: NetworkRequest
) -> tuple[torch.device, torch.dtype, dict[str, str]]:
    """Return device and number format that have room for the weights, and why, by name."""
    device, why_device = choose_device(request.device)
    shapes = stored_shapes(folder)
    weights = sum(math.prod(shape) for shape in shapes.values())
    dtype, why_dtype = choose_dtype(request.dtype, device, weights)
    why = {
        "device": f"{device}: {why_device}",
        "dtype": f"{str(dtype).removeprefix('torch.')}: {why_dtype}",
    }
    weight_bytes = memory_needed(shapes, dtype.itemsize).get(request.quantization, 0.0)
    memory = require_gpu_memory(device, weight_bytes, min_free_gib=request.min_free_gpu_memory_gib)
    return device, dtype, why | ({"GPU memory": memory} if memory else {})


def _merges(adapter_mode: str, quantization: str) -> bool:
    if adapter_mode not in ADAPTER_MODES:
        raise ConfigurationError(
            f"adapter_mode {adapter_mode!r} is unknown; use one of {', '.join(ADAPTER_MODES)}."
        )
    if adapter_mode == "merge" and quantization not in ("none", *low_bit.KINDS):
        raise ConfigurationError(
            f"An adapter cannot be merged into {quantization} weights without rounding it away; "
            "use adapter_mode attach, or quantization none."
        )
    return adapter_mode == "merge" or (
        adapter_mode == "auto" and quantization in ("none", *low_bit.KINDS)
    )


def _adapter_choice(request: NetworkRequest, merge: bool) -> str:
    if request.adapter is None:
        return "none: not asked for"
    how = "merged, no cost per step" if merge else "attached beside the weights"
    return f"{request.adapter_name}: {how}"
