"""Which weights a run trains, in which number format, and how many they are.

The names are those of the reference's stages: `full` trains everything, `frozen_vision` leaves the
towers, `sandwich` trains towers and projector with both ends of the language model, `last_layer`
those ends alone; `lora` and `qlora` train adapters. Trained weights are float32 whatever the
precision of the run; frozen ones have its precision.

The last block of each tower, its norm and its pooling head are counted as trained, as the reference
does, and never enter the computation: they get no gradient and stay as they are.
Source: openvla @ c8f03f4, prismatic/models/vlms/prismatic.py (freeze_backbones).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from openvla_ros.errors import DeviceError
from openvla_ros.model.checkpoint import empty_model, load_model
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.vision import VisionTransformer
from openvla_ros.training.config import StrategyConfig
from openvla_ros.training.lora import add_adapters, compute_adapters_without_casts
from openvla_ros.training.norms import compute_norms_in_one_pass
from openvla_ros.training.optimizer import trained_parameters

if TYPE_CHECKING:
    from peft import PeftModel

_VISION = "vision_backbone."
_PROJECTOR = "projector."
_LANGUAGE = "language_model."


@dataclass(frozen=True)
class PreparedModel:
    """A model whose trained weights, and no others, ask for gradients; in training mode.

    Attributes:
        model: With the adapters inside, if there are any.
        peft: What wraps it then, for saving adapters; None without adapters.
        uncomputed: Names in `model` of the weights that count as trained and get no gradient.
    """

    model: OpenVLAForActionPrediction
    peft: PeftModel | None
    uncomputed: tuple[str, ...]

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Name in `model` -> what is trained, as it is now: sharding puts others in its place."""
        return trained_parameters(self.model)


def prepare_model(
    folder: Path,
    config: OpenVLAConfig,
    strategy: StrategyConfig,
    *,
    device: torch.device,
    precision: str,
) -> PreparedModel:
    """Return a checkpoint's model, ready to be trained by a strategy.

    New adapters are drawn from torch's global generator: seed it first, on all processes alike.

    Args:
        folder: Checkpoint folder.
        config: From `read_config`.
        strategy: Which weights are trained.
        device: Where the model goes.
        precision: "bfloat16" or "float32".

    Raises:
        CheckpointError: The folder cannot be loaded.
        ConfigurationError: An adapter's target is no module of this model.
        DeviceError: The device has no bfloat16.
        DependencyError: PEFT or bitsandbytes is needed and not installed.
    """
    frozen = _frozen_dtype(precision, device)
    quantization = "nf4" if strategy.name == "qlora" else "none"
    # What is trained starts from all the digits that the files have.
    loaded = frozen if strategy.is_adapter else torch.float32
    model = load_model(folder, config, device=device, dtype=loaded, quantization=quantization)
    prepared = choose_trained(model, strategy)
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(frozen)
    for parameter in prepared.trained.values():
        assert parameter.dtype == torch.float32, "what is trained is float32"
    _keep_packing(model)
    save_passes(prepared)
    model.train()
    return prepared


def _keep_packing(model: OpenVLAForActionPrediction) -> None:
    """Stop bitsandbytes from packing weights on a CPU anew for its kernel of evaluations.

    It would do so in the first evaluation and for good, and no gradient gets through them then.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


def save_passes(prepared: PreparedModel) -> None:
    """Make the model compute the same, but for rounding, with fewer passes over memory."""
    compute_norms_in_one_pass(prepared.model)
    if prepared.peft is not None:
        compute_adapters_without_casts(prepared.model)


def choose_trained(model: OpenVLAForActionPrediction, strategy: StrategyConfig) -> PreparedModel:
    """Return the model with gradients asked for as a strategy wants it, adapters added.

    Raises:
        ConfigurationError: An adapter's target is no module of this model.
        DependencyError: PEFT is needed and not installed.
    """
    peft = None
    if strategy.is_adapter:
        model.requires_grad_(False)
        peft = add_adapters(model, strategy)
    else:
        prefixes = _trained_prefixes(model, strategy.name)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(prefixes))
    prefixes = _uncomputed_prefixes(model)
    uncomputed = [name for name in trained_parameters(model) if name.startswith(prefixes)]
    parameters = dict(model.named_parameters())
    for name in uncomputed:
        parameters[name].requires_grad_(False)
    return PreparedModel(model, peft, tuple(uncomputed))


def count_parameters(config: OpenVLAConfig, strategy: StrategyConfig) -> tuple[int, int]:
    """Return how many weights a strategy trains, and of how many, adapters included.

    Nothing is loaded. As in the reference, those that never enter the computation count.

    Raises:
        ConfigurationError: An adapter's target is no module of this model.
        DependencyError: PEFT is needed and not installed.
    """
    model = empty_model(config, torch.float32)
    prepared = choose_trained(model, strategy)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = sum(sizes[name] for name in (*prepared.trained, *prepared.uncomputed))
    return trained, sum(sizes.values())


def _trained_prefixes(model: OpenVLAForActionPrediction, name: str) -> tuple[str, ...]:
    ends = _ends_of_the_language_model(model)
    return {
        "full": (_VISION, _PROJECTOR, _LANGUAGE),
        "frozen_vision": (_PROJECTOR, _LANGUAGE),
        "sandwich": (_VISION, _PROJECTOR, *ends),
        "last_layer": ends,
    }[name]


def _ends_of_the_language_model(model: OpenVLAForActionPrediction) -> tuple[str, ...]:
    """Return the prefixes of embeddings, last layer and head; the final norm is not among them."""
    names = {module: name for name, module in model.named_modules()}
    decoder = model.language_model.model
    ends = (model.get_input_embeddings(), decoder.layers[-1], model.get_output_embeddings())
    return tuple(f"{names[module]}." for module in ends)


def _uncomputed_prefixes(model: OpenVLAForActionPrediction) -> tuple[str, ...]:
    return tuple(
        f"{_VISION}{tower}.{module}."
        for tower, transformer in model.vision_backbone.named_children()
        if isinstance(transformer, VisionTransformer)
        for module in transformer.uncomputed_modules()
    )


def _frozen_dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "float32":
        return torch.float32
    assert precision == "bfloat16", precision
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise DeviceError(
            f"{torch.cuda.get_device_name(device)} has no bfloat16: set run.precision to float32, "
            "which needs twice the memory, or train on a newer GPU."
        )
    return torch.bfloat16
