"""Image-like and stamp-like messages ↔ arrays, by duck typing: no ROS import.

Anything with the fields of sensor_msgs/Image or CompressedImage works: a message from rclpy, one
from a bag reader, a test double. The bag reader and the node share this file, so that replay sees
the same pixels as the robot did.

The results equal `cv_bridge.imgmsg_to_cv2(msg, "rgb8")`, except that a message which contradicts
itself is refused instead of being cut.
Source: ros-perception/vision_opencv @ 8b42d66, cv_bridge/src/cv_bridge.cpp.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import cv2
import numpy as np

from openvla_ros.errors import ImageError, InstructionError

MAX_PIXELS = (
    64_000_000  # 8000 x 8000: a header that asks for more is damaged, or an attack on memory
)
# Bytes of UTF-8, since a rare character costs a token per byte, and Llama 2 takes 2048 tokens
# with the 256 of the image among them. OpenVLA's training instructions stay below 200.
MAX_INSTRUCTION_BYTES = 1000
_QUOTED_CHARACTERS = 60  # of a text from outside, in an error: logs and ~/status stay readable

# encoding → channels in memory, OpenCV conversion to RGB (None: the channels are R, G, B already).
# ROS names a Bayer pattern by its first row, OpenCV by the inner pixels of its second: BG is RGGB.
_COLOR_CODES: dict[str, tuple[int, int | None]] = {
    "rgb": (3, None),
    "bgr": (3, cv2.COLOR_BGR2RGB),
    "rgba": (4, cv2.COLOR_RGBA2RGB),
    "bgra": (4, cv2.COLOR_BGRA2RGB),
    "mono": (1, cv2.COLOR_GRAY2RGB),
    "bayer_rggb": (1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr": (1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg": (1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg": (1, cv2.COLOR_BayerGB2RGB),
}
_ENCODINGS: dict[str, tuple[int, int, int | None]] = {  # name → bits, channels, conversion
    f"{name}{bits}": (bits, channels, code)
    for name, (channels, code) in _COLOR_CODES.items()
    for bits in (8, 16)
} | {
    "yuv422": (8, 2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (8, 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (8, 2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (8, 2, cv2.COLOR_YUV2RGB_YUY2),
}
ENCODINGS = tuple(_ENCODINGS)

# Control, format (zero width, direction of writing), half of a pair, private use, unassigned, and
# everything that separates.
_UNSEEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
# Letters and marks that Unicode lists as Default_Ignorable: fillers and variation selectors; and
# the blank of Braille, which is listed as a symbol.
_UNSEEN_LETTERS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
# Llama's tokenizer turns </s> inside a text into its end-of-text token; others have <|...|>.
_TOKENIZER_MARK = re.compile(r"<[^<>]*>")


def image_to_rgb(message: Any) -> np.ndarray:
    """Return the pixels of an Image message as (H, W, 3) uint8 RGB, in memory of their own.

    16-bit images are scaled by 255/65535 and rounded, after the colours are converted; alpha is
    dropped. Padding at the end of rows is skipped.

    Raises:
        ImageError: The encoding is not a colour format that cv_bridge converts, or the sizes in the
            message contradict each other.
    """
    require_plausible(message)
    bits, channels, code = _ENCODINGS[message.encoding]
    pixels = _pixels(message, bits, channels)
    rgb = pixels.copy() if code is None else cv2.cvtColor(pixels, code)
    return _to_8_bit(rgb)


def require_plausible(message: Any) -> None:
    """Return when an Image message has a colour encoding, and sizes that fit each other.

    Raises:
        ImageError: It has not; the text names the encoding or the sizes, and what is allowed.
    """
    if message.encoding not in _ENCODINGS:
        raise ImageError(
            f"image encoding {_quoted(message.encoding)} cannot be turned into colours; "
            f"use one of: {', '.join(ENCODINGS)}."
        )
    bits, channels, _ = _ENCODINGS[message.encoding]
    height, width, step = int(message.height), int(message.width), int(message.step)
    row, size = width * channels * bits // 8, len(message.data)
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ImageError(f"an image of {width} x {height} pixels; 1 to {MAX_PIXELS} are allowed.")
    if step < row or size != step * height:
        raise ImageError(
            f"a '{message.encoding}' image of {width} x {height} pixels needs rows of at least "
            f"{row} bytes, and {height} rows of `step` bytes; its step is {step} and it holds "
            f"{size} bytes. It was cut short, or its header is wrong."
        )
    if channels == 2 and width % 2:
        raise ImageError(
            f"a '{message.encoding}' image shares colours between two pixels of a row, so its "
            f"width must be even; it is {width}."
        )


def compressed_to_rgb(message: Any) -> np.ndarray:
    """Return the pixels of a CompressedImage message as (H, W, 3) uint8 RGB.

    JPEG and PNG are recognised by their content; the `format` field is only quoted in errors,
    because drivers and image_transport write it in many ways. Depth images are refused.

    Raises:
        ImageError: Not JPEG or PNG, damaged, cut short, or too large.
    """
    data = np.frombuffer(message.data, dtype=np.uint8)
    said = _quoted(message.format)
    _require_whole(data.tobytes(), said)
    # UNCHANGED also leaves an EXIF orientation alone, as cv_bridge does.
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageError(f"a compressed image ({said}, {data.size} bytes) is damaged.")
    return _to_8_bit(_decoded_to_rgb(pixels))


def bgr_to_rgb(image: np.ndarray) -> np.ndarray:
    """Return an (H, W, 3) BGR image, as OpenCV keeps it, with its channels as R, G, B."""
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def crop(image: np.ndarray, roi: tuple[int, ...]) -> np.ndarray:
    """Return the part x, y, width, height of an (H, W, 3) image; width 0 = the whole image.

    Raises:
        ImageError: The part reaches over the edge.
    """
    x, y, width, height = roi
    if width == 0:
        return image
    if x + width > image.shape[1] or y + height > image.shape[0]:
        raise ImageError(
            f"image_roi {list(roi)} (x, y, width, height) reaches over the edge of an image of "
            f"{image.shape[1]} x {image.shape[0]} pixels."
        )
    return np.ascontiguousarray(image[y : y + height, x : x + width])


def stamp_ns(stamp: Any) -> int:
    """Return a builtin_interfaces/Time in nanoseconds; 0 means "not set"."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def check_instruction(text: str) -> str:
    """Return an instruction unchanged when a prompt can hold it; "" when it is blank: no task.

    Raises:
        InstructionError: It is too long, or holds something that would give the prompt another
            structure than the one it shows: a line break, an invisible character, a space that is
            not the plain one, a mark of the tokenizer such as </s>.
    """
    if len(text) > MAX_INSTRUCTION_BYTES:  # first: everything below may quote the text
        raise InstructionError(
            f"an instruction of {len(text)} characters; at most {MAX_INSTRUCTION_BYTES} bytes "
            "of UTF-8 are allowed."
        )
    if not any(_is_visible(character) for character in text):
        return ""  # a lone line break is a wish to stop, not a damaged task
    for position, character in enumerate(text):
        if character != " " and not _is_visible(character):
            raise InstructionError(
                f"instruction {_quoted(text)} holds a character that cannot be seen or is no plain "
                f"space ({character!a}) at position {position}; send one line of plain text."
            )
    mark = _TOKENIZER_MARK.search(text)
    if mark:
        raise InstructionError(
            f"instruction {_quoted(text)} holds {_quoted(mark.group())}, which a tokenizer may "
            "read as a mark of its own (end of text, for example); leave out the angle brackets."
        )
    size = len(text.encode())
    if size > MAX_INSTRUCTION_BYTES:
        raise InstructionError(
            f"an instruction of {size} bytes of UTF-8; at most {MAX_INSTRUCTION_BYTES} are allowed."
        )
    return text


def _is_visible(character: str) -> bool:
    if unicodedata.category(character) in _UNSEEN_CATEGORIES:
        return False
    return _UNSEEN_LETTERS.match(character) is None


def _quoted(text: str) -> str:
    """The text as Python writes it, so that no control character reaches a terminal; cut."""
    cut = text[:_QUOTED_CHARACTERS]
    return repr(cut) if cut == text else f"{cut!r}…"


def _pixels(message: Any, bits: int, channels: int) -> np.ndarray:
    """(H, W) or (H, W, C) of uint8 or native uint16, possibly a view of the message."""
    height, width, step = int(message.height), int(message.width), int(message.step)
    data = bytes(message.data) if isinstance(message.data, list) else message.data
    rows = np.frombuffer(data, dtype=np.uint8).reshape(height, step)
    flat = np.ascontiguousarray(rows[:, : width * channels * bits // 8])
    if bits == 16:
        order = ">u2" if message.is_bigendian else "<u2"
        flat = flat.view(order).astype(np.uint16)
    return flat.reshape(height, width) if channels == 1 else flat.reshape(height, width, channels)


def _to_8_bit(rgb: np.ndarray) -> np.ndarray:
    if rgb.dtype == np.uint16:
        # v * 255 / 65535 is v / 257, and no integer is half-way between two multiples of 257.
        return ((rgb.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return rgb


def _require_whole(data: bytes, said: str) -> None:
    """Refuse what is neither JPEG nor PNG, is too large, or lacks its end.

    OpenCV would allocate what the header asks for, and fill a missing end with grey.
    """
    if data.startswith(b"\xff\xd8\xff"):
        complete = b"\xff\xd9" in data[-1024:]  # some cameras pad the end
        width, height = _jpeg_size(data)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        complete = b"IEND" in data[-1024:]
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    else:
        raise ImageError(
            f"a compressed image ({said}, {len(data)} bytes) is neither JPEG nor PNG; "
            "depth images and other formats cannot be used."
        )
    if not complete:
        raise ImageError(
            f"a compressed image ({said}, {len(data)} bytes) was cut short: its end is missing."
        )
    if not 1 <= width * height <= MAX_PIXELS:
        raise ImageError(
            f"a compressed image ({said}) says that it has {width} x {height} pixels; "
            f"1 to {MAX_PIXELS} are allowed."
        )


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height from the first frame header; (0, 0) when there is none."""
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        # SOF0 ... SOF15 without the tables DHT (C4), JPG (C8) and DAC (CC) among them
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 0, 0


def _decoded_to_rgb(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"a compressed image holds {pixels.dtype} numbers, not colours.")
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    if pixels.shape[2] == 4:
        return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB)
    return bgr_to_rgb(pixels)
