"""Which camera of a recording is meant, and its stored pictures as pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace

import numpy as np

from openvla_ros.errors import ConfigurationError, ImageError
from openvla_ros.messages import MAX_PIXELS, compressed_to_rgb
from openvla_ros.model.image_options import decode_jpeg
from openvla_ros.types import PRIMARY

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


def choose_camera(keys: Sequence[str], wanted: str, where: str) -> str:
    """Return the key of the camera that is meant.

    Args:
        keys: Every camera, as the recording names it: "observation.images.primary".
        wanted: A key, or its last part with or without "image_" in front; "" = the only camera, or
            the one that is called "primary".
        where: The recording, for the error.

    Raises:
        ConfigurationError: None or several fit; the text lists what there is.
    """
    if wanted in keys:
        return wanted
    if not wanted and len(keys) == 1:
        return keys[0]
    name = wanted or PRIMARY
    fitting = [key for key in keys if name in _short_names(key)]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(sorted(keys)) or "none"
    asked = f"the camera {wanted!r} is not one of them" if wanted else "none is called 'primary'"
    if len(fitting) > 1:
        asked = f"{name!r} fits several"
    raise ConfigurationError(f"{where}: cameras: {listed}; {asked}. Name one with `camera`.")


def _short_names(key: str) -> tuple[str, str]:
    last = key.replace("/", ".").rpartition(".")[2]
    return last, last.removeprefix("image_")


def decode_picture(data: bytes | memoryview, *, as_tensorflow: bool = False) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB of a JPEG or PNG.

    Args:
        data: The file's bytes.
        as_tensorflow: JPEG with the fast transform of tf.io.decode_jpeg, which policies trained
            from RLDS saw; otherwise as the node decodes a CompressedImage. PNG has one meaning.

    Raises:
        ImageError: Neither, damaged, cut short, or too large.
    """
    data = bytes(data)
    if as_tensorflow and data.startswith(JPEG):
        return _as_tensorflow(data)
    return compressed_to_rgb(SimpleNamespace(data=data, format="recorded"))


def _as_tensorflow(data: bytes) -> np.ndarray:
    import simplejpeg

    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if not 1 <= height * width <= MAX_PIXELS:
            raise ImageError(
                f"a JPEG says that it has {width} x {height} pixels; 1 to {MAX_PIXELS} are allowed."
            )
        return decode_jpeg(data)
    except ValueError as error:
        raise ImageError(f"a JPEG of {len(data)} bytes is damaged ({error}).") from error


def of_one_size(
    images: Iterable[np.ndarray], size: tuple[int, int] | None, where: str
) -> Iterator[np.ndarray]:
    """Yield the images when all have the size of the first one, or the given height and width.

    Raises:
        ConfigurationError: One has another size; the text names its step.
        ImageError: A picture cannot be decoded; the text names its step too.
    """
    step = 0
    source = iter(images)
    while True:
        try:
            image = next(source, None)
        except ImageError as error:
            raise ImageError(f"{where}, step {step}: {error}") from error
        if image is None:
            return
        height, width = image.shape[:2]
        size = size or (height, width)
        if (height, width) != size:
            raise ConfigurationError(
                f"{where}, step {step}: an image of {width} x {height} pixels where "
                f"{size[1]} x {size[0]} are recorded. One episode has one size; repair the "
                "recording."
            )
        yield image
        step += 1
