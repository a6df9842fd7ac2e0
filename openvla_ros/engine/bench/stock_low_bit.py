"""Hugging Face's Llama with the low-bit linears that its users reach for: bitsandbytes, torchao.

Only the decoder layers' linears are converted, as in this engine: towers, projector and head stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from openvla_ros.model.modeling import OpenVLAForActionPrediction

_INT4_GROUP = 128


@dataclass(frozen=True)
class Conversion:
    """One way to store the layers' weights.

    Attributes:
        package: Who does it.
        how: What it is, in a line.
        convert: Replaces the linears of a model.
        needs_gpu: Whether the package has it on GPUs only.
        wants_compiling: Whether it is made for torch.compile, and slow without.
    """

    package: str
    how: str
    convert: Callable[[OpenVLAForActionPrediction], None]
    needs_gpu: bool = False
    wants_compiling: bool = False


def _bitsandbytes_nf4(model: OpenVLAForActionPrediction) -> None:
    modules = _bitsandbytes_modules()
    for parent, name, linear in _linears(model):
        weight = linear.weight
        new = modules.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=weight.dtype,
            quant_type="nf4",
            device="meta",
        )
        # Rounded by `to`, which does so when the values come from the host.
        new.weight = modules.Params4bit(
            weight.detach().cpu(), requires_grad=False, quant_type="nf4", module=new
        ).to(weight.device)
        setattr(parent, name, new)


def _bitsandbytes_int8(model: OpenVLAForActionPrediction) -> None:
    modules = _bitsandbytes_modules()
    for parent, name, linear in _linears(model):
        new = modules.Linear8bitLt(
            linear.in_features,
            linear.out_features,
            bias=False,
            has_fp16_weights=False,
            threshold=6.0,
            device="meta",
        )
        new.weight = modules.Int8Params(
            linear.weight.detach().cpu(), requires_grad=False, has_fp16_weights=False
        ).to(linear.weight.device)
        setattr(parent, name, new)


def _torchao(make_config: Callable[[Any], Any]) -> Callable[[OpenVLAForActionPrediction], None]:
    def convert(model: OpenVLAForActionPrediction) -> None:
        from torchao import quantization

        quantization.quantize_(model.language_model.model.layers, make_config(quantization))

    return convert


def _int4_config(quantization: Any) -> Any:
    try:  # the format that needs no package beside torch
        return quantization.Int4WeightOnlyConfig(
            group_size=_INT4_GROUP, int4_packing_format="tile_packed_to_4d"
        )
    except TypeError:  # before torchao 0.14 it was the only one
        return quantization.Int4WeightOnlyConfig(group_size=_INT4_GROUP)


CONVERSIONS = {
    "bnb_nf4": Conversion(
        "bitsandbytes", "the hf_sdpa loop, layers in bitsandbytes nf4", _bitsandbytes_nf4
    ),
    "bnb_int8": Conversion(
        "bitsandbytes", "the hf_sdpa loop, layers in bitsandbytes LLM.int8", _bitsandbytes_int8
    ),
    "torchao_int8wo": Conversion(
        "torchao",
        "layers in torchao int8, weight only; on a GPU as hf_static_compile",
        _torchao(lambda quantization: quantization.Int8WeightOnlyConfig()),
        wants_compiling=True,
    ),
    "torchao_int4wo": Conversion(
        "torchao",
        f"layers in torchao int4, groups of {_INT4_GROUP}, as hf_static_compile",
        _torchao(_int4_config),
        needs_gpu=True,
        wants_compiling=True,
    ),
    "torchao_float8wo": Conversion(
        "torchao",
        "layers in torchao float8, weight only, as hf_static_compile",
        _torchao(lambda quantization: quantization.Float8WeightOnlyConfig()),
        needs_gpu=True,
        wants_compiling=True,
    ),
}


def _bitsandbytes_modules() -> Any:
    import bitsandbytes

    return bitsandbytes.nn


def _linears(model: OpenVLAForActionPrediction) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Yield (parent, attribute, linear) of the decoder layers."""
    for module in list(model.language_model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                yield module, name, child
