"""Golden source: TensorFlow 2.15 as called by the evaluation scripts of openvla @ c8f03f4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openvla_ros.errors import CheckpointError
from openvla_ros.model.image_options import (
    ImageOptions,
    center_crop,
    decode_jpeg,
    encode_jpeg,
    jpeg_round_trip,
    resize_lanczos3,
    rotate_180,
)

IMAGES = ("img0_256", "img1_640x480", "img2_224")


@pytest.fixture(scope="module")
def pipeline(reference_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(reference_dir / "goldens" / "image_pipeline.npz"))


def image(reference_dir: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(reference_dir / "images" / f"{name}.png").convert("RGB"))


def levels(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("name", ["img0_256", "img1_640x480"])
def test_jpeg_decoding_equals_tensorflow(
    reference_dir: Path, pipeline: dict[str, np.ndarray], name: str
) -> None:
    data = np.load(reference_dir / "goldens" / "jpeg_bytes.npz")[name].tobytes()
    assert levels(decode_jpeg(data), pipeline[f"{name}__jpeg_roundtrip"]) == 0


@pytest.mark.parametrize("name", IMAGES)
def test_jpeg_round_trip_equals_tensorflow(
    reference_dir: Path, pipeline: dict[str, np.ndarray], name: str
) -> None:
    ours = jpeg_round_trip(image(reference_dir, name))
    assert levels(ours, pipeline[f"{name}__jpeg_roundtrip"]) == 0


def test_the_jpeg_is_as_long_as_tensorflows(reference_dir: Path) -> None:
    """The bytes differ in metadata only; the pixels above are equal."""
    golden = np.load(reference_dir / "goldens" / "jpeg_bytes.npz")["img0_256"]
    assert len(encode_jpeg(image(reference_dir, "img0_256"))) == len(golden)


@pytest.mark.parametrize("name", IMAGES)
def test_lanczos3_is_within_one_level_of_tensorflow(
    reference_dir: Path, pipeline: dict[str, np.ndarray], name: str
) -> None:
    ours = resize_lanczos3(image(reference_dir, name), 224)
    golden = pipeline[f"{name}__lanczos3_224_nojpeg"]
    assert levels(ours, golden) <= 1
    differing = float((ours != golden).mean())
    assert differing < 0.002, f"{differing:.4%} of the values differ"


@pytest.mark.parametrize("name", IMAGES)
def test_jpeg_then_lanczos3_equals_tensorflow(
    reference_dir: Path, pipeline: dict[str, np.ndarray], name: str
) -> None:
    ours = ImageOptions(jpeg_round_trip=True, lanczos3=True).apply(image(reference_dir, name))
    assert levels(ours, pipeline[f"{name}__jpeg_then_lanczos3_224"]) == 0


@pytest.mark.parametrize("name", IMAGES)
def test_center_crop_equals_tensorflow(pipeline: dict[str, np.ndarray], name: str) -> None:
    ours = center_crop(pipeline[f"{name}__jpeg_then_lanczos3_224"], 224)
    assert levels(ours, pipeline[f"{name}__center_crop_of_resized"]) == 0


def test_the_whole_libero_path_equals_tensorflow(
    reference_dir: Path, pipeline: dict[str, np.ndarray]
) -> None:
    options = ImageOptions(rotate_180=True, jpeg_round_trip=True, lanczos3=True)
    ours = options.apply(image(reference_dir, "img0_256"))
    assert levels(ours, pipeline["img0_256__libero_full"]) == 0


def test_rotation_turns_both_axes() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(rotate_180(pixels), pixels[::-1, ::-1])


def test_options_add_up() -> None:
    both = ImageOptions(center_crop=True) | ImageOptions(lanczos3=True)
    assert both == ImageOptions(center_crop=True, lanczos3=True)
    assert str(both) == "lanczos3, then center_crop"


def test_no_options_leave_the_image_alone(reference_dir: Path) -> None:
    pixels = image(reference_dir, "img2_224")
    assert ImageOptions().apply(pixels) is pixels


def test_options_survive_their_stored_form() -> None:
    options = ImageOptions(center_crop=True, lanczos3=True)
    assert ImageOptions.from_dict(options.to_dict()) == options
    assert ImageOptions.from_dict(None) == ImageOptions()


@pytest.mark.parametrize("stored", [{"centre_crop": True}, {"center_crop": 0.9}])
def test_an_unknown_option_is_refused(stored: dict) -> None:
    with pytest.raises(CheckpointError, match="center_crop"):
        ImageOptions.from_dict(stored)
