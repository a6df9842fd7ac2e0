"""The language model over a static key-value cache: a prompt at once, then few positions at a time.

This file knows shapes and order; the arithmetic is in `Operations`.
"""

from __future__ import annotations

from typing import Any

import torch

from openvla_ros.engine.operations import Operations
from openvla_ros.engine.weights import LanguageWeights

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
        first = weights.layers[0]
        normed = operations.prompt_norm(x, first.input_norm, weights.eps, first.qkv)
        for i, layer in enumerate(weights.layers):
            keys, values = self.keys[i], self.values[i]
            qkv = operations.qkv(normed, layer.qkv)
            queries = operations.store_prompt(qkv, keys, values, weights.cosines, weights.sines)
            attended = operations.attend_prompt(queries, keys, values)
            if i + 1 < len(weights.layers):
                x, normed = self._second_half(i, attended, x)
        return self._finish(attended[-wanted:].contiguous(), x[-wanted:].contiguous())

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
        first = weights.layers[0]
        x, normed = operations.embed_norm(
            token_ids, weights.embedding, first.input_norm, weights.eps, first.qkv
        )
        for i, layer in enumerate(weights.layers):
            attended = operations.attend(
                operations.qkv(normed, layer.qkv),
                self.keys[i],
                self.values[i],
                position,
                weights.cosines,
                weights.sines,
                limit,
                layer.output,
            )
            if i + 1 < len(weights.layers):
                x, normed = self._second_half(i, attended, x)
        return self._finish(attended, x)

    def _finish(self, attended: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and tokens from the last layer's attention and residual, (M, ...) each."""
        _, normed = self._second_half(len(self.weights.layers) - 1, attended, x)
        return self.operations.head(normed, self.weights.head)

    def _second_half(
        self, index: int, attended: torch.Tensor, x: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        """Return a layer's output (M, D), and that through the norm that follows the layer."""
        operations, weights, layer = self.operations, self.weights, self.weights.layers[index]
        x, normed = operations.output_add_norm(
            attended, layer.output, x, layer.post_norm, weights.eps, layer.gate_up
        )
        hidden = operations.gate_up(normed, layer.gate_up)
        if index + 1 < len(weights.layers):
            gain, following = weights.layers[index + 1].input_norm, weights.layers[index + 1].qkv
        else:
            gain, following = weights.final_norm, weights.head
        return operations.down_add_norm(hidden, layer.down, x, gain, weights.eps, following)
