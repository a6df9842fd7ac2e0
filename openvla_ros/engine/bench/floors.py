"""What the machine could do at best: bytes over the read rate, operations over the GEMM rate.

Both rates are measured here, on random data, at the sizes this model uses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch.nn import functional as F

from openvla_ros.model.configuration import OpenVLAConfig, VitSpec

DEFINITION = (
    "floor = operations of towers, projector and prompt / measured GEMM rate, but at least their "
    "weights / measured read rate; plus 6 decoding passes, each all language weights read once / "
    "measured read rate"
)
_READ_BYTES = {"cuda": 4 * 2**30, "cpu": 2**28}


@dataclass(frozen=True)
class Floor:
    """Lower bound of one action, and what it was computed from.

    Attributes:
        read_bytes_per_s: Measured, reading only.
        gemm_flops_per_s: Measured: all matrix products of one decoder layer at prompt length.
        towers_ms: Towers and projector.
        prefill_ms: Prompt through the language model.
        step_ms: One decoding pass.
        total_ms: Plain autoregression, 1 + 6 passes.
    """

    read_bytes_per_s: float
    gemm_flops_per_s: float
    towers_ms: float
    prefill_ms: float
    step_ms: float
    total_ms: float
    definition: str = DEFINITION

    def as_dict(self) -> dict[str, float | str]:
        """Return the fields, for JSON."""
        return asdict(self)


def measure_floor(
    config: OpenVLAConfig, text_length: int, steps: int, device: torch.device, dtype: torch.dtype
) -> Floor:
    """Return the floor of one action on this machine."""
    read, gemm = read_rate(device), gemm_rate(config, text_length, device, dtype)
    text = config.text_config
    layer = _layer_parameters(config)
    language = text.num_hidden_layers * layer
    head = text.vocab_size * text.hidden_size
    patches = _patches(config)
    towers = sum(
        _tower_flops(spec, size)
        for spec, size in zip(config.towers(), config.image_sizes, strict=True)
    )
    towers += 2 * patches * _projector_parameters(config)
    prompt = 2 * (patches + text_length) * language
    towers_s = towers / gemm
    prefill_s = max(prompt / gemm, language * dtype.itemsize / read)
    step_s = (language + head) * dtype.itemsize / read
    total = towers_s + prefill_s + steps * step_s
    return Floor(read, gemm, 1e3 * towers_s, 1e3 * prefill_s, 1e3 * step_s, 1e3 * total)


def read_rate(device: torch.device) -> float:
    """Return bytes per second of a reduction over far more than the caches hold."""
    count = _READ_BYTES[device.type] // 4
    data = torch.randint(-(2**31), 2**31 - 1, (count,), dtype=torch.int32, device=device)
    return 4 * count / _best_seconds(lambda: torch.amax(data, 0), device)


def gemm_rate(
    config: OpenVLAConfig, text_length: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Return operations per second over the four products of a decoder layer at prompt length."""
    rows = _patches(config) + text_length
    flops, seconds = 0.0, 0.0
    for columns, depth in _layer_shapes(config):
        x = torch.randn(rows, depth, device=device, dtype=dtype)
        weight = torch.randn(columns, depth, device=device, dtype=dtype)
        flops += 2.0 * rows * columns * depth
        seconds += _best_seconds(partial(F.linear, x, weight), device)
    return flops / seconds


def _best_seconds(run: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Return the shortest of some runs after a warm-up."""
    run()
    best = math.inf
    for _ in range(repeats):
        if device.type == "cuda":
            first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            for _ in range(5):  # long enough for the launch to disappear behind the work
                run()
            second.record()
            second.synchronize()
            best = min(best, first.elapsed_time(second) / 5e3)
        else:
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
    return best


def _layer_shapes(config: OpenVLAConfig) -> list[tuple[int, int]]:
    """(columns, depth) of a decoder layer's products, fused as the engine has them."""
    text = config.text_config
    width, hidden = text.hidden_size, text.intermediate_size
    head_dim = width // text.num_attention_heads
    qkv = (text.num_attention_heads + 2 * text.num_key_value_heads) * head_dim
    return [(qkv, width), (width, width), (2 * hidden, width), (width, hidden)]


def _layer_parameters(config: OpenVLAConfig) -> int:
    return sum(columns * depth for columns, depth in _layer_shapes(config))


def _patches(config: OpenVLAConfig) -> int:
    return (config.image_sizes[0] // config.towers()[0].patch_size) ** 2


def _tower_flops(spec: VitSpec, size: int) -> float:
    tokens = (size // spec.patch_size) ** 2 + spec.num_prefix_tokens
    width = spec.embed_dim
    block = 4 * width**2 + 2 * width * int(width * spec.mlp_ratio)
    attention = 4 * tokens**2 * width  # both products, 2 operations each
    return (spec.depth - 1) * (2 * tokens * block + attention)


def _projector_parameters(config: OpenVLAConfig) -> int:
    vision = sum(spec.embed_dim for spec in config.towers())
    text = config.text_config.hidden_size
    if len(config.towers()) == 1:
        return vision * text + text * text
    return vision * 4 * vision + 4 * vision * text + text * text
