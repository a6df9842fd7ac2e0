"""What the camera of a recording gave: frames that repeat, colours, sizes.

Frames are looked at as they stream: of each one, its digest and some sums stay.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import yaml

from openvla_ros.evaluation.audit.motion import longest_run
from openvla_ros.types import Finding

SECTION = "Pictures"
REFERENCE_FILE = "colour_statistics.yaml"

SAMPLED_PIXELS = 128  # per side, at most: enough for means
SATURATED = 40  # levels between the largest and smallest channel: has a colour at all
LEAST_SATURATED = 0.002  # share of the pixels: with fewer the recording is grey

FROZEN_S = 1.0  # a camera that stands still for this long while the arm moves
REPEATED_WARNING = 0.02  # share of the frames
LISTED = 5


@dataclass(frozen=True)
class PictureFacts:
    """The frames of one episode.

    Attributes:
        is_repeated: (T,) bool: pixel by pixel the frame before.
        sizes: (width, height) to the number of frames.
        channel_mean: (3,) of R, G, B over all frames, 0 ... 255.
        channel_std: (3,) over pixels and frames.
        saturated: Sampled pixels with a colour.
        warm: Those of them with more red than blue.
        pixels: Sampled pixels.
    """

    is_repeated: np.ndarray
    sizes: Counter[tuple[int, int]]
    channel_mean: np.ndarray
    channel_std: np.ndarray
    saturated: int
    warm: int
    pixels: int


@dataclass(frozen=True)
class Colours:
    """Colours of a whole recording.

    Attributes:
        channel_mean: (3,) of R, G, B, 0 ... 255.
        channel_std: (3,) mean over episodes.
        saturated_share: Of the pixels.
        warm_share: Of the saturated pixels those with more red than blue; NaN without any.
    """

    channel_mean: np.ndarray
    channel_std: np.ndarray
    saturated_share: float
    warm_share: float


@dataclass(frozen=True)
class ColourReference:
    """What frames of BridgeData look like, and from where a recording is called reversed.

    Attributes:
        channel_mean: (3,) of R, G, B.
        channel_std: (3,).
        warm_share: As in `Colours`.
        reversed_below: A warm share below this was seen with swapped channels only.
    """

    channel_mean: np.ndarray
    channel_std: np.ndarray
    warm_share: float
    reversed_below: float


@lru_cache(maxsize=1)
def colour_reference() -> ColourReference:
    """Return the statistics the package ships; the file says how they were made."""
    resource = resources.files("openvla_ros") / "resources" / REFERENCE_FILE
    content: dict[str, Any] = yaml.safe_load(resource.read_text(encoding="utf-8"))
    return ColourReference(
        channel_mean=np.array(content["channel_mean"], float),
        channel_std=np.array(content["channel_std"], float),
        warm_share=float(content["warm_share"]),
        reversed_below=float(content["reversed_below"]),
    )


def look_at(images: Iterable[np.ndarray]) -> PictureFacts:
    """Return the facts of one episode's (H, W, 3) uint8 RGB frames, one in memory at a time."""
    repeated: list[bool] = []
    sizes: Counter[tuple[int, int]] = Counter()
    total, squares = np.zeros(3), np.zeros(3)
    pixels = saturated = warm = 0
    last = b""
    for image in images:
        digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        repeated.append(digest == last)
        last = digest
        sizes[(image.shape[1], image.shape[0])] += 1
        red, green, blue = channels = _sampled(image)
        total += channels.sum(axis=1)
        squares += np.einsum("cn,cn->c", channels, channels)
        pixels += channels.shape[1]
        high = np.maximum(np.maximum(red, green), blue)
        low = np.minimum(np.minimum(red, green), blue)
        is_saturated = high - low > SATURATED
        saturated += int(is_saturated.sum())
        warm += int((is_saturated & (red > blue)).sum())
    mean = total / max(1, pixels)
    return PictureFacts(
        is_repeated=np.array(repeated, bool),
        sizes=sizes,
        channel_mean=mean,
        channel_std=np.sqrt(np.maximum(squares / max(1, pixels) - mean**2, 0)),
        saturated=saturated,
        warm=warm,
        pixels=pixels,
    )


def _sampled(image: np.ndarray) -> np.ndarray:
    """(3, N) float64 R, G, B of pixels on a regular grid."""
    strides = [max(1, -(-side // SAMPLED_PIXELS)) for side in image.shape[:2]]
    grid = image[:: strides[0], :: strides[1]]
    return np.ascontiguousarray(grid.reshape(-1, 3).T, dtype=np.float64)


def measure_colours(facts: Sequence[PictureFacts]) -> Colours | None:
    """Return the colours of all episodes together; None without a frame."""
    pixels = sum(row.pixels for row in facts)
    if not pixels:
        return None
    weights = np.array([row.pixels for row in facts]) / pixels
    saturated = sum(row.saturated for row in facts)
    return Colours(
        channel_mean=weights @ np.stack([row.channel_mean for row in facts]),
        channel_std=weights @ np.stack([row.channel_std for row in facts]),
        saturated_share=saturated / pixels,
        warm_share=sum(row.warm for row in facts) / saturated if saturated else float("nan"),
    )


def judge_colours(colours: Colours, reference: ColourReference) -> Finding:
    """Return whether the channels look swapped: a hint, since a blue room is possible.

    Wood, skin, fruit and lamps are warm, and few things on a table are blue. With red and blue
    swapped, most pixels that have a colour turn cold.
    """
    mean = ", ".join(
        f"{name} {value:.0f}" for name, value in zip("RGB", colours.channel_mean, strict=True)
    )
    if colours.saturated_share < LEAST_SATURATED:
        return Finding(SECTION, "colour order", f"n/a: the frames are grey ({mean})")
    value = f"{100 * colours.warm_share:.0f} % of the coloured pixels are warm; mean {mean}"
    usual = f"BridgeData has {100 * reference.warm_share:.0f} %"
    swapped = np.linalg.norm(colours.channel_mean[::-1] - reference.channel_mean)
    straight = np.linalg.norm(colours.channel_mean - reference.channel_mean)
    if colours.warm_share < reference.reversed_below and swapped < straight:
        reason = (
            f"{usual}; red and blue may be swapped (BGR data called rgb8). Look at a frame in the "
            "report: skin and wood must not be blue. In a blue scene this is no fault."
        )
        return Finding(SECTION, "colour order", value, reason, "warn")
    return Finding(SECTION, "colour order", value, f"{usual}: no sign of swapped channels.")


def judge_repeats(
    names: Sequence[str],
    repeated: Sequence[np.ndarray],
    moving: Sequence[np.ndarray],
    rates_hz: Sequence[float],
) -> list[Finding]:
    """Return whether the camera stood still.

    Args:
        names: Of the episodes.
        repeated: (T,) bool per episode: the frame is the one before.
        moving: (T,) bool: the arm moved between the frame before and this one.
        rates_hz: Steps per second.
    """
    frozen = {}
    for name, repeats, moves, rate_hz in zip(names, repeated, moving, rates_hz, strict=True):
        run = longest_run(repeats & moves)
        if run and run / rate_hz >= FROZEN_S:
            frozen[name] = run / rate_hz
    count = int(sum(repeats.sum() for repeats in repeated))
    harmful = int(sum((r & m).sum() for r, m in zip(repeated, moving, strict=True)))
    frames = sum(len(repeats) for repeats in repeated)
    value = f"{count} of {frames} frames repeat the one before, {harmful} while the arm moves"
    if not frozen:
        return [_repeats(value, harmful / max(1, frames))]
    worst = sorted(frozen, key=lambda name: -frozen[name])[:LISTED]
    listed = ", ".join(f"{name} {frozen[name]:.1f} s" for name in worst)
    reason = (
        "The picture stands still while the arm moves: the driver repeats its last frame, or the "
        f"cable is loose. Leave these episodes out. {listed}"
    )
    frozen_value = f"{len(frozen)} of {len(names)} episodes; {value}"
    return [Finding(SECTION, "frozen camera", frozen_value, reason, "problem")]


def _repeats(value: str, share: float) -> Finding:
    if share <= REPEATED_WARNING:
        return Finding(SECTION, "repeated frames", value)
    reason = (
        "Pixel by pixel, which no camera does by itself: it is slower than the rate of the "
        "recording, or its frames were filled up. Two steps with one picture and different actions "
        "cannot be learned; resample to the rate of the camera."
    )
    return Finding(SECTION, "repeated frames", value, reason, "warn")


def judge_sizes(facts: Sequence[PictureFacts]) -> Finding:
    """Return whether all frames have one size."""
    sizes: Counter[tuple[int, int]] = Counter()
    for row in facts:
        sizes.update(row.sizes)
    listed = ", ".join(f"{w} × {h}: {count}" for (w, h), count in sizes.most_common(LISTED))
    if len(sizes) < 2:
        return Finding(SECTION, "image size", listed)
    reason = (
        "One camera has one size. Different sizes are cut and squeezed differently before the "
        "model sees them: were several cameras recorded as one?"
    )
    return Finding(SECTION, "image size", listed, reason, "warn")
