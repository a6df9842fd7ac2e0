"""Random changes of a training picture: crop, brightness, contrast, saturation, hue, in this order.

Each operation is a function with its numbers as arguments; `augment` draws them. Pixels are float32
in [0, 1], clipped after each operation.
Source: behaviour of TensorFlow 2.15 as called by openvla @ c8f03f4 through dlimp; the golden
vectors in test/reference are its output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openvla_ros.model.image_options import (
    CROP_AREA,
    MODEL_IMAGE_SIZE,
    crop_and_resize,
    to_levels,
    to_unit_range,
)

BRIGHTNESS = 0.2  # largest shift either way
CONTRAST = (0.8, 1.2)
SATURATION = (0.8, 1.2)
HUE = 0.05  # of a full turn, either way
CROP_SIDE = np.sqrt(np.float32(CROP_AREA))
_SEXTANTS = 6  # of the hue circle


@dataclass(frozen=True)
class Augmentation:
    """The numbers of one augmentation.

    Attributes:
        crop_offset: Top and left edge of the crop, as a share of each side. OpenVLA draws both from
            one seed: its crops lie on the diagonal.
        brightness: Added to every pixel.
        contrast: Factor of the distance from the mean of each channel.
        saturation: Factor of the saturation.
        hue: Share of a full turn.
    """

    crop_offset: float
    brightness: float
    contrast: float
    saturation: float
    hue: float

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Augmentation:
        """Return drawn numbers, each evenly from its range."""
        return cls(
            crop_offset=generator.uniform(0.0, float(1 - CROP_SIDE)),
            brightness=generator.uniform(-BRIGHTNESS, BRIGHTNESS),
            contrast=generator.uniform(*CONTRAST),
            saturation=generator.uniform(*SATURATION),
            hue=generator.uniform(-HUE, HUE),
        )

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return the picture after every operation: (224, 224, 3) uint8 RGB to the same."""
        assert image.shape == (MODEL_IMAGE_SIZE, MODEL_IMAGE_SIZE, 3), image.shape
        pixels = resized_crop(to_unit_range(image), self.crop_offset, self.crop_offset)
        pixels = adjust_brightness(_clipped(pixels), self.brightness)
        pixels = adjust_contrast(_clipped(pixels), self.contrast)
        pixels = adjust_saturation(_clipped(pixels), self.saturation)
        pixels = adjust_hue(_clipped(pixels), self.hue)
        return to_levels(pixels)


def augment(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the picture after every operation with drawn numbers.

    Args:
        image: (224, 224, 3) uint8 RGB.
        generator: Gives five numbers, whatever the picture.

    Returns:
        (224, 224, 3) uint8.
    """
    return Augmentation.draw(generator).apply(image)


def resized_crop(pixels: np.ndarray, top: float, left: float) -> np.ndarray:
    """Return nine tenths of the area in the size of the picture: (N, N, 3) float32 to the same.

    Args:
        pixels: Square.
        top: Upper edge, as a share of the height.
        left: Left edge, as a share of the width.
    """
    corner = (np.float32(top), np.float32(left))
    return crop_and_resize(pixels, corner, CROP_SIDE, len(pixels))


def adjust_brightness(pixels: np.ndarray, delta: float) -> np.ndarray:
    """Return the picture with a number added to every channel, not clipped."""
    return pixels + np.float32(delta)


def adjust_contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Return the picture with each channel stretched about its mean, not clipped."""
    # TensorFlow sums block by block, which float64 is closer to than float32 in any other order.
    mean = pixels.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    return (pixels - mean) * np.float32(factor) + mean


def adjust_saturation(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Return the picture with its saturation multiplied, at most 1: (H, W, 3) float32 in [0, 1]."""
    hue, saturation, value = _hue_saturation_value(pixels)
    saturation = np.clip(saturation * np.float32(factor), 0, 1)
    chroma = saturation * value
    sextant = hue * np.float32(_SEXTANTS)
    rest = np.abs(np.fmod(sextant, np.float32(2)) - np.float32(1))
    between = chroma * (np.float32(1) - rest)
    base = value - chroma
    return _placed(sextant.astype(np.int8), chroma + base, between + base, base)


def adjust_hue(pixels: np.ndarray, delta: float) -> np.ndarray:
    """Return the picture with its colours turned: (H, W, 3) float32 in [0, 1].

    Args:
        pixels: (H, W, 3).
        delta: Share of a full turn, from red to green; brightest and darkest channel keep their
            values.
    """
    high, low = pixels.max(axis=2), pixels.min(axis=2)
    red, green, blue = np.moveaxis(pixels, 2, 0)
    middle = np.maximum(np.minimum(red, green), np.minimum(np.maximum(red, green), blue))
    sextant = _sextants(red, green, blue)
    grey = high == low
    span = np.where(grey, np.float32(1), high - low)
    ratio = (middle - low) / span
    hue = sextant + np.where(sextant % 2 == 0, ratio, np.float32(1) - ratio).astype(np.float32)
    hue = np.where(grey, np.float32(0), hue) + np.float32(delta) * np.float32(_SEXTANTS)
    hue = np.where(hue < 0, hue + np.float32(_SEXTANTS), hue)
    hue = np.where(hue >= _SEXTANTS, hue - np.float32(_SEXTANTS), hue).astype(np.float32)
    turned = hue.astype(np.int8)
    ratio = hue - turned.astype(np.float32)
    ratio = np.where(turned % 2 == 0, ratio, np.float32(1) - ratio)
    return _placed(turned, high, low + ratio * (high - low), low)


def _clipped(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels, 0, 1)


def _hue_saturation_value(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hue [0, 1], saturation and value, (H, W) float32 each."""
    red, green, blue = np.moveaxis(pixels, 2, 0)
    value = pixels.max(axis=2)
    span = value - pixels.min(axis=2)
    saturation = np.where(value > 0, span / np.where(value > 0, value, 1), 0).astype(np.float32)
    grey = span <= 0
    norm = np.float32(1) / (np.float32(_SEXTANTS) * np.where(grey, np.float32(1), span))
    third = np.float32(2.0 / 6.0)
    hue = np.where(
        red == value,
        norm * (green - blue),
        np.where(
            green == value,
            norm * (blue - red) + third,
            norm * (red - green) + np.float32(4.0 / 6.0),
        ),
    )
    hue = np.where(grey, np.float32(0), hue)
    return np.where(hue < 0, hue + np.float32(1), hue).astype(np.float32), saturation, value


def _sextants(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Return 0 to 5, (H, W) float32: which channel is highest and which lowest."""
    above_red = np.where(blue < red, 1, np.where(blue > green, 3, 2))  # green above red
    below_red = np.where(blue < green, 0, np.where(blue > red, 4, 5))
    return np.where(red < green, above_red, below_red).astype(np.float32)


def _placed(
    sextant: np.ndarray, high: np.ndarray, middle: np.ndarray, low: np.ndarray
) -> np.ndarray:
    """Return (H, W, 3) with the three values in the channels that the sextant says."""
    red = np.choose(sextant, [high, middle, low, low, middle, high], mode="wrap")
    green = np.choose(sextant, [middle, high, high, middle, low, low], mode="wrap")
    blue = np.choose(sextant, [low, low, middle, high, high, middle], mode="wrap")
    return np.stack([red, green, blue], axis=2)
