"""The random weights that `openvla-tiny` starts from: OpenVLA's architecture, small.

Two fused towers over one picture of 112 x 112 pixels in 49 patches, the projector of three layers,
a Llama decoder, 256 action ids. Positions start as 2-D sines, which published towers know from
their own training; without them the small network learnt no places at all.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openvla_ros.model.action_stats import STATISTICS_FILE
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.processing import PROCESSOR_FILE, settings_of
from openvla_ros.model.shards import new_folder, write_json, write_shards
from openvla_ros.sim.tiny import vocabulary

IMAGE_SIZE = 112
PATCH_SIZE = 16
GRID = IMAGE_SIZE // PATCH_SIZE  # patches per side
STATISTICS_KEY = "sim_viperx"

_TOWER = {"patch_size": PATCH_SIZE, "embed_dim": 64, "depth": 3, "num_heads": 2}
TOWERS: dict[str, dict[str, Any]] = {
    "tiny_dinov2": {**_TOWER, "reg_tokens": 1, "no_embed_class": True, "init_values": 1.0},
    "tiny_siglip": {**_TOWER, "class_token": False, "global_pool": "map"},
}
TEXT = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": vocabulary.VOCAB_SIZE,
    "pad_token_id": vocabulary.PAD_ID,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "float32",
}
#: Until the data's own statistics replace them: a training run writes those into its result.
_NO_STATISTICS = {
    STATISTICS_KEY: {
        "action": {"q01": [-1.0] * 6 + [0.0], "q99": [1.0] * 7, "mask": [True] * 6 + [False]}
    }
}
_POSITION_SCALE = 0.7
_SLOWEST, _FASTEST = 0.5, 8.0  # periods across the picture


def tiny_config() -> OpenVLAConfig:
    """Return config.json of the embedded policy."""
    return OpenVLAConfig(
        timm_model_ids=list(TOWERS),
        image_sizes=[IMAGE_SIZE] * len(TOWERS),
        timm_override_act_layers=[None] * len(TOWERS),
        vit_specs=TOWERS,
        text_config=TEXT,
        norm_stats=_NO_STATISTICS,
        n_action_bins=vocabulary.ACTION_BINS,
        pad_token_id=vocabulary.PAD_ID,
        pad_to_multiple_of=vocabulary.PAD_TO_MULTIPLE_OF,
        architectures=["OpenVLAForActionPrediction"],
        dtype="float32",
    )


def build_random_base(out: Path, seed: int = 0) -> Path:
    """Return `out`, filled with the checkpoint that training starts from.

    Args:
        out: Folder to create.
        seed: Of every weight.

    Raises:
        ConfigurationError: `out` is taken.
    """
    config = tiny_config()
    torch.manual_seed(seed)
    model = OpenVLAForActionPrediction(config).float()
    _initialise(model)
    weights = model.state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    with new_folder(out) as folder:
        write_shards(folder, shapes, weights.__getitem__, torch.float32)
        config.save_pretrained(folder)
        write_json(folder / PROCESSOR_FILE, settings_of(config))
        write_json(folder / STATISTICS_FILE, _NO_STATISTICS)
        vocabulary.save_tokenizer(folder)
    return out


@torch.no_grad()
def _initialise(model: OpenVLAForActionPrediction) -> None:
    """Draw weights by their number of inputs: 0.02, the usual choice, is for wide networks."""
    depth = len(model.language_model.model.layers)
    for name, weight in model.named_parameters():
        if name.endswith("pos_embed"):
            weight.zero_()
            weight[0, -(GRID**2) :] = _POSITION_SCALE * sine_positions(GRID, weight.shape[2])
        elif name.endswith("embed_tokens.weight"):
            nn.init.normal_(weight, std=0.5)
        elif weight.ndim >= 2 and not name.endswith(("cls_token", "reg_token", "latent")):
            nn.init.normal_(weight, std=1 / math.sqrt(weight[0].numel()))
        if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")):
            weight *= 1 / math.sqrt(2 * depth)  # what joins the residual stream
        elif name.endswith("lm_head.weight"):
            weight *= 0.1  # at first, no answer is likelier than another


def sine_positions(side: int, width: int) -> torch.Tensor:
    """Return (side * side, width): sines and cosines of row and column, row by row."""
    quarter = width // 4
    periods = torch.logspace(math.log10(_SLOWEST), math.log10(_FASTEST), quarter)
    place = (torch.arange(side) + 0.5) / side
    row, column = torch.meshgrid(place, place, indexing="ij")
    waves = [2 * math.pi * axis.reshape(-1, 1) * periods for axis in (row, column)]
    return torch.cat([form(wave) for wave in waves for form in (torch.sin, torch.cos)], dim=1)
