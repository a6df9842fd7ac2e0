"""Checkpoints of the real layout with random weights, for machines that have no real ones.

They load, predict and publish like published checkpoints, and their motion means nothing. Profiles:
`tiny` (a few million weights: demo and tests), `7b` (openvla-7b's own shape: memory and speed) and
`v01-7b` (the single-tower predecessor).
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from openvla_ros.errors import ConfigurationError
from openvla_ros.model.action_stats import STATISTICS_FILE
from openvla_ros.model.checkpoint import WEIGHTS_FILE, WEIGHTS_INDEX_FILE, Shape, expected_shapes
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.processing import PROCESSOR_FILE

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
    "intermediate_size": 172,
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

_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])

_SHARD_BYTES = 2 * 2**30  # the peak of memory while writing
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
#: How far action ids stand out, so that the argmax over 32064 random logits is one of them.
_ACTION_LOGIT_GAIN = 4.0


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
    if out.exists() and any(out.iterdir()):
        raise ConfigurationError(f"{out} is not empty; give a new folder.")
    config = profile_config(profile)
    partial = out.with_name(out.name + ".partial")  # a half-written folder is never taken for done
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_weights(partial, expected_shapes(config), config, seed)
    config.save_pretrained(partial)
    (partial / PROCESSOR_FILE).write_text(json.dumps(_processor_settings(config), indent=2))
    (partial / STATISTICS_FILE).write_text(json.dumps(BRIDGE_STATISTICS, indent=2))
    copy_tokenizer(partial)
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return out


def profile_config(profile: str) -> OpenVLAConfig:
    """Return the configuration of a profile."""
    return OpenVLAConfig(
        **_PROFILES[profile],
        norm_stats=BRIDGE_STATISTICS,
        architectures=["OpenVLAForActionPrediction"],
        dtype="bfloat16",
    )


def copy_tokenizer(folder: Path) -> None:
    """Write the packaged tokenizer (Llama's layout of 32000 ids and <PAD>) into a folder."""
    source = resources.files("openvla_ros") / "resources" / "tokenizer"
    for name in _TOKENIZER_FILES:
        (folder / name).write_bytes((source / name).read_bytes())


def random_tensor(key: str, shape: Shape, config: OpenVLAConfig, seed: int) -> torch.Tensor:
    """Return the bfloat16 weights of one key, the same for the same key, shape and seed."""
    if key.endswith("bias"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if len(shape) == 1:  # norms and LayerScale
        return torch.ones(shape, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(key.encode()))
    fan_in = 1 if key.endswith("embed_tokens.weight") else math.prod(shape[1:])
    tensor = torch.randn(shape, generator=generator).mul_(1 / math.sqrt(fan_in))
    if key.endswith("lm_head.weight"):
        end = config.action_vocab_size
        tensor[end - config.n_action_bins : end] *= _ACTION_LOGIT_GAIN
    return tensor.to(torch.bfloat16)


def _write_weights(
    folder: Path, shapes: dict[str, Shape], config: OpenVLAConfig, seed: int
) -> None:
    shards = _split(shapes)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [WEIGHTS_FILE]
    for name, keys in zip(names, shards, strict=True):
        tensors = {key: random_tensor(key, shapes[key], config, seed) for key in keys}
        save_file(tensors, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(2 * math.prod(shape) for shape in shapes.values())},
            "weight_map": {
                key: name for name, keys in zip(names, shards, strict=True) for key in keys
            },
        }
        (folder / WEIGHTS_INDEX_FILE).write_text(json.dumps(index, indent=2))


def _split(shapes: dict[str, Shape]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for key, shape in shapes.items():
        size = 2 * math.prod(shape)
        if shards[-1] and used + size > _SHARD_BYTES:
            shards.append([])
            used = 0
        shards[-1].append(key)
        used += size
    return shards


def _processor_settings(config: OpenVLAConfig) -> dict[str, Any]:
    towers = [_IMAGENET, _HALF] if config.use_fused_vision_backbone else [_HALF]
    return {
        "image_resize_strategy": config.image_resize_strategy,
        "input_sizes": [[3, size, size] for size in config.image_sizes],
        "interpolations": ["bicubic"] * len(towers),
        "means": [mean for mean, _ in towers],
        "stds": [std for _, std in towers],
        "use_fused_vision_backbone": config.use_fused_vision_backbone,
    }
