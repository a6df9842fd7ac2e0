"""The language model's weights as the engine reads them: fused, once in memory.

Queries, keys and values of a layer are one matrix, gate and up rows alternate in another. The
modules of the Hugging Face model become views into them, so both run and nothing is held twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from openvla_ros.engine import low_bit
from openvla_ros.engine.low_bit import LowBitMatrix
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.modeling import OpenVLAForActionPrediction

Matrix = torch.Tensor | LowBitMatrix

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
    language_model: Any = model.language_model
    linears = [language_model.lm_head]
    for layer in language_model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        linears += [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    if any(type(m) is not nn.Linear or m.bias is not None for m in linears):
        return "its linear layers are quantised, carry adapters or have biases"
    return None


def fuse_language_model(
    model: OpenVLAForActionPrediction, quantization: str = "none"
) -> LanguageWeights:
    """Return the weights of the model's language part; its modules become views into them.

    Quantised, the layers' own linears are released instead: the model no longer runs by itself. At
    most one layer is in memory twice, for a moment.

    Raises:
        ConfigurationError: The engine does not support this model; the text says why.
    """
    reason = why_unsupported(model)
    if reason:
        raise ConfigurationError(f"The engine cannot run this model: {reason}. Use engine: off.")
    language_model = model.language_model
    config = language_model.config
    decoder = language_model.model
    cosines, sines = rotary_tables(model)
    head_dim = cosines.shape[1]
    return LanguageWeights(
        embedding=decoder.embed_tokens.weight.detach(),
        layers=tuple(_take_layer(layer, quantization) for layer in decoder.layers),
        final_norm=decoder.norm.weight.detach(),
        head=language_model.lm_head.weight.detach(),
        cosines=cosines,
        sines=sines,
        eps=config.rms_norm_eps,
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        head_dim=head_dim,
    )


def rotary_tables(model: OpenVLAForActionPrediction) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines (MAX_POSITIONS, d) in the dtype and on the device of the weights."""
    weight = model.language_model.model.embed_tokens.weight
    positions = torch.arange(MAX_POSITIONS, device=weight.device)[None]
    with torch.no_grad():
        cosines, sines = model.language_model.model.rotary_emb(weight, positions)
    return cosines[0].contiguous(), sines[0].contiguous()


def fuse_layer(layer: Any) -> LayerWeights:
    """Return one decoder layer's weights; its linear modules become views into them."""
    attention, mlp = layer.self_attn, layer.mlp
    return LayerWeights(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=_stack([attention.q_proj, attention.k_proj, attention.v_proj]),
        output=attention.o_proj.weight.detach(),
        post_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=_interleave(mlp.gate_proj, mlp.up_proj),
        down=mlp.down_proj.weight.detach(),
    )


def _take_layer(layer: Any, quantization: str) -> LayerWeights:
    fused = fuse_layer(layer)
    if quantization == "none":
        return fused
    names = ("qkv", "output", "gate_up", "down")
    for name in names:
        reason = low_bit.why_not(quantization, tuple(getattr(fused, name).shape))
        if reason:
            raise ConfigurationError(
                f"quantization {quantization!r} does not fit this model: {reason}. Use int8."
            )
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            _point_at(module, module.weight.new_empty(0, module.weight.shape[1]))
    low: dict[str, Any] = {
        name: low_bit.quantize(getattr(fused, name), quantization) for name in names
    }
    return replace(fused, **low)


def _stack(linears: list[nn.Linear]) -> torch.Tensor:
    fused = torch.cat([linear.weight.detach() for linear in linears])
    start = 0
    for linear in linears:
        rows = linear.weight.shape[0]
        _point_at(linear, fused[start : start + rows])
        start += rows
    return fused


def _interleave(gate: nn.Linear, up: nn.Linear) -> torch.Tensor:
    fused = torch.stack([gate.weight.detach(), up.weight.detach()], dim=1)  # (I, 2, D)
    _point_at(gate, fused[:, 0])
    _point_at(up, fused[:, 1])
    return fused.flatten(0, 1)


def _point_at(linear: nn.Linear, weight: torch.Tensor) -> None:
    linear.weight = nn.Parameter(weight, requires_grad=False)
