"""Golden source: openvla @ c8f03f4 on a CPU, float32, greedy, transformers 4.40.1."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_rounding import ROUNDING, relative_difference
from PIL import Image

from openvla_ros.model.checkpoint import expected_shapes, load_model, read_config
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.processing import ImageProcessor
from openvla_ros.model.random_weights import profile_config

ROOT = Path(__file__).resolve().parent / "reference"
CASES = json.loads((ROOT / "goldens" / "index.json").read_text())["cases"]
TRAINING = json.loads((ROOT / "goldens" / "train_index.json").read_text())
ACTION_ROWS = slice(31744, 32000)


@pytest.fixture(scope="module")
def models(reference_checkpoints: Path) -> dict[str, OpenVLAForActionPrediction]:
    return {
        folder.name: load_model(
            folder, read_config(folder), device=torch.device("cpu"), dtype=torch.float32
        )
        for folder in reference_checkpoints.iterdir()
    }


def pixels_of(models_folder: Path, checkpoint: str, image: str) -> torch.Tensor:
    processor = ImageProcessor.from_pretrained(models_folder / checkpoint)
    return processor(Image.open(ROOT / "images" / image))[None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_tokens_and_logits_equal_the_reference(
    case: dict, models: dict, reference_checkpoints: Path
) -> None:
    golden = np.load(ROOT / "goldens" / case["file"])
    pixels = pixels_of(reference_checkpoints, case["checkpoint"], case["image"])
    ids = torch.tensor(golden["ids_used"])[None]
    generated = models[case["checkpoint"]].generate_action_tokens(ids, pixels, 7)
    assert generated.token_ids == case["tokens"]
    logits = generated.logits.numpy()
    difference = np.abs(logits[:, ACTION_ROWS] - golden["logits_action_rows"]).max()
    assert difference < 1e-4, f"logits of the action rows differ by up to {difference:.2g}"
    if "logits" in golden:
        difference = np.abs(logits - golden["logits"]).max()
        assert difference < 1e-4, f"logits differ by up to {difference:.2g}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_vision_and_projector_equal_the_reference(
    case: dict, models: dict, reference_checkpoints: Path
) -> None:
    golden = np.load(ROOT / "goldens" / case["file"])
    model = models[case["checkpoint"]]
    pixels = pixels_of(reference_checkpoints, case["checkpoint"], case["image"])
    with torch.inference_mode():
        features = model.vision_backbone(pixels)
        projected = model.projector(features)
    for name, ours in (("patch_features", features), ("projected", projected)):
        stored = next(key for key in (name, f"{name}_head") if key in golden)
        expected = golden[stored]
        difference = relative_difference(ours[0].numpy()[: len(expected)], expected)
        assert difference < ROUNDING, f"{name} differ by up to {difference:.2g} of the largest"


def test_cached_decoding_equals_the_full_forward(models: dict, reference_checkpoints: Path) -> None:
    model = models["A_fused"]
    golden = np.load(ROOT / "goldens" / CASES[0]["file"])
    pixels = pixels_of(reference_checkpoints, "A_fused", CASES[0]["image"])
    ids = torch.tensor(golden["ids_used"])[None]
    generated = model.generate_action_tokens(ids, pixels, 7)
    everything = torch.cat([ids, torch.tensor([generated.token_ids[:-1]])], dim=1)
    with torch.inference_mode():
        full = model(everything, pixels).logits[0, -7:]
    assert (full - generated.logits).abs().max() < 1e-4


def test_the_probability_is_that_of_the_chosen_token(
    models: dict, reference_checkpoints: Path
) -> None:
    golden = np.load(ROOT / "goldens" / CASES[0]["file"])
    pixels = pixels_of(reference_checkpoints, "A_fused", CASES[0]["image"])
    ids = torch.tensor(golden["ids_used"])[None]
    generated = models["A_fused"].generate_action_tokens(ids, pixels, 7)
    expected = generated.logits.softmax(dim=-1).max(dim=-1).values
    assert np.allclose(generated.token_probabilities, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", TRAINING)
def test_the_training_loss_equals_the_reference(
    name: str, models: dict, reference_checkpoints: Path
) -> None:
    facts, golden = TRAINING[name], np.load(ROOT / "goldens" / name)
    pixels = torch.cat(
        [pixels_of(reference_checkpoints, facts["checkpoint"], i) for i in facts["images"]]
    )
    with torch.inference_mode():
        output = models[facts["checkpoint"]](
            torch.tensor(golden["input_ids"]),
            pixels,
            attention_mask=torch.tensor(golden["attention_mask"]),
            labels=torch.tensor(golden["labels"]),
        )
    difference = abs(float(output.loss) - facts["loss"])
    assert difference < 2e-6 * facts["loss"] + 2e-6, f"the loss differs by {difference:.2g}"


def test_end_of_sequence_cannot_shorten_an_action(
    models: dict, reference_checkpoints: Path
) -> None:
    """In the reference an early EOS pulls prompt ids into the action, without an error."""
    golden = np.load(ROOT / "goldens" / CASES[0]["file"])
    pixels = pixels_of(reference_checkpoints, "A_fused", CASES[0]["image"])
    model = models["A_fused"]
    head = model.language_model.lm_head.weight
    kept = head.detach().clone()
    try:
        with torch.no_grad():
            head[2] = 50 * kept[golden["tokens"][0]]
        generated = model.generate_action_tokens(torch.tensor(golden["ids_used"])[None], pixels, 7)
    finally:
        with torch.no_grad():
            head.copy_(kept)
    assert generated.token_ids[0] == 2
    assert len(generated.token_ids) == 7


@pytest.mark.parametrize(("profile", "keys"), [("7b", "openvla-7b"), ("v01-7b", "openvla-v01-7b")])
def test_keys_and_shapes_of_the_released_models(profile: str, keys: str) -> None:
    lines = (ROOT / f"state_dict_keys__{keys}.txt").read_text().splitlines()
    golden = {k: tuple(json.loads(v)) for k, v in (line.split(None, 1) for line in lines if line)}
    assert expected_shapes(profile_config(profile)) == golden
    assert len(golden) == {"7b": 982, "v01-7b": 637}[profile]


def test_saving_writes_the_keys_that_were_loaded(
    models: dict, reference_checkpoints: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    models["A_fused"].save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    loaded = load_file(reference_checkpoints / "A_fused" / "model.safetensors")
    assert set(saved) == set(loaded)
    assert all(torch.equal(saved[key], loaded[key].float()) for key in saved)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "llama"])
def test_any_causal_language_model_takes_the_place_of_llama(family: str) -> None:
    text = {
        "model_type": family,
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    specs = {"t": {"patch_size": 14, "embed_dim": 16, "depth": 2, "num_heads": 2}}
    torch.manual_seed(0)
    model = OpenVLAForActionPrediction(
        OpenVLAConfig(
            timm_model_ids=["t"],
            image_sizes=[28],
            timm_override_act_layers=[None],
            vit_specs=specs,
            text_config=text,
        )
    ).eval()
    ids = torch.tensor([[1, 5, 6, 7]])
    pixels = torch.randn(1, 3, 28, 28)
    generated = model.generate_action_tokens(ids, pixels, 3)
    everything = torch.cat([ids, torch.tensor([generated.token_ids[:-1]])], dim=1)
    with torch.inference_mode():
        assert torch.allclose(model(everything, pixels).logits[0, -3:], generated.logits, atol=1e-5)
        assert not torch.allclose(model(everything, -pixels).logits[0, -3:], generated.logits)
