from __future__ import annotations

from pathlib import Path

import pytest

from openvla_ros.errors import CheckpointError
from openvla_ros.model.configuration import VISION_BACKBONES, OpenVLAConfig, VitSpec


def test_the_default_is_openvla_7b() -> None:
    config = OpenVLAConfig()
    assert [spec.embed_dim for spec in config.towers()] == [1024, 1152]
    assert config.use_fused_vision_backbone
    assert config.text_config.vocab_size == 32064
    assert config.action_vocab_size == 32000
    assert config.text_config.rms_norm_eps == 1e-6  # what the published config.json leaves unsaid


def test_a_configuration_survives_saving(reference_checkpoints: Path, tmp_path: Path) -> None:
    config = OpenVLAConfig.from_pretrained(reference_checkpoints / "A_fused")
    config.save_pretrained(tmp_path)
    again = OpenVLAConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.towers() == config.towers()


def test_fields_of_the_language_model_are_respected() -> None:
    text = {"model_type": "mistral", "rms_norm_eps": 1e-5, "num_key_value_heads": 2}
    config = OpenVLAConfig(text_config=text | {"vocab_size": 32064})
    assert config.text_config.model_type == "mistral"
    assert config.text_config.rms_norm_eps == 1e-5
    assert config.text_config.num_key_value_heads == 2


def test_lists_in_the_checkpoint_win_over_the_backbone_id() -> None:
    config = OpenVLAConfig(
        timm_model_ids=["mine"],
        image_sizes=[28],
        timm_override_act_layers=[None],
        vit_specs={"mine": {"patch_size": 14, "embed_dim": 8, "depth": 2, "num_heads": 2}},
    )
    assert config.towers() == [VitSpec(patch_size=14, embed_dim=8, depth=2, num_heads=2)]
    assert not config.use_fused_vision_backbone


@pytest.mark.parametrize("backbone", VISION_BACKBONES)
def test_every_released_backbone_has_towers(backbone: str) -> None:
    config = OpenVLAConfig(vision_backbone_id=backbone)
    patches = {
        (size // spec.patch_size) ** 2
        for spec, size in zip(config.towers(), config.image_sizes, strict=True)
    }
    assert len(patches) == 1


def test_a_norm_layer_means_clips_epsilon() -> None:
    spec = VitSpec.from_timm_arguments("clip", {"norm_layer": "LayerNorm eps 1e-5"})
    assert spec.norm_eps == 1e-5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"vision_backbone_id": "resnet"}, "dinosiglip-vit-so-224px"),
        ({"use_fused_vision_backbone": False}, "timm_model_ids names 2"),
        ({"image_sizes": [224]}, "all have two"),
        ({"text_config": {"model_type": "nothing"}}, "nothing"),
        ({"n_action_bins": 1}, "1 action bins"),
        ({"n_action_bins": "many"}, "n_action_bins must be a whole number, not 'many'"),
        ({"pad_to_multiple_of": None}, "pad_to_multiple_of"),
    ],
)
def test_a_contradiction_is_an_error(arguments: dict, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        OpenVLAConfig(**arguments)


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ({}, "vit_specs"),
        ({"mine": {"swiglu": True}}, "swiglu"),
        ({"mine": {"global_pool": "avg"}}, "global_pool"),
        ({"mine": {"depth": 1}}, "depth"),
        ({"mine": {"num_heads": 7}}, "multiple of num_heads"),
        ({"mine": {"embed_dim": "768"}}, "whole numbers"),
    ],
)
def test_an_unknown_tower_is_an_error(specs: dict, words: str) -> None:
    config = OpenVLAConfig(
        timm_model_ids=["mine"], image_sizes=[224], vit_specs=specs, timm_override_act_layers=[None]
    )
    with pytest.raises(CheckpointError, match=words):
        config.towers()
