"""Which variants there are, how each is made, and why this machine leaves some out.

This file knows names and reasons; `variants` knows how they run.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from openvla_ros.engine import low_bit
from openvla_ros.engine.bench import stock_low_bit, variants
from openvla_ros.engine.bench.floors import layer_shapes
from openvla_ros.engine.bench.memory import Memory
from openvla_ros.engine.bench.profiles import random_model
from openvla_ros.engine.bench.variants import Variant
from openvla_ros.engine.engine import Engine
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.checkpoint import expected_shapes
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.modeling import OpenVLAForActionPrediction


@dataclass(frozen=True)
class Setting:
    """What the variants run on."""

    config: OpenVLAConfig
    device: torch.device
    dtype: torch.dtype

    @property
    def parameters(self) -> int:
        """Weights of the whole network."""
        return sum(math.prod(shape) for shape in expected_shapes(self.config).values())


class Models:
    """Draws the profile's weights.

    Args:
        setting: Shape, device and dtype.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.drawing_s = 0.0
        self.used_before_shared: int | None = None
        self._shared: OpenVLAForActionPrediction | None = None

    def fresh(self) -> OpenVLAForActionPrediction:
        """Return a model with weights of its own, the same values every time."""
        started = time.perf_counter()
        model = random_model(self.setting.config, self.setting.device, self.setting.dtype)
        self.drawing_s = time.perf_counter() - started
        return model

    def twin(self, attention: str) -> OpenVLAForActionPrediction:
        """Return modules of their own around weights that all twins share.

        What torch.compile made for one is not lost when another attention is chosen for the next.
        """
        self.drawing_s = 0.0
        if self._shared is None:
            self.used_before_shared = Memory(self.setting.device).used()
            self._shared = self.fresh()
        tensors = [*self._shared.parameters(), *self._shared.buffers()]
        model = copy.deepcopy(self._shared, {id(tensor): tensor for tensor in tensors})
        model.set_attn_implementation(attention)
        return model

    def release(self) -> None:
        """Forget the weights that twins share."""
        self._shared = None


@dataclass(frozen=True)
class Entry:
    """One variant.

    Attributes:
        name: Names of Hugging Face's begin with "hf".
        how: What it is, in a line.
        weights: "shared" with other variants, "own", or the low-bit kind that the engine stores.
        make: From the models to the variant, ready to be called.
        why_not: Why it does not run in a setting, or None.
    """

    name: str
    how: str
    weights: str
    make: Callable[[Models], Variant]
    why_not: Callable[[Setting], str | None]

    @property
    def kind(self) -> str:
        """How the engine stores the layers' weights; "none" is the model's dtype."""
        return self.weights if self.weights in low_bit.KINDS else "none"


def catalogue() -> tuple[Entry, ...]:
    """Return every variant, in the order in which they are built."""
    return (
        _loop("eager"),
        _loop("sdpa"),
        Entry(
            "hf_generate_sdpa",
            "LlamaForCausalLM.generate, SDPA, dynamic cache",
            "shared",
            lambda models: variants.generate(models.twin("sdpa")),
            _always,
        ),
        Entry(
            "hf_static_compile",
            "generate, static cache: transformers compiles the decoding step; towers compiled",
            "shared",
            lambda models: variants.generate(models.twin("sdpa"), compiled=True),
            _why_no_compiler,
        ),
        *(_stock(name) for name in stock_low_bit.CONVERSIONS),
        *(_engine(kind) for kind in ("none", *low_bit.KINDS)),
    )


def choose(
    setting: Setting, only: tuple[str, ...], skip: tuple[str, ...]
) -> tuple[list[Entry], dict[str, str]]:
    """Return the variants to measure, and why the others are not.

    Raises:
        ConfigurationError: `only` or `skip` names none of them, or nothing is left.
    """
    entries = catalogue()
    known = [entry.name for entry in entries]
    for name in (*only, *skip):
        if name not in known:
            raise ConfigurationError(f"The variant {name!r} is unknown; use {', '.join(known)}.")
    chosen, skipped = [], {}
    for entry in entries:
        left_out = entry.name in skip or (only and entry.name not in only)
        reason = "not asked for" if left_out else entry.why_not(setting)
        if reason is None:
            chosen.append(entry)
        else:
            skipped[entry.name] = reason
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items())
        raise ConfigurationError(f"No variant is left to measure. {reasons}.")
    return chosen, skipped


def _loop(attention: str) -> Entry:
    return Entry(
        f"hf_{attention}",
        f"our greedy loop over Hugging Face's Llama, {attention} attention, dynamic cache: less "
        "work per id than generate",
        "shared",
        lambda models: variants.plain_loop(models.twin(attention)),
        _always,
    )


def _stock(name: str) -> Entry:
    conversion = stock_low_bit.CONVERSIONS[name]

    def make(models: Models) -> Variant:
        model = models.fresh()
        model.set_attn_implementation("sdpa")
        conversion.convert(model)
        if conversion.wants_compiling and models.setting.device.type == "cuda":
            return variants.generate(model, compiled=True)
        return variants.plain_loop(model)

    return Entry(f"hf_{name}", conversion.how, "own", make, partial(_why_no_stock, conversion))


def _engine(kind: str) -> Entry:
    def make(models: Models) -> Variant:
        return variants.engine(Engine(models.fresh(), quantization=kind))

    return Entry(
        "ours_plain" if kind == "none" else f"ours_{kind}",
        "this engine, one id after another" + ("" if kind == "none" else f", {kind} weights"),
        "own" if kind == "none" else kind,
        make,
        partial(_why_no_engine, kind),
    )


def _always(setting: Setting) -> str | None:
    return None


def _why_no_compiler(setting: Setting) -> str | None:
    if setting.device.type == "cuda":
        found = importlib.util.find_spec("triton") is not None
        return None if found else "torch.compile needs Triton on a GPU"
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler on a CPU; {compiler} is not here"
    return None


def _why_no_stock(conversion: stock_low_bit.Conversion, setting: Setting) -> str | None:
    if importlib.util.find_spec(conversion.package) is None:
        return f"{conversion.package} is not installed"
    if setting.device.type == "cpu" and conversion.needs_gpu:
        return f"{conversion.package} has it on GPUs only"
    return None


def _why_no_engine(kind: str, setting: Setting) -> str | None:
    if kind == "none":
        return None
    if kind == "fp8" and setting.device.type == "cpu":
        return "a CPU expands fp8 before every product; it is there for checks, not for speed"
    for shape in layer_shapes(setting.config):
        reason = low_bit.why_not(kind, shape)
        if reason:
            return reason
    return None
