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
_ONE = np.float32(1)

# The hue circle has six sextants; in each of them the channels are in one order, and the middle one
# rises (even sextants) or falls.
_SEXTANTS = 6
#: Per channel and sextant: whether it is the highest (0), the middle (1) or the lowest (2). A hue
#: of a full turn, which rounding can give, is the first sextant again.
_ORDER_OF = np.array([[0, 1, 2, 2, 1, 0, 0], [1, 0, 0, 1, 2, 2, 1], [2, 2, 1, 0, 0, 1, 2]], np.intp)
#: Sextant by 4 if red is below green, 2 if blue is above both, 1 if it is below both.
_SEXTANT_OF = np.array([5, 0, 4, -1, 2, 1, 3, -1], np.intp)


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
    mean = _folded_mean(pixels)
    return (pixels - mean) * np.float32(factor) + mean


def adjust_saturation(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Return the picture with its saturation multiplied, at most 1: (H, W, 3) float32 in [0, 1]."""
    red, green, blue = _channels(pixels)
    value, _, low = _sorted(red, green, blue)
    span = value - low
    is_grey = span <= 0
    norm = _ONE / (np.float32(_SEXTANTS) * np.where(is_grey, _ONE, span))
    hue = norm * (red - green) + np.float32(4.0 / 6.0)
    np.copyto(hue, norm * (blue - red) + np.float32(2.0 / 6.0), where=green == value)
    np.copyto(hue, norm * (green - blue), where=red == value)
    hue[is_grey] = 0
    hue += hue < 0  # one turn
    saturation = np.clip(span / np.where(value > 0, value, _ONE) * np.float32(factor), 0, 1)
    chroma = saturation * value
    sextant = hue * np.float32(_SEXTANTS)
    whole = sextant.astype(np.intp)
    rest = np.abs(sextant - (whole & ~1).astype(np.float32) - _ONE)
    base = value - chroma
    return _placed(whole, chroma + base, chroma * (_ONE - rest) + base, base, pixels.shape)


def adjust_hue(pixels: np.ndarray, delta: float) -> np.ndarray:
    """Return the picture with its colours turned; highest and lowest channel keep their values.

    Args:
        pixels: (H, W, 3) float32 in [0, 1].
        delta: Share of a full turn, from red to green.
    """
    red, green, blue = _channels(pixels)
    high, middle, low = _sorted(red, green, blue)
    span = high - low
    is_grey = span == 0
    lesser, greater = np.minimum(red, green), np.maximum(red, green)
    sextant = _SEXTANT_OF[(red < green) * 4 + (greater < blue) * 2 + (blue < lesser)]
    ratio = (middle - low) / np.where(is_grey, _ONE, span)
    hue = sextant.astype(np.float32) + _falling(sextant, ratio)
    hue[is_grey] = 0
    hue += np.float32(delta) * np.float32(_SEXTANTS)
    np.add(hue, _SEXTANTS, out=hue, where=hue < 0)
    np.subtract(hue, _SEXTANTS, out=hue, where=hue >= _SEXTANTS)
    turned = hue.astype(np.intp)
    ratio = _falling(turned, hue - turned.astype(np.float32))
    return _placed(turned, high, low + ratio * span, low, pixels.shape)


def _folded_mean(pixels: np.ndarray) -> np.ndarray:
    """(3,) float32: the second half is added to the first until one pixel is left.

    Source: behaviour of AdjustContrastv2 in TensorFlow 2.15 on a CPU.
    """
    sums = pixels.reshape(-1, 3)
    while len(sums) > 1:
        half = len(sums) // 2
        first, second = sums[:-half].copy(), sums[-half:]
        first[:half] += second
        sums = first
    return sums[0] * (_ONE / np.float32(pixels.size // 3))


def _clipped(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels, 0, 1)


def _channels(pixels: np.ndarray) -> np.ndarray:
    """(3, H * W): each channel in a row, which all that follows is much faster on."""
    return np.ascontiguousarray(pixels.reshape(-1, 3).T)


def _sorted(
    red: np.ndarray, green: np.ndarray, blue: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Highest, middle and lowest channel of each pixel."""
    more, less = np.maximum(red, green), np.minimum(red, green)
    middle = np.maximum(less, np.minimum(more, blue))
    return np.maximum(more, blue), middle, np.minimum(less, blue)


def _falling(sextant: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """The ratio, or what is missing to 1 in every other sextant, where the middle channel falls."""
    return np.where(sextant & 1, _ONE - ratio, ratio)


def _placed(
    sextant: np.ndarray,
    high: np.ndarray,
    middle: np.ndarray,
    low: np.ndarray,
    shape: tuple[int, ...],
) -> np.ndarray:
    """(H, W, 3) with the three values in the channels that the sextant says."""
    values = np.concatenate([high, middle, low])
    places = np.arange(len(high))
    pixels = np.empty((len(high), 3), np.float32)
    for channel, orders in enumerate(_ORDER_OF):
        pixels[:, channel] = values[(orders * len(high))[sextant] + places]
    return pixels.reshape(shape)
