"""Which camera is meant, and stored pictures as pixels."""

from __future__ import annotations

import numpy as np
import pytest
import recording_formats as formats

from openvla_ros.data.cameras import choose_camera, decode_picture, of_one_size
from openvla_ros.errors import ConfigurationError, ImageError
from openvla_ros.model.image_options import decode_jpeg

IMAGE = formats.recording(1).images[0]


@pytest.mark.parametrize(
    ("keys", "wanted", "chosen"),
    [
        (["only"], "", "only"),
        (["a.b.primary", "a.b.wrist"], "", "a.b.primary"),
        (["s/o/image_primary", "s/o/image_wrist"], "", "s/o/image_primary"),
        (["image_0", "image_1"], "1", "image_1"),
        (["image_0", "image_1"], "image_1", "image_1"),
        (["a.b.primary", "a.b.wrist"], "a.b.wrist", "a.b.wrist"),
        (["top", "robot.top"], "top", "top"),
    ],
)
def test_a_camera_is_found_by_its_name(keys: list[str], wanted: str, chosen: str) -> None:
    assert choose_camera(keys, wanted, "here") == chosen


@pytest.mark.parametrize(
    ("keys", "wanted", "why"),
    [
        ([], "", "cameras: none; none is called 'primary'"),
        (["b", "a"], "", "cameras: a, b; none is called 'primary'"),
        (["only"], "other", "cameras: only; the camera 'other' is not one of them"),
        (["left.top", "right.top"], "top", "'top' fits several"),
    ],
)
def test_what_does_not_fit_lists_what_there_is(keys: list[str], wanted: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"here: .*{why}"):
        choose_camera(keys, wanted, "here")


def test_png_is_lossless_either_way_and_jpeg_as_its_decoder_has_it() -> None:
    png, jpeg = formats.encoded(IMAGE, "PNG"), formats.encoded(IMAGE, "JPEG")
    for as_tensorflow in (False, True):
        assert np.array_equal(decode_picture(png, as_tensorflow=as_tensorflow), IMAGE)
    assert np.array_equal(decode_picture(memoryview(jpeg), as_tensorflow=True), decode_jpeg(jpeg))
    difference = np.abs(decode_picture(jpeg).astype(int) - IMAGE).max()
    assert difference < 24, f"{difference} grey levels"


@pytest.mark.parametrize("as_tensorflow", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_that_is_cut_short_is_refused(kind: str, as_tensorflow: bool) -> None:
    data = formats.encoded(IMAGE, kind)
    for size in (0, 1, 4, 20, len(data) // 2):
        with pytest.raises(ImageError):
            decode_picture(data[:size], as_tensorflow=as_tensorflow)


def test_a_header_that_asks_for_gigabytes_is_refused() -> None:
    jpeg = bytearray(formats.encoded(IMAGE, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\x30\x00\x30\x00"
    for as_tensorflow in (False, True):
        with pytest.raises(ImageError, match="12288 x 12288"):
            decode_picture(bytes(jpeg), as_tensorflow=as_tensorflow)


def test_images_pass_one_at_a_time_while_their_size_stays() -> None:
    taken = []

    def images():
        for step, height in enumerate((4, 4, 5)):
            taken.append(step)
            yield np.zeros((height, 6, 3), np.uint8)

    passing = of_one_size(images(), None, "here")
    next(passing)
    assert taken == [0], "only what was asked for is read"
    next(passing)
    with pytest.raises(ConfigurationError, match="here, step 2: an image of 6 x 5 pixels"):
        next(passing)
