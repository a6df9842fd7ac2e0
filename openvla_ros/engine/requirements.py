"""What a quantization needs of the machine and the model: said before anything is loaded."""

from __future__ import annotations

from typing import Any

import torch

from openvla_ros.config.policy import ENGINE_QUANTIZATIONS, QUANTIZATIONS
from openvla_ros.engine import low_bit
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.runtime_choices import choose_device, quantization_config

_FP8_CAPABILITY = (8, 9)  # Ada and Hopper: the first GPUs whose matrix units take fp8


def require_quantization(
    quantization: str,
    config: OpenVLAConfig,
    device: str = "auto",
    engine: str = "auto",
    adapter_mode: str = "auto",
) -> None:
    """Return when the weights can be stored and run so here.

    Args:
        quantization: One of `QUANTIZATIONS`.
        config: Of the checkpoint.
        device: As the user names it.
        engine: "auto" or "off".
        adapter_mode: "auto", "merge" or "attach".

    Raises:
        ConfigurationError: They cannot; the text says why and what can.
        DependencyError: bitsandbytes is not installed.
        DeviceError: The device is not there.
    """
    if quantization not in QUANTIZATIONS:
        raise ConfigurationError(
            f"quantization {quantization!r} is unknown; use one of {', '.join(QUANTIZATIONS)}."
        )
    if quantization == "none":
        return
    if quantization not in ENGINE_QUANTIZATIONS:
        quantization_config(quantization, torch.bfloat16)
        return
    reason = (
        _why_no_engine(config, engine, adapter_mode)
        or _why_no_fp8(quantization, choose_device(device)[0])
        or _why_no_shape(quantization, config.text_config)
    )
    if reason:
        raise ConfigurationError(f"quantization {quantization!r} cannot run: {reason}")


def _why_no_engine(config: OpenVLAConfig, engine: str, adapter_mode: str) -> str:
    if engine == "off":
        return "it is the engine's, which is off. Use engine auto, or nf4 or bnb_int8."
    kind = config.text_config.model_type
    if kind != "llama":
        return (
            f"it is the engine's, which runs language models of type 'llama', not {kind!r}. Use "
            "nf4 or bnb_int8."
        )
    if adapter_mode == "attach":
        return (
            "it is the engine's, which runs no attached adapters. Use adapter_mode merge (the "
            "weights are merged first, then rounded), or nf4 or bnb_int8."
        )
    return ""


def _why_no_fp8(quantization: str, device: torch.device) -> str:
    if quantization != "fp8" or device.type != "cuda":
        return ""
    capability = torch.cuda.get_device_capability(device)
    if capability >= _FP8_CAPABILITY:
        return ""
    return (
        f"fp8 products need compute capability 8.9 (Ada, Hopper) or higher, "
        f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}. Use int8, or "
        "int4 where memory is short."
    )


def _why_no_shape(quantization: str, text: Any) -> str:
    width, hidden = text.hidden_size, text.intermediate_size
    head_dim = getattr(text, "head_dim", None) or width // text.num_attention_heads
    attended = text.num_attention_heads * head_dim
    shapes = (
        (attended + 2 * text.num_key_value_heads * head_dim, width),
        (width, attended),
        (2 * hidden, width),
        (width, hidden),
    )
    reasons = (low_bit.why_not(quantization, shape) for shape in shapes)
    reason = next((reason for reason in reasons if reason), "")
    return f"{reason}. Use int8 or fp8." if reason else ""
