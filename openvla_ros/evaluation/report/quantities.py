"""Numbers as people read them: three digits, a unit, and "n/a" where there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from openvla_ros.control.motion import ACTION_DIM

AXES = ("x", "y", "z", "roll", "pitch", "yaw")
NOT_AVAILABLE = "n/a"
_SPACE = "\u00a0"  # a number and its unit stay on one line
_SMALLEST = 1e-4  # below it the zeros are more than the number


@dataclass(frozen=True)
class Units:
    """The units in which a report gives motion.

    Attributes:
        translation: "mm", or "dataset units" where nobody has published the unit.
        rotation: "deg", or "dataset units".
        translation_scale: Multiplies a translation in dataset units.
        rotation_scale: Multiplies a rotation in dataset units.
    """

    translation: str
    rotation: str
    translation_scale: float = 1.0
    rotation_scale: float = 1.0

    def shown(self, actions: np.ndarray) -> np.ndarray:
        """(T, n) actions in these units, of (T, n) in dataset units; the gripper stays as it is."""
        scaled = np.array(actions, np.float64)
        if scaled.shape[1] != ACTION_DIM:
            return scaled  # of unknown meaning
        scaled[:, 0:3] *= self.translation_scale
        scaled[:, 3:6] *= self.rotation_scale
        return scaled

    def of_dimension(self, dimension: int, length: int) -> str:
        """The unit of one of `length` numbers of an action; "" for the gripper and the unknown."""
        if length != ACTION_DIM or dimension >= len(AXES):
            return ""
        return self.translation if dimension < 3 else self.rotation


def units_of(metrics: Mapping[str, Any]) -> Units:
    """Return the units that a metrics.json was written in."""
    names, spec = metrics["units"], metrics["action_spec"]
    metric, degrees = names["translation"] == "mm", names["rotation"] == "deg"
    return Units(
        translation=names["translation"],
        rotation=names["rotation"],
        translation_scale=1000.0 * spec["translation_unit_m"] if metric else 1.0,
        rotation_scale=math.degrees(spec["rotation_unit_rad"]) if degrees else 1.0,
    )


def dimension_name(dimension: int, length: int) -> str:
    """Return the name of one of `length` numbers of an action; only 7 have a known meaning."""
    return (*AXES, "gripper")[dimension] if length == ACTION_DIM else f"number {dimension}"


def quantity(value: float | None, unit: str = "", *, signed: bool = False) -> str:
    """Return a number with three significant digits (a share with fewer) and its unit, or "n/a".

    A unit of "%" multiplies by 100: `value` is a share. "deg" is written "°".
    """
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    value = 100.0 * value if unit == "%" else float(value)
    if 0.0 < abs(value) < _SMALLEST:
        text = f"{value:.1e}"
    else:
        digits = 2 - math.floor(math.log10(abs(value))) if value else 0
        if unit == "%":
            digits = min(digits, 1) if abs(value) >= 1.0 else digits - 1  # 99.7 %, 2.4 %, 0.04 %
        text = f"{value:,.{max(digits, 0)}f}"
    text = f"+{text}" if signed and value > 0.0 else text.replace("-", "−")
    if unit == "deg":
        return f"{text}°"
    return f"{text}{_SPACE}{unit}" if unit else text


def count(number: int, noun: str, plural: str = "") -> str:
    """Return "1 episode" or "3 episodes"."""
    return f"{number:,}{_SPACE}{noun if number == 1 else plural or noun + 's'}"


def moment(iso: str) -> str:
    """Return "2025-03-14 09:26 UTC" of an ISO time; what is none stays as it is."""
    try:
        time = datetime.fromisoformat(iso.replace("Z", "+00:00"))
    except ValueError:
        return iso
    return f"{time:%Y-%m-%d %H:%M}{f' {time.tzname()}' if time.tzinfo else ''}"


def joined(words: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
