"""What the machine could do at best: bytes over the read rate, operations over the GEMM rate.

Both rates are measured here, on random data, at the sizes this model uses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch.nn import functional as F

from openvla_ros.model.configuration import OpenVLAConfig, VitSpec

DEFINITION = (
    "floor = operations of towers and projector / GEMM rate; plus the prompt's operations / GEMM "
    "rate, but at least the language weights / read rate; plus 6 decoding passes, each the "
    "language weights in the variant's own format and the head / read rate. GEMM rate: the "
    "products of one decoder layer at prompt length, in the model's dtype (fp8 variants on a GPU: "
    "in fp8). Read rate: a maximum over more than the caches hold. Both are the best of several "
    "measurements in this run; where other programs use the machine they come out too low, and "
    "shares above 100 %."
)
_READ_BYTES = {"cuda": 4 * 2**30, "cpu": 2**28}
_ROWS_STEP = 16  # fp8 products take rows in such multiples
_FP8_CAPABILITY = (8, 9)
_INT4_GROUP_BYTES = 4 / 128  # a float32 scale for 128 weights
_BYTES_PER_WEIGHT = {"int8": 1.0, "fp8": 1.0, "int4": 0.5 + _INT4_GROUP_BYTES}


@dataclass(frozen=True)
class Rates:
    """What the machine does at best, measured.

    Attributes:
        read_bytes_per_s: Reading only.
        gemm_flops_per_s: All matrix products of one decoder layer at prompt length.
        fp8_gemm_flops_per_s: The same in fp8, or None where there is none.
    """

    read_bytes_per_s: float
    gemm_flops_per_s: float
    fp8_gemm_flops_per_s: float | None


@dataclass(frozen=True)
class Floor:
    """Lower bound of one action by plain decoding, in milliseconds.

    Attributes:
        towers_ms: Towers and projector.
        prefill_ms: Prompt through the language model.
        decode_ms: All decoding passes.
    """

    towers_ms: float
    prefill_ms: float
    decode_ms: float

    @property
    def total_ms(self) -> float:
        """1 + 6 passes."""
        return self.towers_ms + self.prefill_ms + self.decode_ms

    def shares(self, stages_ms: Mapping[str, float]) -> dict[str, float]:
        """Return the share of the floor that each measured stage reaches."""
        floors = asdict(self)
        return {
            name: floors[name] / value
            for name, value in stages_ms.items()
            if name in floors and value > 0
        }


def measure_rates(
    config: OpenVLAConfig, text_length: int, device: torch.device, dtype: torch.dtype
) -> Rates:
    """Return the rates of this machine at this model's sizes."""
    fp8 = None
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FP8_CAPABILITY:
        fp8 = fp8_gemm_rate(config, text_length, device, dtype)
    return Rates(read_rate(device), gemm_rate(config, text_length, device, dtype), fp8)


def floor_of(
    config: OpenVLAConfig,
    text_length: int,
    steps: int,
    rates: Rates,
    dtype: torch.dtype,
    kind: str = "none",
) -> Floor:
    """Return the floor of one action whose layers' weights are stored as `kind` says."""
    text = config.text_config
    weights = text.num_hidden_layers * sum(n * k for n, k in layer_shapes(config))
    stored = weights * bytes_per_weight(kind, dtype)
    head = text.vocab_size * text.hidden_size * dtype.itemsize
    patches = _patches(config)
    towers = sum(
        tower_flops(spec, size)
        for spec, size in zip(config.towers(), config.image_sizes, strict=True)
    )
    towers += 2 * patches * _projector_parameters(config)
    prompt = 2 * (patches + text_length) * weights
    gemm = (rates.fp8_gemm_flops_per_s if kind == "fp8" else None) or rates.gemm_flops_per_s
    prefill_s = max(prompt / gemm, stored / rates.read_bytes_per_s)
    step_s = (stored + head) / rates.read_bytes_per_s
    return Floor(1e3 * towers / rates.gemm_flops_per_s, 1e3 * prefill_s, 1e3 * steps * step_s)


def bytes_per_weight(kind: str, dtype: torch.dtype) -> float:
    """Return what a weight of the layers takes, stored as `kind` says ("none": in `dtype`)."""
    return _BYTES_PER_WEIGHT.get(kind, dtype.itemsize)


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
    for columns, depth in layer_shapes(config):
        x = torch.randn(rows, depth, device=device, dtype=dtype)
        weight = torch.randn(columns, depth, device=device, dtype=dtype)
        flops += 2.0 * rows * columns * depth
        seconds += _best_seconds(partial(F.linear, x, weight), device)
    return flops / seconds


def fp8_gemm_rate(
    config: OpenVLAConfig, text_length: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Return the same with e4m3 on both sides and one scale for each."""
    rows = _patches(config) + text_length
    padded = -(-rows // _ROWS_STEP) * _ROWS_STEP
    one = torch.ones((), device=device)
    flops, seconds = 0.0, 0.0
    for columns, depth in layer_shapes(config):
        x = torch.randn(padded, depth, device=device).to(torch.float8_e4m3fn)
        weight = torch.randn(columns, depth, device=device).to(torch.float8_e4m3fn)
        run = partial(
            torch._scaled_mm,
            x,
            weight.t(),
            scale_a=one,
            scale_b=one,
            out_dtype=dtype,
            use_fast_accum=True,
        )
        flops += 2.0 * rows * columns * depth
        seconds += _best_seconds(run, device)
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


def layer_shapes(config: OpenVLAConfig) -> list[tuple[int, int]]:
    """Return (columns, depth) of a decoder layer's products, fused as the engine has them."""
    text = config.text_config
    width, hidden = text.hidden_size, text.intermediate_size
    head_dim = width // text.num_attention_heads
    qkv = (text.num_attention_heads + 2 * text.num_key_value_heads) * head_dim
    return [(qkv, width), (width, width), (2 * hidden, width), (width, hidden)]


def _patches(config: OpenVLAConfig) -> int:
    return (config.image_sizes[0] // config.towers()[0].patch_size) ** 2


def tower_flops(spec: VitSpec, size: int) -> float:
    """Return the operations of a tower's blocks that are computed, for a square image."""
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
