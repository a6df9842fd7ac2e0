"""One picture of what the model saw and what it answered, for ~/debug/image.

The pixels of the model are on the left, enlarged and otherwise untouched: nothing is written over
them but an arrow, and that only where a calibrated camera makes it true. The answer is on the
right, in robot base axes.
"""

from __future__ import annotations

import math
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
    draw_arrow,
    draw_compass,
    draw_height_bar,
    fit,
    font,
    wrap,
)

WIDTH, HEIGHT = 768, 512
HEADER = 64  # state and instruction
PICTURE = HEIGHT - HEADER  # 448: twice the 224 pixels of OpenVLA
PANEL = WIDTH - PICTURE
MARGIN = 14
FULL_TURN_SCALE_RAD = 0.2  # a full bar; BridgeData's 99 % quantiles are 0.08 to 0.21 rad
WAITS = (190, 120, 0)
BACKDROP = (24, 26, 30)
LEVELS = {"ok": GOOD, "warn": WAITS, "bad": BAD}
ON_PICTURE = (255, 226, 60)


@dataclass(frozen=True)
class Overlay:
    """What is shown.

    Attributes:
        view: (h, w, 3) uint8 RGB, the image as it entered the network.
        instruction: What the model was told.
        state: The node's state and reason, a few words.
        level: "ok", "warn" or "bad".
        detail: The reason in words, or "".
        delta_position_m: (3,) metres per step in base axes; NaN = not known.
        delta_rotation_rad: (3,) rotation vector in base axes; NaN = not known.
        gripper: 0 closed ... 1 open, before threshold and votes; NaN = not known.
        gripper_is_open: After them.
        verdict: "executed", or in a few words why not.
        is_executed: Colours `verdict`.
        is_valid: Every generated id is an action token.
        facts: Small lines, such as latency and age.
        arrow: Start and end of the step in the view, as fractions of width and height; None
            without a calibrated camera.
    """

    view: np.ndarray
    instruction: str
    state: str
    level: str
    detail: str
    delta_position_m: np.ndarray
    delta_rotation_rad: np.ndarray
    gripper: float
    gripper_is_open: bool
    verdict: str
    is_executed: bool
    is_valid: bool
    facts: tuple[str, ...] = ()
    arrow: tuple[tuple[float, float], tuple[float, float]] | None = None


def draw_overlay(overlay: Overlay) -> np.ndarray:
    """Return the picture, (HEIGHT, WIDTH, 3) uint8 RGB.

    Raises:
        ImageError: The view is not (h, w, 3) uint8.
    """
    canvas = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(canvas)
    _draw_header(draw, overlay)
    _draw_view(canvas, draw, overlay)
    _draw_panel(draw, overlay, PICTURE + MARGIN, HEADER)
    return np.asarray(canvas)


def _draw_header(draw: ImageDraw.ImageDraw, overlay: Overlay) -> None:
    draw.rectangle((0, 0, WIDTH, HEADER - 1), fill=CARD)
    badge = fit(draw, overlay.state, 17, 330)
    width = draw.textlength(badge, font=font(17)) + 20
    draw.rounded_rectangle((MARGIN, 8, MARGIN + width, 33), 6, fill=LEVELS[overlay.level])
    draw.text((MARGIN + 10, 20), badge, CARD, font=font(17), anchor="lm")
    x = MARGIN + width + 12
    instruction = f"“{overlay.instruction}”" if overlay.instruction else "no instruction"
    room = int(WIDTH - x - MARGIN)
    size = next((s for s in (19, 16) if draw.textlength(instruction, font=font(s)) <= room), 13)
    draw.text((x, 20), fit(draw, instruction, size, room), INK, font=font(size), anchor="lm")
    detail = fit(draw, overlay.detail, 13, WIDTH - 2 * MARGIN)
    draw.text((MARGIN, 49), detail, FAINT if overlay.level == "ok" else INK, font(13), anchor="lm")
    draw.line((0, HEADER - 1, WIDTH, HEADER - 1), fill=LINE)


def _draw_view(canvas: Image.Image, draw: ImageDraw.ImageDraw, overlay: Overlay) -> None:
    view = overlay.view
    if view.ndim != 3 or view.shape[2] != 3 or view.dtype != np.uint8:
        raise ImageError(f"A view must be (h, w, 3) uint8, not {view.shape} {view.dtype}.")
    height, width, _ = view.shape
    scale = min(PICTURE / width, PICTURE / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    left, top = (PICTURE - size[0]) // 2, HEADER + (PICTURE - size[1]) // 2
    draw.rectangle((0, HEADER, PICTURE - 1, HEIGHT), fill=BACKDROP)
    # Nearest, so that enlarged pixels stay the model's own; larger frames are made smaller.
    how = Image.Resampling.NEAREST if scale >= 1.0 else Image.Resampling.BOX
    canvas.paste(Image.fromarray(view).resize(size, how), (left, top))
    if overlay.arrow is not None:
        tail, tip = ((left + x * size[0], top + y * size[1]) for x, y in overlay.arrow)
        draw_arrow(draw, tail, tip, ON_PICTURE)


def _draw_panel(draw: ImageDraw.ImageDraw, overlay: Overlay, x: int, y: int) -> None:
    draw_compass(draw, overlay.delta_position_m, (x + 108, y + 92), 64)
    draw_height_bar(draw, overlay.delta_position_m[2], (x + 222, y + 34), 116)
    millimetres = 1000.0 * overlay.delta_position_m
    y += 176
    for axis, value in zip("xyz", millimetres, strict=True):
        _draw_number(draw, (x + 97 * "xyz".index(axis), y), f"d{axis}", value, "mm")
    y += 27
    for axis, value in zip("xyz", overlay.delta_rotation_rad, strict=True):
        _draw_turn(draw, (x, y), f"r{axis}", float(value))
        y += 21
    y += 6
    _draw_gripper(draw, overlay, x, y)
    y += 31
    colour = GOOD if overlay.is_executed else WAITS
    draw.text((x, y), fit(draw, overlay.verdict, 16, PANEL - 2 * MARGIN), colour, font=font(16))
    y += 24
    if not overlay.is_valid:
        draw.text((x, y), "INVALID TOKENS: not an action", BAD, font=font(14))
        y += 20
    for fact in overlay.facts:
        for line in wrap(draw, fact, 13, PANEL - 2 * MARGIN, 2):
            draw.text((x, y), line, INK, font=font(13))
            y += 16


def _draw_number(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], label: str, value: float, unit: str
) -> None:
    text = f"{value:+.1f} {unit}" if math.isfinite(value) else "?"
    draw.text(corner, label, FAINT, font=font(14))
    draw.text((corner[0] + 22, corner[1]), text, INK, font=font(14))


def _draw_turn(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], label: str, angle_rad: float
) -> None:
    """A bar from the middle, and the angle in degrees."""
    x, y = corner
    left, right = x + 28, x + 200
    middle = (left + right) / 2
    draw.text((x, y), label, FAINT, font=font(14))
    draw.rectangle((left, y + 4, right, y + 13), outline=LINE)
    draw.line((middle, y + 1, middle, y + 16), fill=FAINT)
    if not math.isfinite(angle_rad):
        draw.text((right + 10, y), "?", INK, font=font(14))
        return
    share = float(np.clip(angle_rad / FULL_TURN_SCALE_RAD, -1.0, 1.0))
    begin, end = sorted((middle, middle + share * (right - left) / 2))
    draw.rectangle((begin, y + 5, end, y + 12), fill=MOVE)
    draw.text((right + 10, y), f"{math.degrees(angle_rad):+.1f}°", INK, font=font(14))


def _draw_gripper(draw: ImageDraw.ImageDraw, overlay: Overlay, x: int, y: int) -> None:
    """Two fingers, as far apart as the model asks for, and what has been decided."""
    known = math.isfinite(overlay.gripper)
    opening = float(np.clip(overlay.gripper, 0.0, 1.0)) if known else 0.0
    middle = x + 58
    for side in (-1, 1):
        inner = middle + side * (1 + 22 * opening)
        begin, end = sorted((inner, inner + side * 7))
        draw.rectangle((begin, y, end, y + 20), fill=INK if known else FAINT)
    draw.line((x + 22, y - 2, x + 94, y - 2), fill=INK, width=2)
    text = f"gripper {opening:.2f}" if known else "gripper ?"
    decided = "open" if overlay.gripper_is_open else "closed"
    draw.text((x + 108, y + 2), f"{text}, {decided}", INK, font=font(14))
