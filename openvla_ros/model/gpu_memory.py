"""How much GPU memory a checkpoint takes, and whether that much is free: before it is loaded.

This file knows shapes and bytes; it opens no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from openvla_ros.errors import GpuMemoryError

GIB = 2**30
#: Bytes per weight of the language model's linear layers. One float32 scale per matrix (fp8) or row
#: (int8) is nothing; int4 has one per 128 weights, nf4 one per 64.
BYTES_PER_QUANTIZED_WEIGHT = {
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.5 + 4 / 128,
    "nf4": 0.5 + 4 / 64,
    "bnb_int8": 1.0,
}
QUANTIZED_PREFIX = "language_model.model.layers."
#: Activations, the key-value cache, an adapter, buffers of the libraries. On a CPU the 7B network
#: takes 0.3 GB more than its weights (docs/benchmarks/full_size.md); the rest is reserve.
MARGIN_BYTES = GIB


def memory_needed(shapes: Mapping[str, tuple[int, ...]], full_bytes: int) -> dict[str, float]:
    """Return bytes of weights per quantisation mode.

    Args:
        shapes: Key to shape of every tensor.
        full_bytes: Bytes per weight that is not quantised.
    """
    counts = {key: math.prod(shape) for key, shape in shapes.items()}
    quantized = sum(
        count
        for key, count in counts.items()
        if key.startswith(QUANTIZED_PREFIX) and len(shapes[key]) == 2
    )
    total = sum(counts.values())
    rest = (total - quantized) * full_bytes
    modes = {mode: rest + size * quantized for mode, size in BYTES_PER_QUANTIZED_WEIGHT.items()}
    return {"none": float(total * full_bytes), **modes}


def require_gpu_memory(
    device: torch.device,
    weight_bytes: float,
    *,
    min_free_gib: float = 0.0,
    mem_get_info: Callable[[torch.device], tuple[int, int]] | None = None,
) -> str:
    """Return what is needed and what is free, in words; "" when the device is no GPU.

    Args:
        device: Where the weights will go.
        weight_bytes: Their size there.
        min_free_gib: What must be free, GiB; 0 = the weights and `MARGIN_BYTES`.
        mem_get_info: Device → free and total bytes; None = torch's.

    Raises:
        GpuMemoryError: Less is free; nothing has been loaded.
    """
    if device.type != "cuda":
        return ""
    free, total = (mem_get_info or torch.cuda.mem_get_info)(device)
    if min_free_gib > 0.0:
        needed, why = min_free_gib * GIB, "min_free_gpu_memory_gib"
    else:
        needed = weight_bytes + MARGIN_BYTES
        why = f"{weight_bytes / GIB:.2f} GiB of weights and {MARGIN_BYTES / GIB:g} GiB beside them"
    if free < needed:
        raise GpuMemoryError(
            f"{needed / GIB:.2f} GiB must be free on {device} ({why}), and {free / GIB:.2f} of its "
            f"{total / GIB:.2f} GiB are. Nothing was loaded. End what else uses the GPU, choose a "
            "smaller `quantization`, or set min_free_gpu_memory_gib if you know better."
        )
    return f"{needed / GIB:.2f} GiB: {why}; {free / GIB:.2f} GiB are free"
