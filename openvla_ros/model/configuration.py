"""`OpenVLAConfig`: config.json of a checkpoint, and the vision towers its ids stand for.

This file knows names and numbers only; `vision.py` builds from them.
Sources: openvla @ c8f03f4, prismatic/extern/hf/configuration_prismatic.py; timm 0.9.10 model table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from openvla_ros.errors import CheckpointError

#: Rows that resizing the embedding to a multiple of 64 adds after Llama-2's 32000 ids and <PAD>.
LLAMA2_PAD_TO_MULTIPLE_OF = 64


@dataclass(frozen=True)
class VitSpec:
    """Shape of one vision tower, under timm's constructor names.

    Attributes:
        patch_size: Side of a patch in pixels.
        embed_dim: Width C.
        depth: Blocks in the checkpoint (the last one is never computed).
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP is int(embed_dim * mlp_ratio).
        class_token: Whether a class token comes first.
        reg_tokens: Register tokens after the class token.
        no_embed_class: True adds positions to the patches only, before the prefix tokens join.
        init_values: Not None means LayerScale.
        pre_norm: CLIP's extra norm before the blocks; the patch projection then has no bias.
        global_pool: "map" stores an attention pooling head, which OpenVLA never runs.
        norm_eps: Epsilon of every LayerNorm.
    """

    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    class_token: bool = True
    reg_tokens: int = 0
    no_embed_class: bool = False
    init_values: float | None = None
    pre_norm: bool = False
    global_pool: str = "token"
    norm_eps: float = 1e-6

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens, which are dropped from the features."""
        return int(self.class_token) + self.reg_tokens

    @classmethod
    def from_timm_arguments(cls, name: str, arguments: Mapping[str, Any]) -> VitSpec:
        """Return the spec of constructor arguments as stored under `vit_specs` in config.json.

        `norm_layer` present means a LayerNorm with epsilon 1e-5 (CLIP's).

        Raises:
            CheckpointError: An argument this package does not implement.
        """
        known = dict(arguments)
        if known.pop("norm_layer", None):
            known.setdefault("norm_eps", 1e-5)
        unknown = sorted(set(known) - {f.name for f in fields(cls)})
        if unknown:
            raise CheckpointError(
                f"vit_specs[{name!r}] in config.json has arguments that are not supported: "
                f"{', '.join(unknown)}. Supported: {', '.join(f.name for f in fields(cls))}, "
                "norm_layer."
            )
        spec = cls(**known)
        whole = (spec.patch_size, spec.embed_dim, spec.depth, spec.num_heads)
        if not all(isinstance(n, int) and n > 0 for n in whole) or spec.embed_dim % spec.num_heads:
            raise CheckpointError(
                f"vit_specs[{name!r}] in config.json: patch_size, embed_dim, depth and num_heads "
                f"must be whole numbers above 0 and embed_dim a multiple of num_heads, not {whole}."
            )
        if spec.global_pool not in ("token", "map") or spec.depth < 2:
            raise CheckpointError(
                f"vit_specs[{name!r}] in config.json: global_pool must be 'token' or 'map' and "
                f"depth at least 2, not {spec.global_pool!r} and {spec.depth}."
            )
        return spec


_DINOV2_L = VitSpec(14, 1024, 24, 16, reg_tokens=4, no_embed_class=True, init_values=1e-5)
_SIGLIP_SO400M = VitSpec(14, 1152, 27, 16, mlp_ratio=3.7362, class_token=False, global_pool="map")
_CLIP_L = VitSpec(14, 1024, 24, 16, pre_norm=True, norm_eps=1e-5)

#: timm id -> shape, for the towers that released checkpoints name.
VIT_SPECS: dict[str, VitSpec] = {
    "vit_large_patch14_reg4_dinov2.lvd142m": _DINOV2_L,
    "vit_so400m_patch14_siglip_224": _SIGLIP_SO400M,
    "vit_so400m_patch14_siglip_384": _SIGLIP_SO400M,
    "vit_large_patch14_clip_224.openai": _CLIP_L,
    "vit_large_patch14_clip_336.openai": _CLIP_L,
    "vit_large_patch16_224.augreg_in21k_ft_in1k": VitSpec(16, 1024, 24, 16),
}


@dataclass(frozen=True)
class _Backbone:
    timm_model_ids: tuple[str, ...]
    image_sizes: tuple[int, ...]
    act_layers: tuple[str | None, ...]


_DINO, _SIGLIP_224, _SIGLIP_384, _CLIP_224, _CLIP_336, _IN1K = VIT_SPECS

#: `vision_backbone_id` -> towers. What config.json itself lists comes before this table.
VISION_BACKBONES: dict[str, _Backbone] = {
    "dinov2-vit-l": _Backbone((_DINO,), (224,), (None,)),
    "siglip-vit-so400m": _Backbone((_SIGLIP_224,), (224,), (None,)),
    "siglip-vit-so400m-384px": _Backbone((_SIGLIP_384,), (384,), (None,)),
    "clip-vit-l": _Backbone((_CLIP_224,), (224,), ("quick_gelu",)),
    "clip-vit-l-336px": _Backbone((_CLIP_336,), (336,), ("quick_gelu",)),
    "in1k-vit-l": _Backbone((_IN1K,), (224,), (None,)),
    "dinosiglip-vit-so-224px": _Backbone((_DINO, _SIGLIP_224), (224, 224), (None, None)),
    "dinosiglip-vit-so-384px": _Backbone((_DINO, _SIGLIP_384), (384, 384), (None, None)),
    "dinoclip-vit-l-336px": _Backbone((_DINO, _CLIP_336), (336, 336), (None, "quick_gelu")),
}


class OpenVLAConfig(PretrainedConfig):
    """Everything config.json of an OpenVLA checkpoint says.

    `timm_model_ids`, `image_sizes`, `timm_override_act_layers` and `use_fused_vision_backbone`
    follow from `vision_backbone_id` when they are absent, and win over it when they are given.
    Fields absent from `text_config` take the library defaults of its family, as in the reference:
    for the released models that is rms_norm_eps 1e-6.

    Raises:
        CheckpointError: Unknown backbone or language model family, or lists of unequal length.
    """

    model_type = "openvla"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 - the name transformers looks for

    def __init__(
        self,
        vision_backbone_id: str = "dinosiglip-vit-so-224px",
        llm_backbone_id: str = "llama2-7b-pure",
        arch_specifier: str = "no-align+fused-gelu-mlp",
        use_fused_vision_backbone: bool | None = None,
        image_resize_strategy: str = "resize-naive",
        text_config: Mapping[str, Any] | PretrainedConfig | None = None,
        timm_model_ids: Sequence[str] | None = None,
        image_sizes: Sequence[int] | None = None,
        timm_override_act_layers: Sequence[str | None] | None = None,
        vit_specs: Mapping[str, Mapping[str, Any]] | None = None,
        n_action_bins: int = 256,
        norm_stats: Mapping[str, Any] | None = None,
        pad_token_id: int = 32000,
        pad_to_multiple_of: int = LLAMA2_PAD_TO_MULTIPLE_OF,
        **kwargs: Any,
    ) -> None:
        self.vision_backbone_id = vision_backbone_id
        self.llm_backbone_id = llm_backbone_id
        self.arch_specifier = arch_specifier
        self.image_resize_strategy = image_resize_strategy
        self.n_action_bins = n_action_bins
        self.norm_stats = dict(norm_stats or {})
        self.pad_to_multiple_of = pad_to_multiple_of
        self.vit_specs = {name: dict(spec) for name, spec in (vit_specs or {}).items()}
        self.text_config = _text_config(text_config)
        self._require_action_ids()
        self._set_towers(timm_model_ids, image_sizes, timm_override_act_layers)
        fused = len(self.timm_model_ids) == 2
        self.use_fused_vision_backbone = (
            fused if use_fused_vision_backbone is None else use_fused_vision_backbone
        )
        if self.use_fused_vision_backbone != fused:
            raise CheckpointError(
                f"config.json: use_fused_vision_backbone is {self.use_fused_vision_backbone}, but "
                f"timm_model_ids names {len(self.timm_model_ids)} tower(s)."
            )
        # The head is separate from the embedding in every released checkpoint.
        kwargs["tie_word_embeddings"] = bool(self.text_config.tie_word_embeddings)
        super().__init__(pad_token_id=pad_token_id, **kwargs)
        # transformers 5 leaves unknown names to the class; keep the checkpoint's own.
        self.pad_token_id = pad_token_id

    def _set_towers(
        self,
        timm_model_ids: Sequence[str] | None,
        image_sizes: Sequence[int] | None,
        act_layers: Sequence[str | None] | None,
    ) -> None:
        known = VISION_BACKBONES.get(self.vision_backbone_id)
        if known is None and (timm_model_ids is None or image_sizes is None):
            raise CheckpointError(
                f"vision_backbone_id {self.vision_backbone_id!r} is unknown. Known: "
                f"{', '.join(VISION_BACKBONES)}. For another one, config.json must give "
                "timm_model_ids, image_sizes and vit_specs."
            )
        ids = (
            timm_model_ids if timm_model_ids is not None or known is None else known.timm_model_ids
        )
        sizes = image_sizes if image_sizes is not None or known is None else known.image_sizes
        if act_layers is None:
            act_layers = known.act_layers if known else [None] * len(ids or ())
        self.timm_model_ids = list(ids or ())
        self.image_sizes = list(sizes or ())
        self.timm_override_act_layers = list(act_layers)
        lengths = {len(self.timm_model_ids), len(self.image_sizes), len(act_layers)}
        if lengths not in ({1}, {2}):
            raise CheckpointError(
                "config.json: timm_model_ids, image_sizes and timm_override_act_layers must all "
                f"have one or all have two entries, not {self.timm_model_ids}, "
                f"{self.image_sizes}, {self.timm_override_act_layers}."
            )

    def _require_action_ids(self) -> None:
        numbers = {
            "n_action_bins": self.n_action_bins,
            "pad_to_multiple_of": self.pad_to_multiple_of,
        }
        for name, value in numbers.items():
            if not isinstance(value, int):
                raise CheckpointError(f"config.json: {name} must be a whole number, not {value!r}.")
        if not 2 <= self.n_action_bins < self.action_vocab_size:
            raise CheckpointError(
                f"config.json: {self.n_action_bins} action bins (n_action_bins) do not fit a "
                f"vocabulary of {self.action_vocab_size} ids (text_config.vocab_size less "
                "pad_to_multiple_of)."
            )

    def towers(self) -> list[VitSpec]:
        """Return the shape of each vision tower, in channel order.

        Raises:
            CheckpointError: A timm id that is neither known nor described under `vit_specs`.
        """
        return [self._tower(name) for name in self.timm_model_ids]

    def _tower(self, name: str) -> VitSpec:
        if name in self.vit_specs:
            return VitSpec.from_timm_arguments(name, self.vit_specs[name])
        if name in VIT_SPECS:
            return VIT_SPECS[name]
        raise CheckpointError(
            f"The vision tower {name!r} is unknown. Known: {', '.join(VIT_SPECS)}. Describe "
            f"another one in config.json under vit_specs[{name!r}] with timm's constructor "
            f"arguments, for example {asdict(_DINOV2_L)}."
        )

    @property
    def action_vocab_size(self) -> int:
        """Ids of the text vocabulary; action ids lie right below (32064 - 64 = 32000)."""
        return int(self.text_config.vocab_size) - self.pad_to_multiple_of


def _text_config(value: Mapping[str, Any] | PretrainedConfig | None) -> PretrainedConfig:
    if isinstance(value, PretrainedConfig):
        return value
    arguments = dict(value or {"vocab_size": 32000 + LLAMA2_PAD_TO_MULTIPLE_OF})
    family = arguments.pop("model_type", "llama")
    if family not in CONFIG_MAPPING:
        raise CheckpointError(
            f"text_config.model_type {family!r} in config.json is not a language model that the "
            "installed transformers knows."
        )
    return CONFIG_MAPPING[family](**arguments)
