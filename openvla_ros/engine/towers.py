"""The vision towers and the projector for one image, side by side where there is a GPU.

Same weights and same results as `model.vision`: only what OpenVLA uses is computed, without a batch
dimension, and each residual sum is joined with the norm that follows it.
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from openvla_ros.engine.operations import Operations
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.vision import LayerScale, VisionBlock, VisionTransformer


class Vision:
    """Pixels to language embeddings.

    Args:
        model: Its towers and projector are used as they are.
        operations: Arithmetic to use.
    """

    def __init__(self, model: OpenVLAForActionPrediction, operations: Operations) -> None:
        backbone = model.vision_backbone
        self.towers = [backbone.featurizer]
        if backbone.channels == 6:
            self.towers.append(backbone.fused_featurizer)
        self.projector = model.projector
        self.operations = operations
        device = next(backbone.parameters()).device
        self.side_stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return (P, D) embeddings of `pixel_values` (3 or 6, H, W), in the weights' dtype."""
        pixels = pixel_values.to(self.towers[0].pos_embed.dtype).split(3)
        if self.side_stream is None or len(self.towers) == 1:
            features = [
                self.features(tower, part) for tower, part in zip(self.towers, pixels, strict=True)
            ]
        else:
            features = self._side_by_side(self.side_stream, pixels)
        return self.projector(torch.cat(features, dim=1))

    def _side_by_side(
        self, side: torch.cuda.Stream, pixels: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        main = torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            second = self.features(self.towers[1], pixels[1])
        first = self.features(self.towers[0], pixels[0])
        main.wait_stream(side)
        return [first, second]

    def features(self, tower: VisionTransformer, pixels: torch.Tensor) -> torch.Tensor:
        """Return (P, C) patch features of one tower for (3, H, W)."""
        x = tower.add_prefix_and_positions(embed_patches(tower, pixels)[None])[0]
        if tower.spec.pre_norm:
            x = tower.norm_pre(x)
        blocks = [cast(VisionBlock, block) for block in tower.blocks]
        normed = blocks[0].norm1(x)
        for block, following in itertools.pairwise(blocks):  # the last is never computed
            x, normed = self._block(block, following.norm1, x, normed)
        return x[tower.spec.num_prefix_tokens :]

    def _block(
        self, block: VisionBlock, next_norm: nn.LayerNorm, x: torch.Tensor, normed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        add = self.operations.add_layer_norm
        x, normed = add(x, _attention(block, normed), _scale(block.ls1), block.norm2)
        return add(x, block.mlp(normed), _scale(block.ls2), next_norm)


def embed_patches(tower: VisionTransformer, pixels: torch.Tensor) -> torch.Tensor:
    """Return (P, C): the strided convolution of `PatchEmbed` as one product over flat patches."""
    side, projection = tower.spec.patch_size, tower.patch_embed.proj
    rows, columns = pixels.shape[1] // side, pixels.shape[2] // side
    cut = pixels[:, : rows * side, : columns * side].view(3, rows, side, columns, side)
    patches = cut.permute(1, 3, 0, 2, 4).reshape(rows * columns, -1)  # (P, 3 * side * side)
    return F.linear(patches, projection.weight.flatten(1), projection.bias)


def _attention(block: VisionBlock, x: torch.Tensor) -> torch.Tensor:
    heads = block.attn.num_heads
    q, k, v = block.attn.qkv(x).view(len(x), 3, heads, -1).permute(1, 2, 0, 3)[:, None]
    attended = F.scaled_dot_product_attention(q, k, v)  # (1, heads, N, C / heads)
    return block.attn.proj(attended[0].transpose(0, 1).reshape(len(x), -1))


def _scale(module: nn.Module) -> torch.Tensor | None:
    return module.scale_factor if isinstance(module, LayerScale) else None
