"""One picture of many frames, each with the action the policy answered to it.

Drawn with Pillow alone; what the arrows mean is said in drawing.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from openvla_ros.errors import ImageError
from openvla_ros.evaluation.pictures.drawing import (
    BAD,
    CARD,
    FAINT,
    GOOD,
    INK,
    LINE,
    MOVE,
    PAPER,
    draw_compass,
    draw_height_bar,
    fit,
    font,
    wrap,
)

CELL_WIDTH = 360
PICTURE_HEIGHT = 270
PANEL_HEIGHT = 150
GAP = 14
TITLE_HEIGHT = 64


@dataclass(frozen=True)
class SheetStep:
    """One frame and the answer to it.

    Attributes:
        image: (H, W, 3) uint8 RGB, as the policy's camera saw it.
        instruction: What the operator asked for.
        delta_position_m: (3,) metres per step in base axes; NaN where the unit is not known.
        delta_rotation_rad: (3,) rotation vector in base axes; NaN where not known.
        gripper: 0 closed ... 1 open.
        is_valid: Every generated id is an action token.
        verdict: "executed", or in a few words why not.
        caption: Small text, such as the sequence number and latency.
    """

    image: np.ndarray
    instruction: str
    delta_position_m: np.ndarray
    delta_rotation_rad: np.ndarray
    gripper: float
    is_valid: bool
    verdict: str
    caption: str = ""


def draw_contact_sheet(
    steps: Sequence[SheetStep], title: str, subtitle: str = "", columns: int = 4
) -> Image.Image:
    """Return the sheet as an RGB picture, one card per step in reading order.

    Raises:
        ImageError: There are no steps, or a frame is not (H, W, 3) uint8.
    """
    if not steps:
        raise ImageError("A contact sheet needs at least one frame with an answer; there is none.")
    columns = min(columns, len(steps))
    rows = math.ceil(len(steps) / columns)
    card_height = PICTURE_HEIGHT + PANEL_HEIGHT
    width = columns * (CELL_WIDTH + GAP) + GAP
    height = TITLE_HEIGHT + rows * (card_height + GAP) + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 12), fit(draw, title, 22, width - 2 * GAP), INK, font=font(22))
    draw.text((GAP, 42), fit(draw, subtitle, 13, width - 2 * GAP), FAINT, font=font(13))
    for index, step in enumerate(steps):
        row, column = divmod(index, columns)
        corner = (
            GAP + column * (CELL_WIDTH + GAP),
            TITLE_HEIGHT + GAP + row * (card_height + GAP),
        )
        sheet.paste(_draw_card(step), corner)
    return sheet


def pick_evenly(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` indices out of `count`, evenly spread, first and last included."""
    if count <= wanted:
        return list(range(count))
    return sorted({round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)})


def _draw_card(step: SheetStep) -> Image.Image:
    card = Image.new("RGB", (CELL_WIDTH, PICTURE_HEIGHT + PANEL_HEIGHT), CARD)
    card.paste(_letterboxed(step.image), (0, 0))
    draw = ImageDraw.Draw(card, "RGBA")
    lines = wrap(draw, f"“{step.instruction}”", 15, CELL_WIDTH - 16, 2)
    bar_height = 8 + 20 * len(lines)
    draw.rectangle((0, 0, CELL_WIDTH, bar_height), fill=(0, 0, 0, 165))
    for number, line in enumerate(lines):
        draw.text((8, 4 + 20 * number), line, (255, 255, 255), font=font(15))
    draw_compass(draw, step.delta_position_m, (66, PICTURE_HEIGHT + 72), 46)
    draw_height_bar(draw, step.delta_position_m[2], (142, PICTURE_HEIGHT + 26), 92)
    _draw_numbers(draw, step, 176, PICTURE_HEIGHT + 10)
    draw.rectangle((0, 0, CELL_WIDTH - 1, PICTURE_HEIGHT + PANEL_HEIGHT - 1), outline=LINE)
    return card


def _draw_numbers(draw: ImageDraw.ImageDraw, step: SheetStep, x: int, y: int) -> None:
    millimetres, degrees = step.delta_position_m * 1000, np.degrees(step.delta_rotation_rad)
    for text in (_signed("d", millimetres, "mm"), _signed("r", degrees, "°")):
        draw.text((x, y), text, INK, font=font(11))  # at 12 the widest row leaves the card
        y += 21
    draw.text((x, y), "gripper", INK, font=font(13))
    known = math.isfinite(step.gripper)
    opening = float(np.clip(step.gripper, 0, 1)) if known else 0.0
    draw.rectangle((x + 54, y + 3, x + 120, y + 14), outline=FAINT)
    if opening > 0:
        draw.rectangle((x + 55, y + 4, x + 55 + round(64 * opening), y + 13), fill=MOVE)
    word = "unknown" if not known else "open" if opening >= 0.5 else "closed"
    draw.text((x + 126, y), word, INK, font=font(12))
    y += 23
    validity = ("valid tokens", GOOD) if step.is_valid else ("INVALID TOKENS", BAD)
    draw.text((x, y), validity[0], validity[1], font=font(13))
    y += 21
    colour = GOOD if step.verdict == "executed" else BAD
    draw.text((x, y), fit(draw, step.verdict, 12, CELL_WIDTH - x - 6), colour, font=font(12))
    y += 22
    draw.text((x, y), fit(draw, step.caption, 11, CELL_WIDTH - x - 6), FAINT, font=font(11))


def _letterboxed(image: np.ndarray) -> Image.Image:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageError(f"A frame must be (H, W, 3) uint8, not {image.shape} {image.dtype}.")
    height, width, _ = image.shape
    scale = min(CELL_WIDTH / width, PICTURE_HEIGHT / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.new("RGB", (CELL_WIDTH, PICTURE_HEIGHT), (24, 26, 30))
    resized = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    picture.paste(resized, ((CELL_WIDTH - size[0]) // 2, (PICTURE_HEIGHT - size[1]) // 2))
    return picture


def _signed(letter: str, values: np.ndarray, unit: str) -> str:
    if not np.isfinite(values).all():
        return f"{letter}x {letter}y {letter}z  unknown"
    numbers = (f"{letter}{axis} {value:+.1f}" for axis, value in zip("xyz", values, strict=True))
    return f"{'  '.join(numbers)} {unit}"
