"""Device, number format and quantisation: chosen once, with the reason in words.

This file knows the machine, not the model.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from openvla_ros.config.policy import BITSANDBYTES_QUANTIZATIONS
from openvla_ros.errors import ConfigurationError, DependencyError, DeviceError

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_ATTENTIONS = {
    "sdpa": "part of torch, needs no extra library",
    "eager": "requested; slower, for comparison",
}
_FULL_PRECISION_SHARE_OF_RAM = 0.8


def choose_device(device: str = "auto") -> tuple[torch.device, str]:
    """Return the device to run on, and why.

    Raises:
        DeviceError: The requested GPU is not there.
        ConfigurationError: Not a device name.
    """
    available = torch.cuda.is_available()
    if device == "auto":
        if available:
            return torch.device("cuda:0"), f"first GPU ({torch.cuda.get_device_name(0)})"
        return torch.device("cpu"), f"no usable CUDA GPU ({_why_no_cuda()})"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(
            f"device {device!r} is not a device name; use auto, cpu, cuda or cuda:N."
        ) from error
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigurationError(
            f"device {device!r} is not supported; use auto, cpu, cuda or cuda:N."
        )
    if chosen.type == "cuda":
        if not available:
            raise DeviceError(f"device {device!r} was asked for: {_why_no_cuda()}.")
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise DeviceError(
                f"device {device!r} was asked for, but this machine has "
                f"{torch.cuda.device_count()} GPU(s); use cuda:0 or auto."
            )
    return chosen, "requested"


def choose_dtype(dtype: str, device: torch.device, parameters: int = 0) -> tuple[torch.dtype, str]:
    """Return the number format of the weights, and why.

    Args:
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: Where the model runs.
        parameters: Number of weights, to tell whether float32 fits in memory.

    Raises:
        ConfigurationError: Not one of the formats.
    """
    if dtype != "auto":
        if dtype not in _DTYPES:
            raise ConfigurationError(f"dtype {dtype!r} is unknown; use auto, {', '.join(_DTYPES)}.")
        return _DTYPES[dtype], "requested"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "what the checkpoints were published in"
        return torch.float16, "this GPU has no bfloat16"
    needed, ram = 4 * parameters, available_ram_bytes()
    if ram and needed > _FULL_PRECISION_SHARE_OF_RAM * ram:
        return torch.bfloat16, (
            f"float32 weights need {needed / 2**30:.1f} GiB, {ram / 2**30:.1f} GiB are free"
        )
    return torch.float32, "exact, and it fits in memory"


def choose_attention(attn_implementation: str = "sdpa") -> tuple[str, str]:
    """Return the attention of the language model, and why.

    Raises:
        ConfigurationError: Not one that is supported.
    """
    if attn_implementation not in _ATTENTIONS:
        raise ConfigurationError(
            f"attn_implementation {attn_implementation!r} is unknown; use {', '.join(_ATTENTIONS)}."
        )
    return attn_implementation, _ATTENTIONS[attn_implementation]


def explain_quantization(quantization: str = "none") -> str:
    """Return why the weights have the form they have."""
    if quantization == "none":
        return "never quantised unasked: it changes the answers"
    by = "bitsandbytes" if quantization in BITSANDBYTES_QUANTIZATIONS else "the engine"
    return f"requested; linear layers of the language model, by {by}; other weights, other answers"


def quantization_config(quantization: str, compute_dtype: torch.dtype) -> Any | None:
    """Return the `BitsAndBytesConfig` of a mode, or None for "none".

    Towers, projector and output head stay in `compute_dtype`.

    Raises:
        ConfigurationError: Not a mode of bitsandbytes.
        DependencyError: bitsandbytes is not installed.
    """
    if quantization == "none":
        return None
    if quantization not in BITSANDBYTES_QUANTIZATIONS:
        raise ConfigurationError(
            f"quantization {quantization!r} is not one of bitsandbytes; those are "
            f"{', '.join(BITSANDBYTES_QUANTIZATIONS)}."
        )
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"quantization {quantization!r} needs bitsandbytes: pip install bitsandbytes, "
            "or choose fp8, int8 or int4, which need no library, or none."
        ) from error
    from transformers import BitsAndBytesConfig

    in_full = ["vision_backbone", "projector", "lm_head"]
    if quantization == "bnb_int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=in_full)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=in_full,
    )


def available_ram_bytes() -> int:
    """Return the memory this process can still take, or 0 where that cannot be told."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _page_cache_bytes()
    except (ValueError, OSError, AttributeError):
        return 0


def _page_cache_bytes() -> int:
    """Return what the kernel would give back: file pages count as used otherwise."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    kib = int(fields["MemAvailable"].split()[0]) - int(fields["MemFree"].split()[0])
    return max(kib, 0) * 1024


def _why_no_cuda() -> str:
    if torch.version.cuda is None:
        return f"the installed torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no NVIDIA driver or GPU"
        )
    return "CUDA is available"
