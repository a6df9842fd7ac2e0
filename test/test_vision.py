"""Golden source: timm 0.9.10 towers as openvla @ c8f03f4 runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_rounding import ROUNDING, relative_difference
from PIL import Image
from safetensors.torch import load_file

from openvla_ros.errors import CheckpointError
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.processing import ImageProcessor, settings_of
from openvla_ros.model.vision import Projector, VisionBackbone, activation

ROOT = Path(__file__).resolve().parent / "reference"
SPECS = json.loads((ROOT / "checkpoints" / "vit_specs.json").read_text())
EXTRAS = json.loads((ROOT / "goldens" / "extras_index.json").read_text())
TOWERS = ("dino_only", "clip_only", "siglip_384", "dinoclip")
BACKBONE = {  # the released family that each made-up tower imitates
    "dino_only": "dinov2-vit-l",
    "clip_only": "clip-vit-l",
    "siglip_384": "siglip-vit-so400m-384px",
    "dinoclip": "dinoclip-vit-l-336px",
}


def backbone_of(name: str) -> tuple[VisionBackbone, OpenVLAConfig]:
    facts = EXTRAS[f"vision_{name}"]
    config = OpenVLAConfig(
        vision_backbone_id=BACKBONE[name],
        timm_model_ids=facts["timm_ids"],
        image_sizes=facts["sizes"],
        timm_override_act_layers=facts["act"],
        vit_specs=SPECS,
    )
    backbone = VisionBackbone(config)
    weights = load_file(ROOT / "checkpoints" / f"vision_{name}.safetensors")
    backbone.load_state_dict({k: v.float() for k, v in weights.items()}, strict=True)
    return backbone.eval(), config


def pixels_of(name: str) -> torch.Tensor:
    facts = EXTRAS[f"vision_{name}"]
    settings = settings_of(OpenVLAConfig(vision_backbone_id=BACKBONE[name]))
    settings["input_sizes"] = [[3, size, size] for size in facts["sizes"]]
    settings["image_resize_strategy"] = facts["strategy"]
    return ImageProcessor(settings)(Image.open(ROOT / "images" / facts["image"]))[None]


@pytest.mark.parametrize("name", TOWERS)
def test_features_equal_the_reference(name: str) -> None:
    backbone, _ = backbone_of(name)
    golden = np.load(ROOT / "goldens" / "vision_extras.npz")[f"{name}__features"]
    with torch.inference_mode():
        features = backbone(pixels_of(name))[0].numpy()
    difference = relative_difference(features, golden)
    assert difference < ROUNDING, f"features differ by up to {difference:.2g} of the largest"


@pytest.mark.parametrize("name", TOWERS)
def test_the_last_block_and_the_final_norm_have_no_influence(name: str) -> None:
    backbone, _ = backbone_of(name)
    pixels = pixels_of(name)
    with torch.inference_mode():
        before = backbone(pixels)
        for tower in (backbone.featurizer, getattr(backbone, "fused_featurizer", None)):
            if tower is not None:
                for parameter in (*tower.blocks[-1].parameters(), *tower.norm.parameters()):
                    parameter.fill_(float("nan"))
        assert torch.equal(before, backbone(pixels))


def test_the_projector_has_three_layers_when_fused_and_two_otherwise() -> None:
    assert [n for n, _ in Projector(8, 4, fused=True).named_children()] == [
        "fc1",
        "fc2",
        "fc3",
        "act",
    ]
    assert not hasattr(Projector(8, 4, fused=False), "fc3")


def test_towers_with_unequal_patches_cannot_be_fused() -> None:
    config = OpenVLAConfig(image_sizes=[224, 384])
    with pytest.raises(CheckpointError, match="256, 729"), torch.device("meta"):
        VisionBackbone(config)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(CheckpointError, match="quick_gelu"):
        activation("relu6")
