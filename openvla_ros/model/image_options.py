"""The camera path of fine-tuned checkpoints: rotation, JPEG round trip, Lanczos, centre crop.

Checkpoints fine-tuned from RLDS data saw images that went through TensorFlow's functions. The same
numbers come out here from NumPy; each step is one function. Which steps apply is stored with the
checkpoint (`ImageOptions`), not remembered by the user.
Source: behaviour of TensorFlow 2.15 as called by openvla @ c8f03f4 (experiments/robot); the golden
vectors in test/reference are its output.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from openvla_ros.errors import CheckpointError, DependencyError

#: Key of the options in preprocessor_config.json.
OPTIONS_KEY = "image_options"

MODEL_IMAGE_SIZE = 224  # side of the images in the RLDS training path
CROP_AREA = 0.9  # share of the area that the training augmentation keeps
JPEG_QUALITY = 95  # tf.image.encode_jpeg's default
_LANCZOS_RADIUS = 3.0
_PI = np.float32(3.14159265359)


@dataclass(frozen=True)
class ImageOptions:
    """Steps between the camera image and the processor, in this order. All off is the base model.

    Attributes:
        rotate_180: Turn the image upside down (LIBERO renders only).
        jpeg_round_trip: Encode and decode as the training data was stored.
        lanczos3: Resize to 224 x 224 as the training data was, before anything else resizes.
        center_crop: Cut the central 90 % of the area (fine-tuned with augmentation).
    """

    rotate_180: bool = False
    jpeg_round_trip: bool = False
    lanczos3: bool = False
    center_crop: bool = False

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any] | None) -> ImageOptions:
        """Return the options stored under "image_options" in preprocessor_config.json.

        Raises:
            CheckpointError: An unknown option, or a value that is not true or false.
        """
        stored = stored or {}
        if not isinstance(stored, Mapping):
            raise CheckpointError(
                f"preprocessor_config.json: {OPTIONS_KEY} must be a JSON object, not {stored!r}."
            )
        names = [f.name for f in fields(cls)]
        wrong = [k for k, v in stored.items() if k not in names or not isinstance(v, bool)]
        if wrong:
            raise CheckpointError(
                f"preprocessor_config.json: {OPTIONS_KEY} has {wrong}; allowed are "
                f"{', '.join(names)}, each true or false."
            )
        return cls(**stored)

    def to_dict(self) -> dict[str, bool]:
        """Return the form that `from_dict` reads."""
        return asdict(self)

    def __or__(self, other: ImageOptions) -> ImageOptions:
        """Return the options with the steps of both."""
        added = other.to_dict()
        return ImageOptions(**{name: on or added[name] for name, on in self.to_dict().items()})

    def __str__(self) -> str:
        steps = [name for name, is_on in self.to_dict().items() if is_on]
        return ", then ".join(steps) or "as the camera gives it"

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return what the processor gets: (H, W, 3) uint8 RGB to (H', W', 3) uint8 RGB."""
        if self.rotate_180:
            image = rotate_180(image)
        if self.jpeg_round_trip:
            image = jpeg_round_trip(image)
        if self.lanczos3:
            image = resize_lanczos3(image, MODEL_IMAGE_SIZE)
        if self.center_crop:
            image = center_crop(image, MODEL_IMAGE_SIZE)
        return image


def rotate_180(image: np.ndarray) -> np.ndarray:
    """Return the image turned by half a turn: both axes flipped."""
    return np.ascontiguousarray(image[::-1, ::-1])


def jpeg_round_trip(image: np.ndarray) -> np.ndarray:
    """Return the image as TensorFlow reads it back from its own JPEG: (H, W, 3) uint8, lossy."""
    return decode_jpeg(encode_jpeg(image))


def encode_jpeg(image: np.ndarray) -> bytes:
    """Return the image as JPEG of quality 95 with 4:2:0 chroma, equal to TensorFlow's."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=2)
    return buffer.getvalue()


def decode_jpeg(data: bytes) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB with the fast integer transform that TensorFlow decodes with.

    Other decoders use the accurate transform and differ by up to a dozen grey levels.

    Raises:
        DependencyError: simplejpeg is not installed.
    """
    try:
        import simplejpeg
    except ImportError as error:
        raise DependencyError(
            "This checkpoint asks for a JPEG round trip, which needs simplejpeg: "
            "pip install simplejpeg"
        ) from error
    return simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=True)


def resize_lanczos3(image: np.ndarray, size: int) -> np.ndarray:
    """Return (size, size, 3) uint8: antialiased Lanczos-3, aspect ratio ignored, rounded once.

    Sums run in float32 and in TensorFlow's order (rows, then columns, tap by tap): a value that
    falls on a rounding boundary would otherwise land one level away.

    Args:
        image: (H, W, 3) uint8.
        size: Side of the result in pixels.

    Source: tf.image.resize(method="lanczos3", antialias=True), then round, clip, cast.
    """
    height, width, _ = image.shape
    half = _weighted_rows(image.astype(np.float32), _lanczos3_taps(height, size))
    columns = np.ascontiguousarray(half.transpose(1, 0, 2))  # (width, size, 3)
    full = _weighted_rows(columns, _lanczos3_taps(width, size)).transpose(1, 0, 2)
    return np.clip(np.rint(full), 0, 255).astype(np.uint8)


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Return the central 90 % of the area as (size, size, 3) uint8, bilinear without antialiasing.

    Source: crop_and_resize in openvla @ c8f03f4.
    """
    side = np.sqrt(np.float32(CROP_AREA))
    low = (np.float32(1) - side) / np.float32(2)
    return to_levels(crop_and_resize(to_unit_range(image), (low, low), side, size))


def crop_and_resize(
    pixels: np.ndarray, corner: tuple[np.float32, np.float32], side: np.float32, size: int
) -> np.ndarray:
    """Return a part of the picture as (size, size, 3) float32, bilinear without antialiasing.

    Float32 throughout, because `to_levels` rounds down.

    Args:
        pixels: (H, W, 3) float32.
        corner: Top and left edge, as shares of height and width.
        side: Height and width of the part, as a share of the picture's.
        size: Side of the result in pixels.

    Source: tf.image.crop_and_resize.
    """
    height, width, _ = pixels.shape
    top, bottom, vertical = _bilinear_taps(height, size, corner[0], corner[0] + side)
    left, right, horizontal = _bilinear_taps(width, size, corner[1], corner[1] + side)
    before, after = np.take(pixels, left, axis=1), np.take(pixels, right, axis=1)
    rows = before + (after - before) * horizontal[None, :, None]  # (H, size, 3)
    upper = rows[top]
    return upper + (rows[bottom] - upper) * vertical[:, None, None]


def to_unit_range(image: np.ndarray) -> np.ndarray:
    """Return uint8 levels as float32 in [0, 1], as TensorFlow does."""
    return image.astype(np.float32) * np.float32(1 / 255)


def to_levels(pixels: np.ndarray) -> np.ndarray:
    """Return float32 pixels as uint8 levels, as TensorFlow does: clipped, scaled, rounded down."""
    return np.floor(np.clip(pixels, 0, 1) * np.float32(255.5)).astype(np.uint8)


def _bilinear_taps(
    length: int, size: int, low: np.float32, high: np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lower index, upper index and weight of the upper one, per output position."""
    last = np.float32(length - 1)
    step = (high - low) * last / np.float32(size - 1)
    position = low * last + np.arange(size, dtype=np.float32) * step
    floor = np.floor(position)
    ceil = np.minimum(np.ceil(position), last)  # an edge at 1 may be beyond it by a rounding
    return floor.astype(int), ceil.astype(int), position - floor


def _weighted_rows(pixels: np.ndarray, taps: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return for each output row the sum of the rows that the taps name, (size, .., 3) float32."""
    total = np.zeros((len(taps[0][0]), *pixels.shape[1:]), np.float32)
    part = np.empty_like(total)  # one for all taps: fresh memory takes longer than the sums
    for source, weight in taps:
        np.take(pixels, source, axis=0, out=part, mode="clip")  # "raise" would buffer `out`
        part *= weight[:, None, None]
        total += part
    return total


@lru_cache(maxsize=8)  # the sides of a camera's pictures do not change
def _lanczos3_taps(length: int, size: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return, tap by tap, the input index (size,) and weight (size,) float32 of every output."""
    one, half = np.float32(1), np.float32(0.5)
    spacing = one / (np.float32(size) / np.float32(length))  # input pixels per output pixel
    stretch = max(spacing, one)
    reach = np.float32(_LANCZOS_RADIUS) * stretch
    taps = min(2 * int(np.ceil(reach)) + 1, length)
    starts = np.zeros(size, int)
    weights = np.zeros((size, taps), np.float32)
    for row in range(size):
        sample = (np.float32(row) + half) * spacing
        start = max(int(np.ceil(sample - reach - half)), 0)
        stop = min(int(np.floor(sample + reach - half)), length - 1) + 1
        positions = np.arange(start, stop).astype(np.float32) + half - sample
        kernel = _lanczos3_kernel(positions * (one / stretch))
        starts[row] = start
        weights[row, : stop - start] = kernel * (one / np.cumsum(kernel, dtype=np.float32)[-1])
    return tuple((np.minimum(starts + k, length - 1), weights[:, k]) for k in range(taps))


def _lanczos3_kernel(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    radius = np.float32(_LANCZOS_RADIUS)
    safe = np.where(x <= 1e-3, np.float32(1), x)
    value = radius * np.sin(_PI * safe) * np.sin(_PI * safe / radius) / (_PI * _PI * safe * safe)
    return np.where(x > radius, np.float32(0), np.where(x <= 1e-3, np.float32(1), value))
