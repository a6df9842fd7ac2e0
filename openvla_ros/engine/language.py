"""The language model over a static key-value cache: a prompt at once, then few positions at a time.

This file knows shapes and order; the arithmetic is in `Operations`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from openvla_ros.engine.operations import Operations
from openvla_ros.engine.weights import LanguageWeights, LayerWeights

#: Cached positions come in such multiples: kernels read whole blocks.
_CAPACITY_STEP = 64


class Language:
    """A Llama decoder for one sequence.

    Args:
        weights: Fused weights.
        operations: Arithmetic to use.
        positions: The cache holds at least so many.
    """

    def __init__(self, weights: LanguageWeights, operations: Operations, positions: int) -> None:
        self.weights = weights
        self.operations = operations
        capacity = -(-positions // _CAPACITY_STEP) * _CAPACITY_STEP
        shape = (len(weights.layers), weights.key_value_heads, capacity, weights.head_dim)
        self.keys = weights.embedding.new_zeros(shape)
        self.values = weights.embedding.new_zeros(shape)

    @property
    def capacity(self) -> int:
        """Positions the cache holds."""
        return self.keys.shape[2]

    def prefill(self, x: torch.Tensor, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (wanted, V) and tokens (wanted,) of the last positions of a prompt.

        Args:
            x: (S, D) embeddings of positions 0 .. S - 1; their keys and values are cached.
            wanted: Positions that need logits; only they pass the last layer's second half.
        """
        weights, operations = self.weights, self.operations
        normed = operations.rms_norm(x, weights.layers[0].input_norm, weights.eps)
        for i, layer in enumerate(weights.layers[:-1]):
            attended = self._attend_prompt(i, normed)
            delta = F.linear(attended, layer.output)
            x, normed = operations.add_rms_norm(x, delta, layer.post_norm, weights.eps)
            hidden = operations.silu_mul(F.linear(normed, layer.gate_up))
            delta = F.linear(hidden, layer.down)
            following = weights.layers[i + 1].input_norm
            x, normed = operations.add_rms_norm(x, delta, following, weights.eps)
        attended = self._attend_prompt(len(weights.layers) - 1, normed)
        return self._finish(attended[-wanted:].contiguous(), x[-wanted:].contiguous())

    def _attend_prompt(self, index: int, normed: torch.Tensor) -> torch.Tensor:
        weights, operations = self.weights, self.operations
        keys, values = self.keys[index], self.values[index]
        qkv = F.linear(normed, weights.layers[index].qkv)
        queries = operations.store_prompt(qkv, keys, values, weights.cosines, weights.sines)
        return operations.attend_prompt(queries, keys, values)

    def step(
        self, token_ids: torch.Tensor, position: torch.Tensor, limit: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (M, V) and next tokens (M,) after each of M consecutive ids.

        Args:
            token_ids: (M,) int64.
            position: (1,) int32, where the first of them stands.
            limit: No position is as high as this.
        """
        weights, operations = self.weights, self.operations
        gains = [layer.input_norm for layer in weights.layers[1:]]
        x, normed = operations.embed_norm(
            token_ids, weights.embedding, weights.layers[0].input_norm, weights.eps
        )
        for i, layer in enumerate(weights.layers):
            qkv = operations.qkv(normed, layer.qkv)
            keys, values = self.keys[i], self.values[i]
            attended = operations.attend(
                qkv, keys, values, position, weights.cosines, weights.sines, limit
            )
            if i < len(gains):
                x, normed = self._second_half(layer, attended, x, gains[i])
        return self._finish(attended, x)

    def _finish(
        self, attended: torch.Tensor, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and tokens from the last layer's attention and residual, (M, ...) each."""
        weights = self.weights
        _, normed = self._second_half(weights.layers[-1], attended, x, weights.final_norm)
        return self.operations.head(normed, weights.head)

    def _second_half(
        self, layer: LayerWeights, attended: torch.Tensor, x: torch.Tensor, gain: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        """Return the layer's output (M, D), and that through the norm with `gain`."""
        operations, eps = self.operations, self.weights.eps
        x, normed = operations.output_add_norm(attended, layer.output, x, layer.post_norm, eps)
        hidden = operations.gate_up(normed, layer.gate_up)
        return operations.down_add_norm(hidden, layer.down, x, gain, eps)
