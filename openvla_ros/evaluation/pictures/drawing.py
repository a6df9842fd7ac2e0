"""Pieces of pictures: colours, text that fits, and a step of the arm as arrows. Pillow alone.

Arrows are in robot base axes seen from above (x forward is up, y left is left): without a camera
calibration nothing can be said about directions in the image itself.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import ImageDraw, ImageFont

# A full-length arrow. BridgeData's 99 % quantiles are 28 to 42 mm per axis and step.
FULL_SCALE_M = 0.04

PAPER = (247, 247, 244)
CARD = (255, 255, 255)
INK = (32, 36, 44)
FAINT = (140, 146, 156)
LINE = (216, 218, 222)
MOVE = (30, 110, 200)
VERTICAL = (218, 120, 20)
GOOD = (24, 128, 72)
BAD = (196, 40, 40)


def draw_compass(
    draw: ImageDraw.ImageDraw, delta: np.ndarray, centre: tuple[int, int], radius: int
) -> None:
    """Draw a step seen from above, in base axes: x forward is up, y left is left.

    Args:
        draw: The picture.
        delta: (3,) metres per step; NaN = not known.
        centre: Of the ring, pixels.
        radius: Of the ring, pixels; FULL_SCALE_M long.
    """
    x0, y0 = centre
    draw.ellipse((x0 - radius, y0 - radius, x0 + radius, y0 + radius), outline=LINE, width=2)
    draw.line((x0, y0 - radius, x0, y0 + radius), fill=LINE)
    draw.line((x0 - radius, y0, x0 + radius, y0), fill=LINE)
    draw.text((x0, y0 - radius - 9), "+x forward", FAINT, font=font(11), anchor="mm")
    draw.text((x0 - radius - 3, y0 - 8), "+y", FAINT, font=font(11), anchor="rm")
    scale = f"dx dy, ring {1000 * FULL_SCALE_M:.0f} mm"
    draw.text((x0, y0 + radius + 12), scale, FAINT, font=font(11), anchor="mm")
    if not np.isfinite(delta[:2]).all():
        draw.text((x0, y0), "unknown", BAD, font=font(12), anchor="mm")
        return
    # Base x is up in the drawing, base y is left.
    tip = np.array([-delta[1], -delta[0]]) / FULL_SCALE_M * radius
    length = float(np.linalg.norm(tip))
    tip *= min(1.0, 1.15 * radius / max(length, 1e-9))
    draw_arrow(draw, (x0, y0), (x0 + tip[0], y0 + tip[1]), MOVE)


def draw_arrow(
    draw: ImageDraw.ImageDraw,
    tail: tuple[float, float],
    tip: tuple[float, float],
    colour: tuple[int, int, int],
) -> None:
    """Draw an arrow, or a dot where it would be too short to show a direction."""
    direction = np.subtract(tip, tail)
    length = float(np.linalg.norm(direction))
    if length < 2.0:
        draw.ellipse((tail[0] - 3, tail[1] - 3, tail[0] + 3, tail[1] + 3), fill=colour)
        return
    along = direction / length
    across = np.array([-along[1], along[0]])
    head = min(11.0, length)
    neck = np.asarray(tip) - head * along
    draw.line((*tail, *neck), fill=colour, width=4)
    corners = [np.asarray(tip), neck + 0.55 * head * across, neck - 0.55 * head * across]
    draw.polygon([tuple(map(float, corner)) for corner in corners], fill=colour)


def draw_height_bar(
    draw: ImageDraw.ImageDraw, delta_z: float, corner: tuple[int, int], height: int
) -> None:
    """Draw the vertical part of a step, metres, as a bar from the middle of a box."""
    x, y = corner
    middle = y + height / 2
    draw.rectangle((x, y, x + 14, y + height), outline=LINE, width=2)
    draw.line((x - 4, middle, x + 18, middle), fill=FAINT)
    draw.text((x + 7, y - 9), "+z up", FAINT, font=font(11), anchor="mm")
    draw.text((x + 7, y + height + 8), "dz", FAINT, font=font(11), anchor="mm")
    if math.isfinite(delta_z):
        reach = float(np.clip(delta_z / FULL_SCALE_M, -1, 1)) * (height / 2 - 2)
        top, bottom = sorted((middle - reach, middle))
        draw.rectangle((x + 3, top, x + 11, bottom), fill=VERTICAL)


def wrap(draw: ImageDraw.ImageDraw, text: str, size: int, width: int, max_lines: int) -> list[str]:
    """Return a text in lines of at most `width` pixels; the last one is cut with an ellipsis."""
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font(size)) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], " ".join(lines[max_lines - 1 :])]
    return [fit(draw, line, size, width) for line in lines]


def fit(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> str:
    """Return a text cut to `width` pixels, with an ellipsis."""
    if draw.textlength(text, font=font(size)) <= width:
        return text
    while text and draw.textlength(text + "…", font=font(size)) > width:
        text = text[:-1]
    return text + "…"


@functools.cache
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return the font of a size in pixels; made once, because that takes a millisecond."""
    return ImageFont.load_default(size)
