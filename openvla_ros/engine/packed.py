"""Matrices in the layout that oneDNN multiplies fastest on a CPU, packed once.

Given a plain bfloat16 matrix, oneDNN arranges it anew inside every product. For one row of
activations that costs more than the product: packed, a decoding pass reads its weights about twice
as fast per core, and a prompt is a tenth faster. The bits of a product stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from openvla_ros.engine.low_bit import GROUP, LowBitMatrix
from openvla_ros.engine.weights import (
    MATRICES,
    LanguageWeights,
    decoder_layers,
    matrix_linears,
    release,
)
from openvla_ros.model.modeling import OpenVLAForActionPrediction

_FEW_ROWS = 16  # torch's int4 product beats expanding the matrix up to about here


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix (N, K) that nothing but `product` reads.

    Attributes:
        data: oneDNN's own arrangement.
        shape: (N, K).
        dtype: Of the numbers in it.
    """

    data: torch.Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (M, K) times the matrix transposed, (M, N)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.data, None, "none", [], "")


@dataclass(frozen=True)
class PackedInt4:
    """An int4 matrix (N, K), arranged for few rows beside the form that many rows expand.

    Attributes:
        whole: As the other formats are; expanded for a prompt.
        data: torch's own arrangement.
        scales_and_zeros: (K / 128, N, 2).
    """

    whole: LowBitMatrix
    data: torch.Tensor
    scales_and_zeros: torch.Tensor

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (M, K) times the matrix transposed, (M, N)."""
        if len(x) > _FEW_ROWS:
            return F.linear(x, self.whole.dequantize())
        return torch._weight_int4pack_mm_for_cpu(x, self.data, GROUP, self.scales_and_zeros)


def why_not(weights: LanguageWeights) -> str | None:
    """Return why packing would not help these weights where they are, or None."""
    if weights.embedding.device.type != "cpu":
        return f"the weights are on {weights.embedding.device.type}"
    if weights.embedding.dtype != torch.bfloat16:
        return f"the weights are {str(weights.embedding.dtype).removeprefix('torch.')}"
    if not torch.backends.mkldnn.is_available():
        return "this torch has no oneDNN"
    capability = torch.backends.cpu.get_cpu_capability()
    if capability != "AVX512":
        return f"this CPU's widest instructions are {capability}, not AVX512"
    if weights.heads != weights.key_value_heads:
        return "its attention shares keys between heads"
    return None


def pack(weights: LanguageWeights, model: OpenVLAForActionPrediction) -> LanguageWeights:
    """Return the weights packed; the plain ones are let go, matrix by matrix.

    The layers' linears are released: the model no longer runs by itself. Gate and up rows, which
    alternate in `weights`, become halves: [gate | up]. Low-bit matrices stay as they are, but for
    their scales, which take the dtype they are used in.

    Args:
        weights: Of which `why_not` is None. They are used up: its layers change.
        model: Whose linears are views into them.
    """
    for fused, layer in zip(weights.layers, decoder_layers(model), strict=True):
        for name in MATRICES:
            matrix = getattr(fused, name)
            release(matrix_linears(layer, name))
            # The tuple of layers is held by every caller: only so each plain matrix goes at once.
            object.__setattr__(fused, name, _prepared(name, matrix))
            del matrix
    head: Any = weights.head
    if head.data_ptr() != weights.embedding.data_ptr():  # tied: packing would hold it twice
        release([model.language_model.lm_head])
        head = _packed(head)
    return replace(weights, head=head)


def _prepared(
    name: str, matrix: torch.Tensor | LowBitMatrix
) -> PackedMatrix | PackedInt4 | LowBitMatrix:
    if isinstance(matrix, LowBitMatrix):
        matrix = replace(matrix, scales=matrix.scales.to(matrix.dtype))
        return _packed_int4(matrix) if matrix.kind == "int4" else matrix
    if name == "gate_up":
        matrix = torch.cat([matrix[0::2], matrix[1::2]])
    return _packed(matrix)


def _packed_int4(matrix: LowBitMatrix) -> PackedInt4:
    scales = matrix.scales  # (K / 128, N)
    grouped = matrix.dequantize().float().unflatten(1, (-1, GROUP))
    levels = (grouped / scales.float().t()[:, :, None]).round().clamp(-8, 7) + 8
    data = torch._convert_weight_to_int4pack_for_cpu(levels.flatten(1).to(torch.int32), 2)
    scales_and_zeros = torch.stack([scales, torch.zeros_like(scales)], dim=-1)
    return PackedInt4(matrix, data, scales_and_zeros)


def _packed(matrix: torch.Tensor) -> PackedMatrix:
    data = torch.ops.mkldnn._reorder_linear_weight(matrix)
    return PackedMatrix(data, tuple(matrix.shape), matrix.dtype)
