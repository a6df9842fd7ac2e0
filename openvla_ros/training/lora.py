"""LoRA adapters by PEFT: which modules get them, and a forward pass without wasted copies.

The targets are listed one by one: what PEFT understands by "all-linear" changed over its versions.
With openvla-7b and rank 32 they are 110,828,288 weights, the patch convolutions and the output head
among them.
Source: openvla @ c8f03f4, vla-scripts/finetune.py.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from openvla_ros.errors import ConfigurationError, DependencyError
from openvla_ros.model.library_noise import without_library_noise
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.training.config import StrategyConfig

if TYPE_CHECKING:
    from peft import PeftModel

_ADAPTER = "default"  # PEFT's name for the only one


@without_library_noise()
def add_adapters(model: OpenVLAForActionPrediction, strategy: StrategyConfig) -> PeftModel:
    """Return the model wrapped by PEFT, with new adapters in it; their weights are float32.

    A is drawn from N(0, 1 / rank²) and B is 0: at first nothing changes.

    Args:
        model: Changed in place.
        strategy: Rank, alpha, dropout and targets.

    Raises:
        ConfigurationError: A target is no module of this model.
        DependencyError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise DependencyError("Training adapters needs peft: pip install peft") from error
    config = LoraConfig(
        r=strategy.lora_rank,
        lora_alpha=strategy.alpha,
        lora_dropout=strategy.lora_dropout,
        target_modules=adapter_targets(model, strategy.lora_targets),
        init_lora_weights="gaussian",
        bias="none",
    )
    with torch.device(model.device):  # on meta they take no memory
        return get_peft_model(model, config)


def adapter_targets(model: nn.Module, wanted: tuple[str, ...] = ()) -> list[str]:
    """Return the last parts of the names of the modules to adapt, sorted.

    Args:
        model: Without adapters.
        wanted: Some of them; () = all linear maps and convolutions.

    Raises:
        ConfigurationError: One of `wanted` is none of them.
    """
    known = sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)  # quantised ones are Linear too
        }
    )
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise ConfigurationError(
            f"strategy.lora_targets: {', '.join(unknown)} is no linear map or convolution of this "
            f"model; it has {', '.join(known)}."
        )
    return sorted(wanted) or known


def adapter_tensors(peft: PeftModel) -> dict[str, torch.Tensor]:
    """Return name in an adapter file -> weights, as PEFT writes and reads them."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(peft, save_embedding_layers=False)


def compute_adapters_without_casts(model: nn.Module) -> None:
    """Make each adapted module compute in the number format of its input, with fewer copies.

    PEFT turns the input into the adapter's float32 first, and autocast turns it back: two copies
    per module, one of which is kept for the backward pass. Here the small matrices are cast
    instead, and the sum is part of the last product. The result is the same but for rounding.
    """
    from peft.tuners.lora import Conv2d, LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            forward = _adapted_convolution if isinstance(module, Conv2d) else _adapted_linear
            module.forward = partial(forward, module)


def _adapted_linear(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Return W x + b + scale B A x: (..., inputs) to (..., outputs)."""
    if layer.disable_adapters or layer.merged:
        return type(layer).forward(layer, x)
    own, dropout = layer.base_layer, layer.lora_dropout[_ADAPTER]
    a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    scale = layer.scaling[_ADAPTER]
    rows = _to_compute_dtype(x).flatten(0, -2)
    is_plain = type(own) is nn.Linear and isinstance(dropout, nn.Identity)
    if is_plain and not torch.compiler.is_compiling():  # which fuses by itself
        summed = _SumOfProducts.apply(rows, own.weight, own.bias, a, b, scale)
    else:
        base = own(rows)  # ours alone: nothing keeps it for the backward pass
        low = F.linear(dropout(rows), a.to(base.dtype))  # (rows, rank)
        summed = base.addmm_(low, b.to(base.dtype).t(), alpha=scale)
    return summed.view(*x.shape[:-1], -1)


class _SumOfProducts(torch.autograd.Function):
    """x W' + bias + scale (x A') B', W and bias frozen: both sums happen inside the products.

    Autograd's own backward pass would write the two parts of the input's gradient and then add
    them, in one more pass over memory for every module.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Return (rows, outputs) of x (rows, inputs), in the number format of x."""
        ctx.scale, ctx.formats = scale, (a.dtype, b.dtype)
        weight, a, b = weight.to(x.dtype), a.to(x.dtype), b.to(x.dtype)
        low = x @ a.t()  # (rows, rank)
        ctx.save_for_backward(x, weight, a, b, low)
        return F.linear(x, weight, bias).addmm_(low, b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, A and B; there are none of what is frozen."""
        x, weight, a, b, low = ctx.saved_tensors
        assert not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]), "the base is frozen"
        low_gradient = (gradient @ b).mul_(ctx.scale)  # (rows, rank)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ weight).addmm_(low_gradient, a)
        of_a = low_gradient.t() @ x
        of_b = (gradient.t() @ low).mul_(ctx.scale)
        return of_x, None, None, of_a.to(ctx.formats[0]), of_b.to(ctx.formats[1]), None


def _adapted_convolution(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Return the convolution with its adapter: (B, C, H, W) to (B, D, h, w)."""
    if layer.disable_adapters or layer.merged:
        return type(layer).forward(layer, x)
    x = _to_compute_dtype(x)
    base = layer.base_layer(x)
    a, b = (m[_ADAPTER].weight.to(base.dtype) for m in (layer.lora_A, layer.lora_B))
    own = layer.base_layer
    low = F.conv2d(layer.lora_dropout[_ADAPTER](x), a, stride=own.stride, padding=own.padding)
    return base + F.conv2d(low * layer.scaling[_ADAPTER], b)


def _to_compute_dtype(x: torch.Tensor) -> torch.Tensor:
    if torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x
