"""Golden source: openvla @ c8f03f4, PrismaticProcessor with Pillow 13.0.0. Equality is exact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openvla_ros.errors import CheckpointError, ImageError
from openvla_ros.model.checkpoint import read_config
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.image_options import ImageOptions
from openvla_ros.model.processing import (
    EMPTY_TOKEN_ID,
    ImageProcessor,
    OpenVLAProcessor,
    append_empty_token,
    load_tokenizer,
    settings_of,
    to_rgb,
)
from openvla_ros.model.prompts import prompt_form

ROOT = Path(__file__).resolve().parent / "reference"
CASES = json.loads((ROOT / "goldens" / "index.json").read_text())["cases"]
SETTINGS = json.loads((ROOT / "checkpoints" / "A_fused" / "preprocessor_config.json").read_text())
STRATEGIES = np.load(ROOT / "goldens" / "processor_strategies.npz")


def processor_of(checkpoint: Path) -> OpenVLAProcessor:
    config = read_config(checkpoint)
    return OpenVLAProcessor.from_pretrained(checkpoint, prompt_form(config.llm_backbone_id))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_pixels_and_ids_equal_the_reference(case: dict, reference_checkpoints: Path) -> None:
    golden = np.load(ROOT / "goldens" / case["file"])
    processor = processor_of(reference_checkpoints / case["checkpoint"])
    pixels = processor.image_processor(Image.open(ROOT / "images" / case["image"])).numpy()
    if "pixel_values" in golden:
        difference = np.abs(pixels - golden["pixel_values"]).max()
    else:
        difference = np.abs(pixels[:, ::16, ::16] - golden["pixel_values_u8check"]).max()
    assert difference == 0, f"pixel values differ by up to {difference}"
    ids = processor.encode_prompt(case["prompt"])
    assert ids[0].tolist() == golden["ids_used"].tolist()


@pytest.mark.parametrize(
    "options", [ImageOptions(), ImageOptions(rotate_180=True, center_crop=True)]
)
@pytest.mark.parametrize("strategy", ["resize-naive", "resize-crop", "letterbox"])
def test_the_view_for_people_is_what_the_first_tower_gets(
    strategy: str, options: ImageOptions
) -> None:
    settings = {**SETTINGS, "image_resize_strategy": strategy, "image_options": options.to_dict()}
    settings = {key: value for key, value in settings.items() if not key.startswith("tvf_")}
    processor = ImageProcessor(settings)
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    view = processor.view(image)
    tower = processor.towers[0]
    assert view.dtype == np.uint8 and view.shape == (*tower.crop, 3)
    seen = processor(image).numpy()[:3].transpose(1, 2, 0) * tower.std + tower.mean
    np.testing.assert_array_equal(np.rint(seen * 255), view)


@pytest.mark.parametrize("name", [name for name in STRATEGIES.files if name.endswith("u8")])
def test_every_resize_strategy_equals_the_reference(name: str) -> None:
    strategy, towers, image, _ = name.split("__")
    count = 2 if towers == "fused" else 1
    settings = {
        "image_resize_strategy": strategy,
        "input_sizes": [[3, 224, 224]] * count,
        "interpolations": ["bicubic"] * count,
        "means": SETTINGS["means"][-count:],
        "stds": SETTINGS["stds"][-count:],
    }
    processor = ImageProcessor(settings)
    pixels = processor(Image.open(ROOT / "images" / f"{image}.png")).numpy()
    golden = STRATEGIES[name.replace("u8", "pv_strided")]
    assert np.abs(pixels[:, ::8, ::8] - golden).max() == 0
    for tower, transform in enumerate(processor.towers):  # undo the normalisation: what it saw
        seen = pixels[3 * tower : 3 * tower + 3] * np.reshape(transform.std, (3, 1, 1))
        seen = np.rint(255 * (seen + np.reshape(transform.mean, (3, 1, 1)))).astype(np.uint8)
        assert np.array_equal(seen, STRATEGIES[name][tower])


def test_stored_transforms_win_over_means_and_deviations() -> None:
    """Published checkpoints hold constants rounded to bfloat16 in tvf_normalize_params."""
    pixels = np.full((224, 224, 3), 128, np.uint8)
    stored = ImageProcessor(SETTINGS)(pixels)
    plain = {k: v for k, v in SETTINGS.items() if not k.startswith("tvf_")}
    recomputed = ImageProcessor(plain)(pixels)
    assert not torch.equal(stored[:3], recomputed[:3])
    assert torch.equal(stored[3:], recomputed[3:])  # 0.5 is exact in bfloat16


def test_an_array_and_the_same_pil_image_give_the_same_pixels() -> None:
    image = Image.open(ROOT / "images" / "img1_640x480.png").convert("RGB")
    processor = ImageProcessor(SETTINGS)
    assert torch.equal(processor(image), processor(np.array(image)))


def test_channel_order_matters() -> None:
    image = np.array(Image.open(ROOT / "images" / "img1_640x480.png").convert("RGB"))
    processor = ImageProcessor(SETTINGS)
    assert not torch.equal(processor(image), processor(image[..., ::-1]))


def test_stored_image_options_are_applied_before_the_towers() -> None:
    image = np.array(Image.open(ROOT / "images" / "img1_640x480.png").convert("RGB"))
    options = ImageOptions(lanczos3=True, center_crop=True)
    cropped = ImageProcessor({**SETTINGS, "image_options": options.to_dict()})
    plain = ImageProcessor(SETTINGS)
    assert torch.equal(cropped(image), plain(options.apply(image)))
    assert not torch.equal(cropped(image), plain(image))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        [[0]],
    ],
)
def test_anything_but_an_eight_bit_rgb_image_is_refused(image: object) -> None:
    with pytest.raises(ImageError, match="uint8"):
        to_rgb(image)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
def test_a_pil_image_of_any_mode_becomes_rgb(mode: str) -> None:
    assert to_rgb(Image.new("RGB", (8, 6)).convert(mode)).mode == "RGB"


def test_the_empty_token_is_added_once() -> None:
    once = append_empty_token(torch.tensor([[1, 5]]))
    assert once.tolist() == [[1, 5, EMPTY_TOKEN_ID]]
    assert append_empty_token(once) is once
    mixed = torch.tensor([[1, EMPTY_TOKEN_ID], [1, 5]])
    assert append_empty_token(mixed).shape == (2, 3)  # the whole batch decides, as in the reference


def test_real_llama_ids_are_the_prompt_plus_the_empty_token() -> None:
    golden = json.loads((ROOT / "goldens" / "real_llama_token_ids.json").read_text())
    for entry in golden["inference"]:
        ids = append_empty_token(torch.tensor([entry["ids"]]))
        assert ids[0].tolist() == entry["ids_with_trailing_space"]


@pytest.mark.parametrize("edit", [{"input_sizes": None}, {"means": []}, {"interpolations": ["x"]}])
def test_incomplete_settings_are_refused(edit: dict) -> None:
    plain = {k: v for k, v in SETTINGS.items() if not k.startswith("tvf_")}
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        ImageProcessor({**plain, **edit})


RESIZE = SETTINGS["tvf_resize_params"][0]
NORMALIZE = SETTINGS["tvf_normalize_params"][0]


@pytest.mark.parametrize(
    "edit",
    [
        {"tvf_resize_params": [{**RESIZE, "interpolation": 9}] * 2},
        {"tvf_resize_params": [{**RESIZE, "size": [0, 0]}] * 2},
        {"tvf_resize_params": [{**RESIZE, "size": "224"}] * 2},
        {"tvf_crop_params": [{"output_size": [224, 224, 3]}] * 2},
        {"tvf_normalize_params": [{**NORMALIZE, "mean": [0.5, 0.5]}] * 2},
        {"tvf_normalize_params": [{**NORMALIZE, "mean": [float("nan")] * 3}] * 2},
        {"tvf_normalize_params": [{**NORMALIZE, "std": [0.0, 0.5, 0.5]}] * 2},
        {"tvf_do_letterbox": True, "tvf_letterbox_fill": [1, 2]},
        {"image_options": ["lanczos3"]},
    ],
)
def test_settings_that_no_image_can_follow_are_refused(edit: dict) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        ImageProcessor({**SETTINGS, **edit})


def test_settings_that_are_a_list_are_refused() -> None:
    with pytest.raises(CheckpointError, match="JSON object, not a list"):
        ImageProcessor([])


def test_images_of_another_size_than_the_towers_take_are_refused() -> None:
    processor = ImageProcessor(SETTINGS)
    processor.require_sizes([224, 224])
    for sizes in ([224], [224, 384]):
        with pytest.raises(CheckpointError, match="image_sizes"):
            processor.require_sizes(sizes)


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match="letterbox"):
        ImageProcessor({**SETTINGS, "image_resize_strategy": "stretch"})


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        ImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("backbone", "mean"),
    [("clip-vit-l", 0.48145466), ("dinov2-vit-l", 0.485), ("siglip-vit-so400m", 0.5)],
)
def test_settings_follow_the_towers(backbone: str, mean: float) -> None:
    settings = settings_of(OpenVLAConfig(vision_backbone_id=backbone))
    assert settings["means"][0][0] == mean
    assert ImageProcessor(settings)(np.zeros((5, 7, 3), np.uint8)).shape == (3, 224, 224)
