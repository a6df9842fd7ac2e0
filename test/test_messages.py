"""Messages → RGB: the vectors that cv_bridge and our own converter must both satisfy."""

from __future__ import annotations

import array
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from openvla_ros.errors import ImageError, InstructionError
from openvla_ros.messages import (
    ENCODINGS,
    bgr_to_rgb,
    check_instruction,
    compressed_to_rgb,
    crop,
    image_to_rgb,
    require_plausible,
    stamp_ns,
)

TOKENIZER = Path(__file__).resolve().parents[1] / "openvla_ros/resources/tokenizer"


@dataclass
class Image:
    """The fields of sensor_msgs/Image."""

    encoding: str
    height: int
    width: int
    step: int
    data: object
    is_bigendian: int = 0
    header: object = field(default_factory=lambda: SimpleNamespace(stamp=None))


@dataclass
class Compressed:
    """The fields of sensor_msgs/CompressedImage."""

    data: object
    format: str = "jpeg"


def message(encoding: str, pixels: np.ndarray, *, padding: int = 0, big: bool = False) -> Image:
    """An Image of (H, W) or (H, W, C) pixels, rows padded with 0xAB."""
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(">u2" if big else "<u2")
    rows = [row.tobytes() + b"\xab" * padding for row in pixels]
    height, width = pixels.shape[:2]
    return Image(encoding, height, width, len(rows[0]), b"".join(rows), is_bigendian=int(big))


def colors(dtype: type, channels: int, shape: tuple[int, int] = (6, 8)) -> np.ndarray:
    top = np.iinfo(dtype).max
    rng = np.random.default_rng(7)
    return rng.integers(0, top, (*shape, channels), dtype=dtype, endpoint=True)


def to_8_bit(values: np.ndarray) -> np.ndarray:
    """Scale of cv_bridge: v * 255 / 65535, rounded."""
    return np.rint(values.astype(np.float64) * 255 / 65535).astype(np.uint8)


def plain_vectors() -> list[tuple[str, Image, np.ndarray]]:
    """Encodings whose result is a matter of order and scale, computed without OpenCV."""
    vectors = []
    for name, order in (
        ("rgb", [0, 1, 2]),
        ("bgr", [2, 1, 0]),
        ("rgba", [0, 1, 2]),
        ("bgra", [2, 1, 0]),
        ("mono", [0, 0, 0]),
    ):
        channels = {"mono": 1, "rgba": 4, "bgra": 4}.get(name, 3)
        narrow, wide = colors(np.uint8, channels), colors(np.uint16, channels)
        vectors += [
            (f"{name}8", message(f"{name}8", narrow), narrow[..., order]),
            (f"{name}8 padded", message(f"{name}8", narrow, padding=5), narrow[..., order]),
            (f"{name}16", message(f"{name}16", wide), to_8_bit(wide[..., order])),
            (f"{name}16 big", message(f"{name}16", wide, big=True), to_8_bit(wide[..., order])),
            (
                f"{name}16 big padded",
                message(f"{name}16", wide, big=True, padding=6),
                to_8_bit(wide[..., order]),
            ),
        ]
    return vectors


def bayer_mosaic(pattern: str, color: tuple[int, int, int], dtype: type) -> np.ndarray:
    """(8, 8) sensor values of one uniform colour behind a Bayer filter."""
    value = dict(zip("rgb", color, strict=True))
    tile = np.array(
        [[value[pattern[0]], value[pattern[1]]], [value[pattern[2]], value[pattern[3]]]]
    )
    return np.tile(tile, (4, 4)).astype(dtype)


PLAIN = plain_vectors()


@pytest.mark.parametrize(("image", "expected"), [v[1:] for v in PLAIN], ids=[v[0] for v in PLAIN])
def test_order_scale_padding_and_byte_order(image: Image, expected: np.ndarray) -> None:
    rgb = image_to_rgb(image)
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, expected)


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_uniform_colour_behind_a_bayer_filter_comes_back(pattern: str, bits: int) -> None:
    color = (200, 100, 50)
    dtype = np.uint8 if bits == 8 else np.uint16
    wide = tuple(c * (257 if bits == 16 else 1) for c in color)
    rgb = image_to_rgb(message(f"bayer_{pattern}{bits}", bayer_mosaic(pattern, wide, dtype)))
    np.testing.assert_array_equal(rgb, np.broadcast_to(color, (8, 8, 3)))


@pytest.mark.parametrize(
    ("encoding", "luma", "chroma"),
    [("yuv422", 1, 0), ("uyvy", 1, 0), ("yuv422_yuy2", 0, 1), ("yuyv", 0, 1)],
)
def test_yuv_finds_luma_and_chroma(encoding: str, luma: int, chroma: int) -> None:
    """Y = 81, U = 90, V = 240 is pure red in ITU-R BT.601 studio range."""
    pixels = np.empty((4, 6, 2), np.uint8)
    pixels[..., luma] = 81
    pixels[:, 0::2, chroma] = 90
    pixels[:, 1::2, chroma] = 240
    rgb = image_to_rgb(message(encoding, pixels)).astype(int)
    assert np.abs(rgb - [255, 0, 0]).max() <= 2, rgb[0, 0]


def test_every_encoding_that_cv_bridge_converts_is_known() -> None:
    listed = {
        f"{name}{bits}" for name in ("rgb", "bgr", "rgba", "bgra", "mono") for bits in (8, 16)
    }
    listed |= {f"bayer_{p}{bits}" for p in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)}
    listed |= {"yuv422", "yuv422_yuy2", "uyvy", "yuyv"}
    assert set(ENCODINGS) == listed


@pytest.mark.parametrize("wrap", [bytes, bytearray, list, lambda b: array.array("B", b)])
def test_any_container_of_bytes_is_accepted(wrap) -> None:
    pixels = colors(np.uint8, 3)
    image = message("rgb8", pixels)
    image.data = wrap(image.data)
    np.testing.assert_array_equal(image_to_rgb(image), pixels)


def test_the_result_does_not_share_memory_with_the_message() -> None:
    """A driver may reuse its buffer while the model still looks at the picture."""
    image = message("rgb8", colors(np.uint8, 3))
    image.data = bytearray(image.data)
    rgb = image_to_rgb(image)
    before = rgb.copy()
    image.data[:] = bytes(len(image.data))
    np.testing.assert_array_equal(rgb, before)
    assert rgb.flags.writeable and rgb.flags.c_contiguous


@pytest.mark.parametrize(
    "encoding", ["8UC3", "16UC1", "32FC1", "nv21", "nv24", "jpeg", "RGB8", "", "bayer_rggb12"]
)
def test_an_unknown_encoding_is_refused_by_name(encoding: str) -> None:
    """8UC3 says nothing about colours: cv_bridge refuses it too."""
    image = message("rgb8", colors(np.uint8, 3))
    image.encoding = encoding
    with pytest.raises(ImageError, match="bgr8") as caught:
        image_to_rgb(image)
    assert repr(encoding)[1:-1] in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": b"\0" * 143},  # cut short
        {"data": b"\0" * 145},
        {"step": 23},  # shorter than a row
        {"step": 25},
        {"height": 0},
        {"width": 0},
        {"height": 2**31, "width": 2**31, "step": 2**32 - 1},
        {"height": 7},
    ],
)
def test_sizes_that_contradict_each_other_are_refused(changes: dict[str, object]) -> None:
    image = message("rgb8", colors(np.uint8, 3))
    for name, value in changes.items():
        setattr(image, name, value)
    with pytest.raises(ImageError, match=r"\d+ x \d+ pixels"):
        image_to_rgb(image)


def test_an_odd_width_cannot_share_chroma() -> None:
    with pytest.raises(ImageError, match="even"):
        image_to_rgb(message("yuyv", colors(np.uint8, 2, (4, 5))))


@pytest.mark.parametrize(("number", "expected"), [(0, 0), (128, 0), (129, 1), (65535, 255)])
def test_16_bit_values_are_rounded_not_cut(number: int, expected: int) -> None:
    image = message("mono16", np.full((2, 2), number, np.uint16))
    assert (image_to_rgb(image) == expected).all()


# Compressed -----------------------------------------------------------------------------------


def encoded(extension: str, bgr: np.ndarray, *options: int) -> bytes:
    ok, data = cv2.imencode(extension, bgr, list(options))
    assert ok
    return data.tobytes()


@pytest.mark.parametrize("format_text", ["png", "rgb8; png compressed bgr8", "", "jpeg"])
def test_png_is_exact_whatever_the_format_says(format_text: str) -> None:
    rgb = colors(np.uint8, 3)
    data = encoded(".png", rgb[..., ::-1])
    np.testing.assert_array_equal(compressed_to_rgb(Compressed(data, format_text)), rgb)


def test_jpeg_keeps_the_order_of_colours() -> None:
    rgb = np.zeros((32, 32, 3), np.uint8)
    rgb[..., 0] = 220
    data = encoded(".jpg", rgb[..., ::-1], cv2.IMWRITE_JPEG_QUALITY, 95)
    decoded = compressed_to_rgb(Compressed(data, "bgr8; jpeg compressed bgr8")).astype(int)
    assert np.abs(decoded - [220, 0, 0]).max() <= 4


def test_grey_jpeg_alpha_and_16_bit_png_become_rgb() -> None:
    grey = colors(np.uint8, 1)
    decoded = compressed_to_rgb(Compressed(encoded(".png", grey), "png"))
    np.testing.assert_array_equal(decoded, np.repeat(grey, 3, axis=2))
    rgba = colors(np.uint8, 4)
    decoded = compressed_to_rgb(Compressed(encoded(".png", rgba[..., [2, 1, 0, 3]]), "png"))
    np.testing.assert_array_equal(decoded, rgba[..., :3])
    wide = colors(np.uint16, 3)
    decoded = compressed_to_rgb(Compressed(encoded(".png", wide[..., ::-1]), "png"))
    np.testing.assert_array_equal(decoded, to_8_bit(wide))


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_compressed_image_that_was_cut_is_refused(extension: str, keep: float) -> None:
    """OpenCV fills the missing part with grey and reports nothing."""
    data = encoded(extension, colors(np.uint8, 3, (64, 64)))
    with pytest.raises(ImageError):
        compressed_to_rgb(Compressed(data[: int(len(data) * keep)], "jpeg"))


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff\xd9", b"GIF89a" + bytes(100)])
def test_what_is_neither_jpeg_nor_png_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        compressed_to_rgb(Compressed(data))


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_a_header_that_asks_for_too_much_memory_is_refused(extension: str) -> None:
    data = bytearray(encoded(extension, colors(np.uint8, 3, (16, 16))))
    if extension == ".png":
        data[16:24] = (60000).to_bytes(4, "big") * 2
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = (60000).to_bytes(2, "big") * 2
    with pytest.raises(ImageError, match="60000 x 60000"):
        compressed_to_rgb(Compressed(bytes(data)))


def test_progressive_jpeg_is_read() -> None:
    rgb = np.full((40, 24, 3), 90, np.uint8)
    data = encoded(".jpg", rgb, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert compressed_to_rgb(Compressed(data)).shape == (40, 24, 3)


# The rest ----------------------------------------------------------------------------------------


def test_bgr_to_rgb_swaps_the_outer_channels() -> None:
    np.testing.assert_array_equal(bgr_to_rgb(np.array([[[1, 2, 3]]], np.uint8)), [[[3, 2, 1]]])


def test_crop_cuts_x_y_width_height() -> None:
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    np.testing.assert_array_equal(crop(image, (2, 1, 4, 3)), image[1:4, 2:6])
    np.testing.assert_array_equal(crop(image, (0, 0, 0, 0)), image)


@pytest.mark.parametrize("roi", [(5, 0, 4, 6), (0, 4, 8, 3), (8, 0, 1, 1)])
def test_crop_over_the_edge_is_refused(roi: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="8 x 6"):
        crop(np.zeros((6, 8, 3), np.uint8), roi)


def test_stamp_in_nanoseconds() -> None:
    assert stamp_ns(SimpleNamespace(sec=3, nanosec=7)) == 3_000_000_007
    assert stamp_ns(SimpleNamespace(sec=0, nanosec=0)) == 0


@pytest.mark.parametrize(
    "text", ["pick up the cup", "", 'Größe: 3/4 "x" — 你好', "A" * 1000, "x < y", "{instruction}?"]
)
def test_plain_text_is_an_instruction(text: str) -> None:
    assert check_instruction(text) == text


@pytest.mark.parametrize(
    "text", ["a\nOut: no", "a\r", "\ta", "a\0b", "a\u2028b", "a\x85b", "a\x1b[2Jb", "a\x7f"]
)
def test_an_instruction_of_more_than_one_line_or_with_control_characters_is_refused(
    text: str,
) -> None:
    with pytest.raises(InstructionError, match="cannot be seen"):
        check_instruction(text)


@pytest.mark.parametrize(
    "code",
    "00A0 00AD 200B 200D 202E 2060 2066 2800 3000 3164 D800 E000 FE0F FEFF FFFF E0041".split(),
)
def test_an_instruction_with_characters_that_nobody_sees_is_refused(code: str) -> None:
    """Zero width, direction of writing, tags, fillers, halves of pairs, foreign spaces."""
    with pytest.raises(InstructionError, match="position 1"):
        check_instruction(f"a{chr(int(code, 16))}b")


@pytest.mark.parametrize("mark", ["</s>", "<s>", "<unk>", "<PAD>", "<|endoftext|>", "<<SYS>>"])
def test_an_instruction_with_marks_of_a_tokenizer_is_refused(mark: str) -> None:
    """Llama's tokenizer once turned "</s>" in an instruction into its end of text."""
    with pytest.raises(InstructionError, match="angle brackets"):
        check_instruction(f"pick up {mark} the cup")


def test_the_packaged_tokenizer_adds_no_mark_of_its_own_for_what_is_allowed() -> None:
    processing = pytest.importorskip("openvla_ros.model.processing", reason="needs transformers")
    tokenizer = processing.load_tokenizer(TOKENIZER)
    marks = set(tokenizer.all_special_ids)
    assert marks & set(tokenizer("a </s> b", add_special_tokens=False).input_ids)
    for text in (">", "s > < s", "<", "{}", "[INST]", "<0x0A", "x" * 1000):
        ids = tokenizer(check_instruction(text), add_special_tokens=False).input_ids
        assert not marks & set(ids), text


@pytest.mark.parametrize("text", ["A" * 1001, "é" * 501, "😀" * 251, "A" * 10_000_000])
def test_an_instruction_over_the_limit_is_refused_and_not_quoted(text: str) -> None:
    """A rare character costs the tokenizer four tokens: 1000 of them exceed what it can hold."""
    with pytest.raises(InstructionError, match="at most 1000") as caught:
        check_instruction(text)
    assert len(str(caught.value)) < 200


def test_the_longest_instruction_fits_the_language_model() -> None:
    processing = pytest.importorskip("openvla_ros.model.processing", reason="needs transformers")
    tokenizer = processing.load_tokenizer(TOKENIZER)
    for character in ("x", "é", "😀", "\U00013000"):
        text = character * (1000 // len(character.encode()))
        count = len(tokenizer(check_instruction(text)).input_ids)
        assert count + 256 + 100 < tokenizer.model_max_length, character  # image, and the prompt


@pytest.mark.parametrize("text", ["", " ", "   ", "\n", "\t ", "\u200b", "\ufeff \u00a0"])
def test_a_blank_instruction_is_no_task(text: str) -> None:
    """Blanks once reached the policy, which refuses them: the node went to FAULT."""
    assert check_instruction(text) == ""


def test_an_encoding_that_is_no_name_is_quoted_safely_and_short() -> None:
    """The text goes to the log and to ~/status; anyone on the network may have written it."""
    message = SimpleNamespace(encoding="\x1b[2J" + "x" * 10_000_000)
    with pytest.raises(ImageError) as caught:
        require_plausible(message)
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 1000
    with pytest.raises(ImageError) as caught:
        compressed_to_rgb(Compressed(b"hello", "\x1b[2J" + "x" * 10_000_000))
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 1000
