"""From a checkpoint folder to a network that runs: where, in which numbers, on which engine.

The half of `OpenVLAPolicy.from_pretrained` that concerns weights. Every choice is made once, and
its reason kept. This file knows nothing of images, prompts, statistics and actions.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from openvla_ros.engine import low_bit
from openvla_ros.engine.engine import Engine
from openvla_ros.engine.streaming import stream, why_not_streamed
from openvla_ros.engine.weights import LanguageWeights, why_unsupported
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.adapter import load_adapter
from openvla_ros.model.checkpoint import empty_model, load_model, stored_shapes
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.gpu_memory import memory_needed, require_gpu_memory
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.runtime_choices import (
    choose_attention,
    choose_device,
    choose_dtype,
    explain_quantization,
)
from openvla_ros.model.tensor_files import Progress

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
        keeps_modules: Whether the Hugging Face modules must run beside the engine.
        progress: Told how far reading the weights is: bytes done, bytes in all, what is done.
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
    keeps_modules: bool = False
    progress: Progress | None = None


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
    _require_known_engine(request)
    start = time.perf_counter()
    merge = _merges(request.adapter_mode, request.quantization)
    attention, why_attention = choose_attention(request.attn_implementation)
    device, dtype, why_there = _choose_place(folder, request)
    source = _Source(folder, config, device, dtype, attention)
    model, weights, how = _read(source, request, merge)
    engine, why_engine = _choose_engine(model, weights, request)
    choices = {
        **why_there,
        "attention": f"{attention}: {why_attention}",
        "engine": why_engine,
        "quantization": f"{request.quantization}: {explain_quantization(request.quantization)}",
        "adapter": _adapter_choice(request, merge),
        "start-up": f"{time.perf_counter() - start:.1f} s: {how}",
    }
    return Network(model, engine, choices)


@dataclass(frozen=True)
class _Source:
    folder: Path
    config: OpenVLAConfig
    device: torch.device
    dtype: torch.dtype
    attention: str


def _read(
    source: _Source, request: NetworkRequest, merge: bool
) -> tuple[OpenVLAForActionPrediction, LanguageWeights | None, str]:
    """Return the model, its language part if the engine's reader made it, and how it was read."""
    is_low_bit = request.quantization in low_bit.KINDS
    quantization = request.quantization if is_low_bit else "none"
    why_not = _why_not_streamed(request)
    if why_not is None:
        model = empty_model(source.config, source.dtype, source.attention)
        why_not = why_not_streamed(model, source.folder)
        if why_not is None:
            weights, how = stream(
                model,
                source.folder,
                device=source.device,
                quantization=quantization,
                progress=request.progress,
            )
            return model, weights, how
    start = time.perf_counter()
    model = load_model(
        source.folder,
        source.config,
        device=source.device,
        dtype=source.dtype,
        quantization="none" if is_low_bit else request.quantization,
        attn_implementation=source.attention,
    )
    how = f"read by transformers in {time.perf_counter() - start:.1f} s: {why_not}"
    if request.adapter:
        model = load_adapter(model, request.adapter, merge=merge)
    return model, None, how


def _why_not_streamed(request: NetworkRequest) -> str | None:
    """Return why the engine's reader is of no use for a request, or None."""
    if request.engine == "off":
        return "the engine is off"
    if request.adapter:
        return "an adapter is applied to the weights as the checkpoint has them"
    if request.quantization not in ("none", *low_bit.KINDS):
        return f"{request.quantization} is made by bitsandbytes"
    return None


def _require_known_engine(request: NetworkRequest) -> None:
    if request.engine not in ENGINES:
        raise ConfigurationError(
            f"engine {request.engine!r} is unknown; use one of {', '.join(ENGINES)}."
        )
    if request.engine == "off" and request.quantization in low_bit.KINDS:
        raise _needs_engine(request.quantization, "requested")


def _needs_engine(quantization: str, why_off: str) -> ConfigurationError:
    return ConfigurationError(
        f"quantization {quantization!r} is the engine's, which is off: {why_off}. Use engine auto "
        "with a merged adapter, or quantization none, nf4 or bnb_int8."
    )


def _choose_engine(
    model: OpenVLAForActionPrediction, weights: LanguageWeights | None, request: NetworkRequest
) -> tuple[Engine | None, str]:
    """Return the engine to run the model on, if any, and why.

    Raises:
        ConfigurationError: A quantization that only the engine has, without it.
    """
    low = request.quantization in low_bit.KINDS
    quantization = request.quantization if low else "none"
    if weights is None:
        reason = "requested" if request.engine == "off" else why_unsupported(model)
        if reason and low:
            raise _needs_engine(quantization, reason)
        if reason:
            return None, f"off: {reason}"
    runtime = Engine(
        model, quantization=quantization, weights=weights, keeps_modules=request.keeps_modules
    )
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
    is_rounded_last = request.adapter is not None and request.quantization in low_bit.KINDS
    mode = "none" if is_rounded_last else request.quantization
    weight_bytes = memory_needed(shapes, dtype.itemsize).get(mode, 0.0)
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
