"""Golden source: TensorFlow 2.15 as called by dlimp for openvla @ c8f03f4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tensorflow_draws import augmentation_of

from openvla_ros.model.image_options import crop_and_resize, to_levels, to_unit_range
from openvla_ros.training.augmentation import (
    BRIGHTNESS,
    CONTRAST,
    CROP_SIDE,
    HUE,
    SATURATION,
    Augmentation,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    augment,
)


@pytest.fixture(scope="module")
def pipeline(reference_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(reference_dir / "goldens" / "image_pipeline.npz"))


@pytest.fixture(scope="module")
def image(pipeline: dict[str, np.ndarray]) -> np.ndarray:
    """The picture that all golden augmentations started from."""
    return pipeline["img0_256__lanczos3_224_nojpeg"]


def test_a_crop_equals_tensorflows(pipeline: dict[str, np.ndarray], image: np.ndarray) -> None:
    side = np.float32(np.sqrt(0.9))
    corner = (np.float32(0.01), np.float32(0.03))
    ours = to_levels(crop_and_resize(to_unit_range(image), corner, side, 224))
    require_levels(ours, pipeline["op_crop_box"])


@pytest.mark.parametrize(
    ("golden", "operation", "number"),
    [
        ("op_brightness_p0_15", adjust_brightness, 0.15),
        ("op_contrast_1_15", adjust_contrast, 1.15),
        ("op_saturation_0_85", adjust_saturation, 0.85),
        ("op_hue_p0_04", adjust_hue, 0.04),
    ],
)
def test_each_operation_equals_tensorflows(
    pipeline: dict[str, np.ndarray],
    image: np.ndarray,
    golden: str,
    operation: Callable[[np.ndarray, float], np.ndarray],
    number: float,
) -> None:
    require_levels(to_levels(operation(to_unit_range(image), number)), pipeline[golden])


def test_the_mean_of_a_channel_is_summed_by_folding_the_picture_in_half() -> None:
    """(0 + 3) + 2, and then 1 + 4: with these numbers every other order rounds to another sum."""
    tiny = np.float32(2.0**-24)
    column = np.array([1.0, tiny, tiny, 0.0, tiny], np.float32)
    folded = np.float32(1.0) + (tiny + tiny)
    mean = adjust_contrast(np.tile(column[:, None, None], (1, 1, 3)), 0.0)
    assert np.array_equal(mean, np.full((5, 1, 3), folded * np.float32(0.2)))


@pytest.mark.parametrize("seed", [(1, 2), (123, 456)])
def test_a_whole_augmentation_equals_tensorflows_of_the_same_seed(
    pipeline: dict[str, np.ndarray], image: np.ndarray, seed: tuple[int, int]
) -> None:
    """Five operations in a row round differently in one value of 150,528, by one level."""
    ours = augmentation_of(seed).apply(image)
    golden = pipeline[f"aug_seed_{seed[0]}_{seed[1]}"]
    differing = int((ours != golden).sum())
    levels = int(np.abs(ours.astype(int) - golden).max())
    assert differing <= 2 and levels <= 1, f"{differing} values differ, by up to {levels} levels"


def test_colours_come_back_from_no_change_and_grey_stays_grey(image: np.ndarray) -> None:
    pixels = to_unit_range(image)
    for unchanged in (adjust_hue(pixels, 0.0), adjust_saturation(pixels, 1.0)):
        apart = float(np.abs(unchanged - pixels).max())
        assert apart < 1e-6, apart
    grey = np.repeat(pixels[..., :1], 3, axis=2)
    for same in (adjust_hue(grey, 0.3), adjust_saturation(grey, 1.2)):
        assert np.array_equal(same, grey)


@pytest.mark.parametrize("delta", [-1 / 3, 1 / 3])
def test_a_third_of_a_turn_exchanges_the_channels(image: np.ndarray, delta: float) -> None:
    pixels = to_unit_range(image)
    turned = adjust_hue(pixels, delta)
    apart = float(np.abs(turned - np.roll(pixels, round(3 * delta), axis=2)).max())
    assert apart < 1e-5, apart


def test_drawn_numbers_fill_their_ranges_and_depend_on_the_generator_alone() -> None:
    generator = np.random.default_rng(0)
    drawn = [Augmentation.draw(generator) for _ in range(2000)]
    ranges = {
        "crop_offset": (0.0, 1 - float(CROP_SIDE)),
        "brightness": (-BRIGHTNESS, BRIGHTNESS),
        "contrast": CONTRAST,
        "saturation": SATURATION,
        "hue": (-HUE, HUE),
    }
    for name, (low, high) in ranges.items():
        values = np.array([getattr(one, name) for one in drawn])
        assert low <= values.min() and values.max() <= high, (name, values.min(), values.max())
        share = (values.max() - values.min()) / (high - low)
        assert share > 0.99, (name, share)
    assert Augmentation.draw(np.random.default_rng(0)) == drawn[0]


def test_the_same_generator_gives_the_same_picture(image: np.ndarray) -> None:
    one, same, other = (augment(image, np.random.default_rng([7, n])) for n in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def require_levels(ours: np.ndarray, golden: np.ndarray) -> None:
    """Fail with the number of values that differ, and by how much."""
    assert ours.dtype == golden.dtype == np.uint8 and ours.shape == golden.shape
    apart = np.abs(ours.astype(int) - golden)
    assert not apart.any(), f"{int((apart > 0).sum())} values differ, by up to {apart.max()} levels"
