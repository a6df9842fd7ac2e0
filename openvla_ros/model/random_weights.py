"""Checkpoints of the real layout with random weights, for machines that have no real ones.

They load, predict and publish like published checkpoints, and their motion means nothing. Profiles:
`tiny` (a few million weights: demo and tests), `7b` (openvla-7b's own shape: memory and speed) and
`v01-7b` (the single-tower predecessor).
"""

from __future__ import annotations

import math
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from openvla_ros.errors import ConfigurationError
from openvla_ros.model.action_stats import STATISTICS_FILE
from openvla_ros.model.checkpoint import expected_shapes
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.processing import PROCESSOR_FILE, settings_of
from openvla_ros.model.shards import Shape, new_folder, write_json, write_shards

#: bridge_orig, as published with openvla-7b (spec of the model, config.json norm_stats).
BRIDGE_STATISTICS: dict[str, Any] = {
    "bridge_orig": {
        "action": {
            "q01": [
                -0.02872725307941437,
                -0.04170349963009357,
                -0.026093858778476715,
                -0.08092105075716972,
                -0.09288699507713317,
                -0.20718276381492615,
                0.0,
            ],
            "q99": [
                0.028309678435325586,
                0.040855254605412394,
                0.040161586627364146,
                0.08192047759890528,
                0.07792850524187081,
                0.20382574498653397,
                1.0,
            ],
            "mask": [True, True, True, True, True, True, False],
        }
    }
}

_TINY_TOWERS = {
    "tiny_dinov2": {
        "patch_size": 14,
        "embed_dim": 96,
        "depth": 3,
        "num_heads": 6,
        "init_values": 1e-5,
        "reg_tokens": 4,
        "no_embed_class": True,
    },
    "tiny_siglip": {
        "patch_size": 14,
        "embed_dim": 72,
        "depth": 3,
        "num_heads": 6,
        "mlp_ratio": 3.7362,
        "class_token": False,
        "global_pool": "map",
    },
}
_TINY_TEXT = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
_LLAMA_VOCABULARY = {"vocab_size": 32064, "pad_token_id": 32000, "dtype": "bfloat16"}

_PROFILES: dict[str, dict[str, Any]] = {
    "tiny": {
        "timm_model_ids": list(_TINY_TOWERS),
        "vit_specs": _TINY_TOWERS,
        "text_config": _TINY_TEXT | _LLAMA_VOCABULARY,
    },
    "7b": {"text_config": {"model_type": "llama"} | _LLAMA_VOCABULARY},
    "v01-7b": {
        "vision_backbone_id": "siglip-vit-so400m",
        "llm_backbone_id": "vicuna-v15-7b",
        "arch_specifier": "no-align+gelu-mlp",
        "image_resize_strategy": "letterbox",
        "text_config": {"model_type": "llama"} | _LLAMA_VOCABULARY,
    },
}
PROFILES = tuple(_PROFILES)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
#: How far action ids stand out, so that the argmax over 32064 random logits is one of them.
_ACTION_LOGIT_GAIN = 4.0
#: How far queries and keys stand out. At 1 attention is nearly a mean over the image, and many
#: images get the same answer.
_ATTENTION_GAIN = 4.0
_ATTENTION_KEYS = ("q_proj.weight", "k_proj.weight")


def build_checkpoint(profile: str, out: Path, seed: int = 0) -> Path:
    """Return `out`, filled with a random-weight checkpoint in the Hugging Face layout.

    The same profile and seed give the same weights. The tokenizer has Llama's layout and other
    merges. Only one shard is in memory at a time.

    Args:
        profile: One of `PROFILES`.
        out: Folder to create; it must not hold a checkpoint already.
        seed: Of every tensor.

    Raises:
        ConfigurationError: Unknown profile, or `out` is taken.
    """
    if profile not in _PROFILES:
        raise ConfigurationError(
            f"The profile {profile!r} is unknown; use one of {', '.join(PROFILES)}."
        )
    config = profile_config(profile)
    shapes = expected_shapes(config)
    with new_folder(out) as folder:
        write_shards(
            folder,
            shapes,
            lambda key: random_tensor(key, shapes[key], config, seed),
            torch.bfloat16,
        )
        config.save_pretrained(folder)
        write_json(folder / PROCESSOR_FILE, settings_of(config))
        write_json(folder / STATISTICS_FILE, BRIDGE_STATISTICS)
        copy_tokenizer(folder)
    return out


def profile_config(profile: str) -> OpenVLAConfig:
    """Return the configuration of a profile."""
    return OpenVLAConfig(
        **_PROFILES[profile],
        norm_stats=BRIDGE_STATISTICS,
        architectures=["OpenVLAForActionPrediction"],
        dtype="bfloat16",
    )


def recipe_id() -> str:
    """Return a name that changes whenever this file does: caches of its checkpoints use it."""
    return f"{zlib.crc32(Path(__file__).read_bytes()):08x}"


def copy_tokenizer(folder: Path) -> None:
    """Write the packaged tokenizer (Llama's layout of 32000 ids and <PAD>) into a folder."""
    source = resources.files("openvla_ros") / "resources" / "tokenizer"
    for name in _TOKENIZER_FILES:
        (folder / name).write_bytes((source / name).read_bytes())


def random_tensor(
    key: str, shape: Shape, config: OpenVLAConfig, seed: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return the bfloat16 weights of one key, the same for the same key, shape, seed and device."""
    if key.endswith("bias"):
        return torch.zeros(shape, dtype=torch.bfloat16, device=device)
    if len(shape) == 1:  # norms and LayerScale
        return torch.ones(shape, dtype=torch.bfloat16, device=device)
    generator = torch.Generator(device).manual_seed(seed ^ zlib.crc32(key.encode()))
    fan_in = 1 if key.endswith("embed_tokens.weight") else math.prod(shape[1:])
    tensor = torch.randn(shape, generator=generator, device=device).mul_(1 / math.sqrt(fan_in))
    if key.endswith(_ATTENTION_KEYS):
        tensor *= _ATTENTION_GAIN
    if key.endswith("lm_head.weight"):
        end = config.action_vocab_size
        tensor[end - config.n_action_bins : end] *= _ACTION_LOGIT_GAIN
    return tensor.to(torch.bfloat16)
