"""The language model's weights as the engine reads them: fused, once in memory.

Queries, keys and values of a layer are one matrix, gate and up rows alternate in another. The
modules of the Hugging Face model become views into them, so both run and nothing is held twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from openvla_ros.engine import low_bit
from openvla_ros.engine.low_bit import LowBitMatrix
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.modeling import OpenVLAForActionPrediction

Matrix = torch.Tensor | LowBitMatrix
#: Gives the weights of linears their values, once they have their places.
Fill = Callable[[Sequence[nn.Linear]], None]

#: Matrix of `LayerWeights` -> the linears of a Hugging Face layer that it is made of, in order.
MATRICES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}

#: Positions of the rotary tables: the longest prompt, the image and an action fit several times.
MAX_POSITIONS = 1024


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. D is the width, H and KV the heads, d their width, I the hidden width.

    Attributes:
        input_norm: (D,).
        qkv: ((H + 2 KV) d, D), rows [q | k | v].
        output: (D, H d).
        post_norm: (D,).
        gate_up: (2 I, D), rows gate 0, up 0, gate 1, up 1, ...
        down: (D, I).
    """

    input_norm: torch.Tensor
    qkv: Matrix
    output: Matrix
    post_norm: torch.Tensor
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True)
class LanguageWeights:
    """A Llama decoder.

    Attributes:
        embedding: (V, D).
        layers: Decoder layers in order.
        final_norm: (D,).
        head: (V, D).
        cosines: (MAX_POSITIONS, d) in the model's dtype, as the Hugging Face module computes them.
        sines: Likewise.
        eps: Of every norm.
        heads: H.
        key_value_heads: KV.
        head_dim: d.
    """

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor
    head: torch.Tensor
    cosines: torch.Tensor
    sines: torch.Tensor
    eps: float
    heads: int
    key_value_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """D."""
        return self.embedding.shape[1]


def why_unsupported(model: OpenVLAForActionPrediction) -> str | None:
    """Return why the engine cannot run this model, or None when it can."""
    config = model.config.text_config
    if config.model_type != "llama":
        return f"its language model is of type {config.model_type!r}, not 'llama'"
    if config.hidden_act != "silu":
        return f"its language model's activation is {config.hidden_act!r}, not 'silu'"
    linears = [model.language_model.lm_head, *layer_linears(model)]
    if any(type(m) is not nn.Linear or m.bias is not None for m in linears):
        return "its linear layers are quantised, carry adapters or have biases"
    return None


def require_quantizable(model: OpenVLAForActionPrediction, quantization: str) -> None:
    """Return when every matrix of the layers can be stored so.

    Raises:
        ConfigurationError: One cannot; the text says why.
    """
    for layer in decoder_layers(model) if quantization != "none" else ():
        for name in MATRICES:
            reason = low_bit.why_not(quantization, matrix_shape(layer, name))
            if reason:
                raise ConfigurationError(
                    f"quantization {quantization!r} does not fit this model: {reason}. Use int8."
                )


def fuse_language_model(
    model: OpenVLAForActionPrediction,
    quantization: str = "none",
    *,
    device: torch.device | None = None,
    fill: Fill | None = None,
) -> LanguageWeights:
    """Return the weights of the model's language part; its modules become views into them.

    Quantised, the layers' own linears are released instead: the model no longer runs by itself. One
    matrix at a time is in memory twice.

    Args:
        model: In evaluation mode. The layers' linears may still be on `meta`.
        quantization: "none", or one of `low_bit.KINDS`.
        device: Where the matrices of a model on `meta` go.
        fill: Reads the weights of such a model, matrix by matrix.

    Raises:
        ConfigurationError: The engine does not support this model; the text says why.
    """
    reason = why_unsupported(model)
    if reason:
        raise ConfigurationError(
            f"The engine cannot run this model: {reason}. Use engine off (node: use_engine false)."
        )
    require_quantizable(model, quantization)
    matrices = [
        {name: _take(layer, name, quantization, device, fill) for name in MATRICES}
        for layer in decoder_layers(model)
    ]
    return join_weights(model, matrices)


def join_weights(
    model: OpenVLAForActionPrediction, matrices: Sequence[Mapping[str, Matrix]]
) -> LanguageWeights:
    """Return the language part of a model: its layers' matrices by name, the rest from itself."""
    language_model: Any = model.language_model
    config = language_model.config
    decoder = language_model.model
    cosines, sines = rotary_tables(model)
    return LanguageWeights(
        embedding=decoder.embed_tokens.weight.detach(),
        layers=tuple(
            LayerWeights(
                input_norm=layer.input_layernorm.weight.detach(),
                post_norm=layer.post_attention_layernorm.weight.detach(),
                **fused,
            )
            for layer, fused in zip(decoder.layers, matrices, strict=True)
        ),
        final_norm=decoder.norm.weight.detach(),
        head=language_model.lm_head.weight.detach(),
        cosines=cosines,
        sines=sines,
        eps=config.rms_norm_eps,
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        head_dim=cosines.shape[1],
    )


def place_rest(model: OpenVLAForActionPrediction, device: torch.device) -> dict[str, torch.Tensor]:
    """Return key -> place of every parameter that is no part of a layer's matrices.

    Parameters on `meta` get memory on the device, without values; buffers get theirs, which no
    checkpoint stores.

    Args:
        model: From `empty_model`, or after an earlier call.
        device: Where it shall run.
    """
    in_matrices = set(layer_linears(model))
    given: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay one
    for module in model.modules():
        _compute_buffers(module, device)
        if module in in_matrices:
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta and parameter not in given:
                place = torch.empty_like(parameter, device=device)
                given[parameter] = nn.Parameter(place, requires_grad=False)
            setattr(module, name, given.get(parameter, parameter))
    return {
        key: parameter.detach()
        for key, parameter in model.named_parameters()
        if not parameter.is_meta
    }


def rotary_tables(model: OpenVLAForActionPrediction) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines (MAX_POSITIONS, d) in the dtype and on the device of the weights."""
    weight = model.language_model.model.embed_tokens.weight
    positions = torch.arange(MAX_POSITIONS, device=weight.device)[None]
    with torch.no_grad():
        cosines, sines = model.language_model.model.rotary_emb(weight, positions)
    return cosines[0].contiguous(), sines[0].contiguous()


def decoder_layers(model: OpenVLAForActionPrediction) -> Any:
    """Return the decoder layers of the language model in order."""
    return model.language_model.model.layers


def layer_linears(model: OpenVLAForActionPrediction) -> list[nn.Linear]:
    """Return all linears that fuse into matrices."""
    return [
        linear
        for layer in decoder_layers(model)
        for name in MATRICES
        for linear in matrix_linears(layer, name)
    ]


def matrix_linears(layer: nn.Module, name: str) -> list[nn.Linear]:
    """Return the linears of one matrix of a layer."""
    return [cast(nn.Linear, layer.get_submodule(path)) for path in MATRICES[name]]


def matrix_shape(layer: nn.Module, name: str) -> tuple[int, int]:
    """Return (N, K) of one matrix of a layer."""
    linears = matrix_linears(layer, name)
    return sum(linear.out_features for linear in linears), linears[0].in_features


def release(linears: Sequence[nn.Linear], device: torch.device | None = None) -> None:
    """Let go of the weights of linears whose rounded matrix takes their place."""
    for linear in linears:
        _point_at(linear, linear.weight.detach().new_empty(0, linear.in_features, device=device))


def _compute_buffers(module: nn.Module, device: torch.device) -> None:
    """Give buffers on `meta` the values that building the module anew gives them.

    On the CPU, as transformers computes them whichever device a model is loaded to. Only the rotary
    embedding has any; it is built from a configuration alone.
    """
    names = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
    if names:
        with torch.device("cpu"):
            anew: Any = type(module)(module.config)
        for name in names:
            setattr(module, name, anew.get_buffer(name).to(device))


def _take(
    layer: nn.Module,
    name: str,
    quantization: str,
    device: torch.device | None,
    fill: Fill | None,
) -> Matrix:
    """Return one matrix of a layer, filled and rounded, and keep nothing else of it."""
    linears = matrix_linears(layer, name)
    fused = _fuse(name, linears, device)
    if fill:
        fill(linears)
    if quantization == "none":
        return fused
    release(linears)
    return low_bit.quantize(fused, quantization)


def _fuse(name: str, linears: Sequence[nn.Linear], device: torch.device | None) -> torch.Tensor:
    """Return a matrix (N, K) whose parts the linears become; from `meta`, its values are unset."""
    first = linears[0].weight.detach()
    if len(linears) == 1 and not first.is_meta:
        return first
    rows = [linear.out_features for linear in linears]
    fused = first.new_empty(sum(rows), first.shape[1], device=device)
    parts = fused.unflatten(0, (-1, 2)).unbind(1) if name == "gate_up" else fused.split(rows)
    for linear, part in zip(linears, parts, strict=True):
        if not linear.weight.is_meta:
            part.copy_(linear.weight.detach())
        _point_at(linear, part)
    return fused


def _point_at(linear: nn.Linear, weight: torch.Tensor) -> None:
    linear.weight = nn.Parameter(weight, requires_grad=False)
