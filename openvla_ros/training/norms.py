"""Norms in one pass over memory, and in the number format of what they are given.

Transformers' RMSNorm is six element-wise operations, several of them on float32 copies, and on a
GPU autocast turns input and output of a LayerNorm into float32. The fused kernels compute in
float32 inside and round once. The result is the same but for rounding.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def compute_norms_in_one_pass(model: nn.Module) -> None:
    """Make the norms of a model use torch's fused kernels; no weight changes its name.

    A norm whose weights have another format than its input, as trained ones do under autocast,
    computes as before.

    Args:
        model: Changed in place.
    """
    module: Any
    for module in model.modules():
        kind = type(module)
        if kind is nn.LayerNorm:
            module.forward = partial(_layer_norm, module)
        elif kind.__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = partial(_rms_norm, module)


def _layer_norm(norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    if norm.weight.dtype != x.dtype:
        return type(norm).forward(norm, x)
    with torch.autocast(x.device.type, enabled=False):  # which asks for float32
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _rms_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    if norm.weight.dtype != x.dtype:
        return type(norm).forward(norm, x)
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
