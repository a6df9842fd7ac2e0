"""Whether recorded actions have the size that a statistics key expects.

A checkpoint maps -1 and +1 to the key's 1 % and 99 % quantiles: data that was recorded in other
units lies far outside, or fills a few bins in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from openvla_ros.model.action_stats import ActionStats
from openvla_ros.types import Finding

SECTION = "Scale"
AXES = ("Δx", "Δy", "Δz", "Δroll", "Δpitch", "Δyaw", "gripper")
LEAST_STEPS = 30  # quantiles of fewer steps say nothing about 1 % and 99 %

#: What factors between two recordings usually are. Translation and rotation may differ in kind.
_PLAIN_FACTORS = {10.0: "", 5.0: "", 1.0: ""}
FACTORS = {1000.0: "mm instead of m", 100.0: "cm instead of m", **_PLAIN_FACTORS}
ROTATION_FACTORS = {float(np.degrees(1)): "degrees instead of radians", **_PLAIN_FACTORS}

#: Operators move faster or slower by a factor of two; three is another unit, or another scale.
WARNING_FACTOR, PROBLEM_FACTOR = 2.0, 3.0
SMALL_WARNING, SMALL_PROBLEM = 4.0, 8.0  # five episodes of a careful operator have been 3.2
OUTSIDE_EXPECTED = 0.02  # by the meaning of q01 and q99
OUTSIDE_WARNING, OUTSIDE_PROBLEM = 0.2, 0.4  # five episodes of one task have been 16 %
STILL_AXIS = 0.02  # of the largest ratio: an axis that the task does not use
LARGEST_MISFIT = 1000.0  # per axis: beyond, one axis would hide the others
BETTER_KEY = 2.0  # times as far off as the best key: no other robot, another scale


@dataclass(frozen=True)
class AxisScale:
    """One number of the action against the key.

    Attributes:
        axis: Its name.
        outside_share: Of the steps below q01 or above q99 of the key.
        spread_ratio: The recording's q99 - q01, divided by the key's.
    """

    axis: str
    outside_share: float
    spread_ratio: float


@dataclass(frozen=True)
class Scale:
    """All numbers that the key scales, and how other keys would fit.

    Attributes:
        unnorm_key: The key.
        axes: One per number that the key's mask includes.
        translation_factor: Typical ratio of Δx Δy Δz; None for another layout, or without motion.
        rotation_factor: The same of Δroll Δpitch Δyaw.
        misfit_by_key: Key to how far its spreads are off, as a factor >= 1 (typical axis).
    """

    unnorm_key: str
    axes: tuple[AxisScale, ...]
    translation_factor: float | None
    rotation_factor: float | None
    misfit_by_key: Mapping[str, float]


def measure_scale(
    actions: np.ndarray, norm_stats: Mapping[str, ActionStats], unnorm_key: str
) -> Scale:
    """Return how (N, n) finite actions compare with the statistics of a checkpoint."""
    stats = norm_stats[unnorm_key]
    names = AXES if actions.shape[1] == len(AXES) else [f"{i}" for i in range(actions.shape[1])]
    spread = _spread(actions)
    ratios = spread / np.maximum(stats.q99 - stats.q01, 1e-9)
    outside = ((actions < stats.q01) | (actions > stats.q99)).mean(0)
    is_eef = actions.shape[1] == len(AXES)
    return Scale(
        unnorm_key=unnorm_key,
        axes=tuple(
            AxisScale(names[i], float(outside[i]), float(ratios[i]))
            for i in np.flatnonzero(stats.mask)
        ),
        translation_factor=_typical(ratios[:3]) if is_eef else None,
        rotation_factor=_typical(ratios[3:6]) if is_eef else None,
        misfit_by_key={
            key: _misfit(spread, other)
            for key, other in norm_stats.items()
            if other.action_dim == actions.shape[1]
        },
    )


def nearest_factor(value: float, candidates: Mapping[float, str]) -> tuple[float, str]:
    """Return the candidate, or its reciprocal, that is closest to `value` by ratio, and its name.

    Args:
        value: A positive factor.
        candidates: Factor to what it usually means. A reciprocal swaps "a instead of b".
    """
    signed = [(factor, name) for factor, name in candidates.items()]
    signed += [(1 / factor, _reversed(name)) for factor, name in candidates.items()]
    return min(signed, key=lambda entry: abs(math.log(max(value, 1e-9) / entry[0])))


def factor_text(value: float, candidates: Mapping[float, str]) -> str:
    """Return a factor in words: "×5.1 (about 5)", "×0.001 (about 1/1000: m instead of mm)"."""
    factor, meaning = nearest_factor(value, candidates)
    number = _number(factor) if factor >= 1 else f"1/{_number(1 / factor)}"
    return f"×{_number(value)} (about {number}{': ' + meaning if meaning else ''})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def judge_scale(scale: Scale, steps: int) -> list[Finding]:
    """Return what is to be said about the scale of `steps` actions."""
    if steps < LEAST_STEPS:
        value = f"n/a: {steps} steps with an action; at least {LEAST_STEPS} are needed"
        return [Finding(SECTION, "action scale", value)]
    return [*_factors(scale), _outside(scale), *_key(scale)]


def _factors(scale: Scale) -> list[Finding]:
    parts = [
        ("translation scale", scale.translation_factor, FACTORS),
        ("rotation scale", scale.rotation_factor, ROTATION_FACTORS),
    ]
    findings = []
    for item, factor, candidates in parts:
        if factor is None:
            continue
        level = _level(factor)
        value = f"{factor_text(factor, candidates)} of {scale.unnorm_key}"
        reason = (
            "The key's actions have another size. Record, or convert to, the key's unit per step; "
            "choose the key of this robot and rate; or train with statistics of your own."
        )
        findings.append(Finding(SECTION, item, value, reason if level != "ok" else "", level))
    return findings


def _level(factor: float) -> str:
    if factor >= PROBLEM_FACTOR or factor <= 1 / SMALL_PROBLEM:
        return "problem"
    return "warn" if factor >= WARNING_FACTOR or factor <= 1 / SMALL_WARNING else "ok"


def _outside(scale: Scale) -> Finding:
    worst = max((axis.outside_share for axis in scale.axes), default=0.0)
    listed = ", ".join(f"{axis.axis} {100 * axis.outside_share:.0f} %" for axis in scale.axes)
    level = "problem" if worst > OUTSIDE_PROBLEM else "warn" if worst > OUTSIDE_WARNING else "ok"
    reason = (
        f"{100 * OUTSIDE_EXPECTED:.0f} % are expected. What lies outside is cut to the key's "
        "quantiles in training, and can never be predicted."
    )
    return Finding(SECTION, "outside q01–q99", listed, reason if level != "ok" else "", level)


def _key(scale: Scale) -> list[Finding]:
    """Whether another key of the checkpoint fits far better; one key alone has no rival."""
    if len(scale.misfit_by_key) < 2:
        return []
    best = min(scale.misfit_by_key, key=lambda key: scale.misfit_by_key[key])
    own, other = scale.misfit_by_key[scale.unnorm_key], scale.misfit_by_key[best]
    if best == scale.unnorm_key or own < BETTER_KEY * other:
        value = f"{scale.unnorm_key}: typical axis off by ×{own:.2g}"
        return [Finding(SECTION, "statistics key", value)]
    value = f"{scale.unnorm_key} is off by ×{own:.2g}, {best} by ×{other:.2g}"
    reason = (
        f"The sizes of the steps look like {best}. Size is not meaning: choose by robot, frame and "
        "rate (openvla-ros keys), and then by size."
    )
    return [Finding(SECTION, "statistics key", value, reason, "warn")]


def _spread(actions: np.ndarray) -> np.ndarray:
    return np.quantile(actions, 0.99, axis=0) - np.quantile(actions, 0.01, axis=0)


def _typical(ratios: np.ndarray) -> float | None:
    """The median of the axes that move at all; None when none does."""
    moving = ratios[ratios > STILL_AXIS * ratios.max()]
    return float(np.median(moving)) if len(moving) else None


def _misfit(spread: np.ndarray, stats: ActionStats) -> float:
    ratios = (spread / np.maximum(stats.q99 - stats.q01, 1e-9))[stats.mask]
    if not len(ratios):
        return 1.0
    limited = np.clip(ratios, 1 / LARGEST_MISFIT, LARGEST_MISFIT)
    return float(np.exp(np.mean(np.abs(np.log(limited)))))


def _reversed(name: str) -> str:
    return " instead of ".join(reversed(name.split(" instead of ")))
