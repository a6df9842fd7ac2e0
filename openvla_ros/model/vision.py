"""The vision towers and the projector, under the names their checkpoints use.

A tower is a pre-LN ViT whose feature is the output of its second-to-last block, without final norm
and without prefix tokens. The last block, the final norm and the pooling head are parameters only:
they are loaded and saved again, and never computed.
Sources: timm 0.9.10 vision_transformer.py (parameter names); openvla @ c8f03f4,
prismatic/extern/hf/modeling_prismatic.py.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from openvla_ros.errors import CheckpointError
from openvla_ros.model.configuration import OpenVLAConfig, VitSpec


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation CLIP was trained with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


def activation(name: str | None) -> nn.Module:
    """Return the MLP activation of a tower: exact GELU unless config.json overrides it.

    Raises:
        CheckpointError: An activation that no released tower uses.
    """
    if name in (None, "gelu"):
        return nn.GELU()
    if name == "quick_gelu":
        return QuickGELU()
    raise CheckpointError(
        f"timm_override_act_layers {name!r} is not supported; use null, 'gelu' or 'quick_gelu'."
    )


class PatchEmbed(nn.Module):
    """(B, 3, H, W) to (B, P, C), one linear map per patch; pixels past the last patch drop out."""

    def __init__(self, spec: VitSpec) -> None:
        super().__init__()
        self.proj = nn.Conv2d(
            3, spec.embed_dim, spec.patch_size, stride=spec.patch_size, bias=not spec.pre_norm
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention with one fused projection, rows ordered [q | k | v]."""

    def __init__(self, spec: VitSpec) -> None:
        super().__init__()
        self.num_heads = spec.num_heads
        self.qkv = nn.Linear(spec.embed_dim, 3 * spec.embed_dim)
        self.proj = nn.Linear(spec.embed_dim, spec.embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, C / heads)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """fc1, activation, fc2."""

    def __init__(self, width: int, hidden: int, act: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = act
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel. Named `scale_factor`: transformers renames any "gamma"."""

    def __init__(self, width: int, init_value: float) -> None:
        super().__init__()
        self.init_value = init_value
        self.scale_factor = nn.Parameter(torch.full((width,), init_value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale_factor


class VisionBlock(nn.Module):
    """One pre-LN transformer block."""

    def __init__(self, spec: VitSpec, act_layer: str | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.embed_dim, spec.norm_eps)
        self.attn = Attention(spec)
        self.ls1 = _layer_scale(spec)
        self.norm2 = nn.LayerNorm(spec.embed_dim, spec.norm_eps)
        self.mlp = _mlp(spec, act_layer)
        self.ls2 = _layer_scale(spec)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    """SigLIP's pooling head: part of the checkpoint, outside the computation."""

    def __init__(self, spec: VitSpec, act_layer: str | None) -> None:
        super().__init__()
        width = spec.embed_dim
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, spec.norm_eps)
        self.mlp = _mlp(spec, act_layer)


class VisionTransformer(nn.Module):
    """One tower: (B, 3, H, W) pixels to (B, P, C) patch features.

    Args:
        spec: Shape of the tower.
        image_size: Side of its square input in pixels; P = (image_size // patch_size) ** 2.
        act_layer: Override of the MLP activation, or None.
    """

    def __init__(self, spec: VitSpec, image_size: int, act_layer: str | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.num_patches = (image_size // spec.patch_size) ** 2
        positions = self.num_patches + (0 if spec.no_embed_class else spec.num_prefix_tokens)
        if spec.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.embed_dim))
        if spec.reg_tokens:
            self.reg_token = nn.Parameter(torch.zeros(1, spec.reg_tokens, spec.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, spec.embed_dim))
        self.patch_embed = PatchEmbed(spec)
        if spec.pre_norm:
            self.norm_pre = nn.LayerNorm(spec.embed_dim, spec.norm_eps)
        self.blocks = nn.ModuleList(VisionBlock(spec, act_layer) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.embed_dim, spec.norm_eps)
        if spec.global_pool == "map":
            self.attn_pool = AttentionPool(spec, act_layer)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.add_prefix_and_positions(self.patch_embed(pixels))
        if self.spec.pre_norm:
            x = self.norm_pre(x)
        for block in self.blocks[:-1]:
            x = block(x)
        return x[:, self.spec.num_prefix_tokens :]

    def uncomputed_modules(self) -> tuple[str, ...]:
        """Return the names of the modules whose weights are stored but never enter a feature."""
        pooling = ("attn_pool",) if hasattr(self, "attn_pool") else ()
        return (f"blocks.{len(self.blocks) - 1}", "norm", *pooling)

    def add_prefix_and_positions(self, patches: torch.Tensor) -> torch.Tensor:
        """Return (B, prefix + P, C); DINOv2's prefix tokens carry no position."""
        prefix = self._prefix_tokens(patches.shape[0])
        if self.spec.no_embed_class:
            return torch.cat([*prefix, patches + self.pos_embed], dim=1)
        return torch.cat([*prefix, patches], dim=1) + self.pos_embed

    def _prefix_tokens(self, batch: int) -> list[torch.Tensor]:
        tokens = []
        if self.spec.class_token:
            tokens.append(self.cls_token.expand(batch, -1, -1))
        if self.spec.reg_tokens:
            tokens.append(self.reg_token.expand(batch, -1, -1))
        return tokens


class VisionBackbone(nn.Module):
    """One or two towers over the same image: (B, 3 or 6, H, W) to (B, P, C1 [+ C2]).

    Channels 0:3 feed `featurizer`, channels 3:6 `fused_featurizer`; features join in that order.

    Raises:
        CheckpointError: Two towers with unequal numbers of patches.
    """

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__()
        specs = config.towers()
        towers = [
            VisionTransformer(spec, size, act)
            for spec, size, act in zip(
                specs, config.image_sizes, config.timm_override_act_layers, strict=True
            )
        ]
        patches = {tower.num_patches for tower in towers}
        if len(patches) != 1:
            raise CheckpointError(
                f"The towers of config.json give {sorted(patches)} patches; fusing needs equal "
                "numbers."
            )
        self.num_patches = patches.pop()
        self.embed_dim = sum(spec.embed_dim for spec in specs)
        self.featurizer = towers[0]
        if len(towers) == 2:
            self.fused_featurizer = towers[1]

    @property
    def channels(self) -> int:
        """Channels of `pixel_values`: three per tower."""
        return 6 if hasattr(self, "fused_featurizer") else 3

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.channels == 3:
            return self.featurizer(pixel_values)
        first, second = torch.split(pixel_values, 3, dim=1)
        return torch.cat([self.featurizer(first), self.fused_featurizer(second)], dim=2)


class Projector(nn.Module):
    """(B, P, C) features to (B, P, D) language embeddings: three linears when fused, else two."""

    def __init__(self, vision_dim: int, text_dim: int, fused: bool) -> None:
        super().__init__()
        hidden = 4 * vision_dim if fused else text_dim
        self.fc1 = nn.Linear(vision_dim, hidden)
        self.fc2 = nn.Linear(hidden, text_dim)
        if fused:
            self.fc3 = nn.Linear(text_dim, text_dim)
        self.act = nn.GELU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = self.fc2(self.act(self.fc1(features)))
        return self.fc3(self.act(x)) if hasattr(self, "fc3") else x


def _layer_scale(spec: VitSpec) -> nn.Module:
    if spec.init_values is None:
        return nn.Identity()
    return LayerScale(spec.embed_dim, spec.init_values)


def _mlp(spec: VitSpec, act_layer: str | None) -> Mlp:
    hidden = int(spec.embed_dim * spec.mlp_ratio)
    return Mlp(spec.embed_dim, hidden, activation(act_layer))
