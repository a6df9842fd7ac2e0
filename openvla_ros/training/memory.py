"""How much memory a run takes on each device, told before its first step.

Weights, gradients and moments are counted exactly, from shapes on `meta`. Activations are what
autograd keeps, operation by operation, for the network as PyTorch runs it with the fused attention;
docs/benchmarks/finetune.md has the sums. Bytes here are those PyTorch allocates; the CUDA context
and gaps between allocations are the reserve.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from openvla_ros.errors import DeviceError, GpuMemoryError
from openvla_ros.model.checkpoint import expected_shapes
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.gpu_memory import memory_needed
from openvla_ros.model.runtime_choices import available_ram_bytes
from openvla_ros.training.config import FinetuneConfig, StrategyConfig
from openvla_ros.training.strategies import count_parameters

GB = 1e9
#: Prompt, empty token, action and EOS of a usual instruction; the longest in BridgeData has 60.
TEXT_TOKENS = 40
_LABELS = 8
_MASTER_BYTES = 4  # what is trained is float32, and so are its gradient and both moments
_RESERVE_SHARE = 0.05
_RESERVE_BYTES = 1e9
_LANGUAGE = "language_model.model.layers."
_TRAINS_VISION = ("full", "sandwich", "lora", "qlora")
_WHOLE_LANGUAGE = ("full", "frozen_vision", "lora", "qlora")

# Bytes that autograd keeps per position, in units of the width for attention and norms and in units
# of the MLP's width for the MLP, with activations of 2 bytes.
_NORMS = 8.0  # two norms, whose input is kept in float32
_ATTENTION = 8.0  # q, k, v and the output of the fused attention
_LINEAR_INPUTS = 4.0  # of q/k/v and of o, where their weights or adapters are trained
_MLP_INPUT = 2.0  # of gate and up, or fc1
_GATED_MLP = 6.0  # gate, its SiLU, up
_PLAIN_MLP = 2.0  # before the GELU
_DOWN_INPUT = 2.0  # of down, or fc2
_BLOCK_INPUT = 2.0  # all that checkpointing a whole block keeps


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device of a run at the height of a step.

    Attributes:
        weights: Frozen and trained ones, and the copies autocast makes of the latter.
        gradients: Of what is trained.
        optimizer: Two moments, and the moving average if there is one.
        activations: What is kept for the backward pass, and the block being computed again.
        reserve: The CUDA context and gaps between allocations.
        advice: What would take less, and how much that is, best first.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    reserve: float
    advice: tuple[tuple[str, float], ...] = ()

    @property
    def total(self) -> float:
        """All of it, bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.reserve

    def describe(self) -> str:
        """Return the sum and its parts in words, in GB."""
        parts = ("weights", "gradients", "optimizer", "activations", "reserve")
        terms = ", ".join(f"{part} {getattr(self, part) / GB:.1f}" for part in parts)
        return f"{self.total / GB:.1f} GB: {terms}"


def estimate_memory(
    config: OpenVLAConfig, finetune: FinetuneConfig, world_size: int = 1
) -> MemoryEstimate:
    """Return what a run takes on each of its devices.

    Nothing is loaded.

    Args:
        config: Of the base.
        finetune: Of the run.
        world_size: Processes, each with a device of its own.
    """
    sizes = _Sizes(config)
    estimate = _estimate(sizes, finetune, world_size)
    advice = []
    for text, other in _alternatives(finetune):
        total = _estimate(sizes, other, world_size).total
        if total < estimate.total:
            advice.append((text, total))
    return replace(estimate, advice=tuple(advice))


def require_memory(
    estimate: MemoryEstimate,
    device: torch.device,
    *,
    mem_get_info: Callable[[torch.device], tuple[int, int]] | None = None,
    available_ram: Callable[[], int] | None = None,
) -> str:
    """Return what is needed and what is free, in words; call it before anything is loaded.

    Args:
        estimate: From `estimate_memory`.
        device: Of this process.
        mem_get_info: Device → free and total bytes of a GPU; None = torch's.
        available_ram: Free bytes of the machine, 0 where unknown; None = the kernel's word.

    Raises:
        GpuMemoryError: The GPU has less; says what would fit.
        DeviceError: The machine has less, where the run is on its CPU.
    """
    if device.type == "cuda":
        free = (mem_get_info or torch.cuda.mem_get_info)(device)[0]
    else:
        free = (available_ram or available_ram_bytes)()
        if not free:
            return f"{estimate.describe()}; how much is free cannot be told"
    if estimate.total <= free:
        return f"{estimate.describe()}; {free / GB:.1f} GB are free"
    fitting = [f"{text} ({total / GB:.1f} GB)" for text, total in estimate.advice if total <= free]
    hint = (
        f"What would fit: {'; '.join(fitting)}."
        if fitting
        else "No setting makes it fit: use a larger device, or several with torchrun."
    )
    kind = GpuMemoryError if device.type == "cuda" else DeviceError
    raise kind(
        f"This run needs about {estimate.describe()}. {device} has {free / GB:.1f} GB free. "
        f"Nothing was loaded. {hint}"
    )


def _alternatives(finetune: FinetuneConfig) -> list[tuple[str, FinetuneConfig]]:
    """Return settings that take less memory, those that change least of the result first."""
    found: list[tuple[str, FinetuneConfig]] = []
    optimization = finetune.optimization
    for mode in ("selective", "full"):
        run = replace(finetune.run, activation_checkpointing=mode)
        found.append((f"run.activation_checkpointing: {mode}", replace(finetune, run=run)))
    samples = optimization.batch_size * optimization.accumulation
    sizes = [size for size in range(optimization.batch_size - 1, 0, -1) if samples % size == 0]
    for size in sizes:
        smaller = replace(optimization, batch_size=size, accumulation=samples // size)
        text = f"optimization.batch_size: {size} with accumulation: {samples // size}"
        found.append((text, replace(finetune, optimization=smaller)))
    least = replace(finetune, run=replace(finetune.run, activation_checkpointing="full"))
    smallest = replace(optimization, batch_size=1, accumulation=samples)
    least = replace(least, optimization=smallest)
    both = "activation_checkpointing: full and batch_size: 1"
    found.append((both, least))
    names = {"lora": ("qlora",), "qlora": ()}.get(finetune.strategy.name, ("lora", "qlora"))
    for name in names:
        strategy = replace(finetune.strategy, name=name)
        found.append((f"strategy.name: {name}", replace(finetune, strategy=strategy)))
        text = f"strategy.name: {name}, {both}"
        found.append((text, replace(least, strategy=strategy)))
    return found


class _Sizes:
    """Shapes of a base and how many weights strategies train, each counted once."""

    def __init__(self, config: OpenVLAConfig) -> None:
        self.config = config
        self.shapes = expected_shapes(config)
        self.base = sum(math.prod(shape) for shape in self.shapes.values())
        self._trained: dict[StrategyConfig, int] = {}

    def trained(self, strategy: StrategyConfig) -> int:
        """Return how many weights are trained; qlora trains lora's."""
        key = replace(strategy, name="lora") if strategy.is_adapter else strategy
        if key not in self._trained:
            self._trained[key] = count_parameters(self.config, key)[0]
        return self._trained[key]


def _estimate(sizes: _Sizes, finetune: FinetuneConfig, world_size: int) -> MemoryEstimate:
    name, in_bf16 = finetune.strategy.name, finetune.run.precision == "bfloat16"
    number = 2 if in_bf16 else 4
    shapes, trained = sizes.shapes, sizes.trained(finetune.strategy)
    if finetune.strategy.is_adapter:
        kind = "nf4" if name == "qlora" else "none"
        frozen = memory_needed(shapes, number)[kind]
        shards = 1  # DDP: every process holds everything
    else:
        frozen = float((sizes.base - trained) * number)
        shards = world_size
    weights = (frozen + trained * _MASTER_BYTES) / shards
    if shards > 1:  # FSDP2 gathers a unit while another is computed
        weights += 2 * _largest_unit(shapes) * number
    elif in_bf16:  # autocast keeps the copies it made until the backward pass
        weights += trained * number
    average = 1 if finetune.optimization.ema_decay else 0
    activations = finetune.optimization.batch_size * _activations_of_a_sample(
        sizes.config, finetune
    )
    sums = MemoryEstimate(
        weights=weights,
        gradients=trained * _MASTER_BYTES / shards,
        optimizer=(2 + average) * trained * _MASTER_BYTES / shards,
        activations=activations * number / 2,
        reserve=0.0,
    )
    return replace(sums, reserve=_RESERVE_BYTES + _RESERVE_SHARE * sums.total)


def _largest_unit(shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the number of weights of the largest part that FSDP2 gathers at once."""
    sizes: dict[str, int] = {}
    for key, shape in shapes.items():
        unit = key
        if key.startswith(_LANGUAGE):
            unit = _LANGUAGE + key.removeprefix(_LANGUAGE).split(".", 1)[0]
        elif key.startswith("projector."):
            unit = "projector."
        sizes[unit] = sizes.get(unit, 0) + math.prod(shape)
    return max(sizes.values())


def _activations_of_a_sample(config: OpenVLAConfig, finetune: FinetuneConfig) -> float:
    """Return the bytes autograd keeps for one sample, where a number has 2 bytes."""
    mode, name = finetune.run.activation_checkpointing, finetune.strategy.name
    text, towers = config.text_config, config.towers()
    side = config.image_sizes[0] // towers[0].patch_size
    positions = side**2 + TEXT_TOKENS
    whole = name in _WHOLE_LANGUAGE
    layer = positions * _block(text.hidden_size, text.intermediate_size, whole, mode, gated=True)
    kept = layer * text.num_hidden_layers
    again = [positions * _block(text.hidden_size, text.intermediate_size, whole, gated=True)]
    if name in _TRAINS_VISION:
        for spec in towers:
            tokens, width = side**2 + spec.num_prefix_tokens, spec.embed_dim
            hidden = int(width * spec.mlp_ratio)
            kept += (spec.depth - 1) * tokens * _block(width, hidden, True, mode, gated=False)
            again.append(tokens * _block(width, hidden, True, gated=False))
    if name != "last_layer":  # inputs of the projector's maps, before and after each GELU
        kept += side**2 * 2 * (9 * sum(spec.embed_dim for spec in towers) + 2 * text.hidden_size)
    # Embeddings, last hidden states, logits with their float32 copy and its gradient.
    kept += positions * text.hidden_size * 2 * 4 + _LABELS * text.vocab_size * 12
    return kept if mode == "none" else kept + max(again)


def _block(width: int, mlp_width: int, inputs: bool, mode: str = "none", *, gated: bool) -> float:
    """Return the bytes kept per position by one transformer block.

    Args:
        width: Of the block.
        mlp_width: Of its MLP.
        inputs: Whether inputs of linear maps are kept, because those or their adapters are trained.
        mode: Of activation checkpointing.
        gated: Whether the MLP is Llama's.
    """
    if mode == "full":
        return _BLOCK_INPUT * width
    attention = (_NORMS + _ATTENTION + (_LINEAR_INPUTS if inputs else 0.0)) * width
    if mode == "selective":
        return attention + _MLP_INPUT * width
    mlp = (_GATED_MLP if gated else _PLAIN_MLP) + (_DOWN_INPUT if inputs else 0.0)
    return attention + (_MLP_INPUT if inputs else 0.0) * width + mlp * mlp_width
