"""Whether predicted motion has the size of recorded motion, and whether other statistics give it.

A wrong statistics key and a wrong scale look alike. One explanation is given, the one after which
size and middle of every axis fit the recordings best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from openvla_ros.evaluation.diagnosis.evidence import (
    HIGH,
    LEAST_CORRELATION,
    LOW,
    MOTION,
    ROTATION,
    SECTION,
    TRANSLATION,
    Fit,
    Steps,
    correlation_of,
    error_of,
    follows,
    loose,
    not_judged,
)
from openvla_ros.model.action_stats import ActionStats, unnormalize
from openvla_ros.types import Finding

#: A policy may be half as bold as its demonstrations, or twice; units and rates that are wrong
#: give 5 (rate), 57.3 (degrees), 1000 (millimetres).
SCALE_FACTOR = 2.0
#: Other statistics must leave at most this share of the error. Smaller motion always lies closer
#: to recordings that a policy follows loosely, but by that alone never below sqrt((1 + r) / 2) of
#: the error, which is more than 0.7 (r: correlation); one too bold by half comes near 0.6.
KEY_ERROR = 0.5
_GROUPS = {"translation": TRANSLATION, "rotation": ROTATION}


def size_findings(
    steps: Steps, norm_stats: Mapping[str, ActionStats], unnorm_key: str, seed: int
) -> list[Finding]:
    """Return the findings on statistics key and action scale; at most one is a problem."""
    why = steps.lacks
    if not why:
        fit = Fit.of(steps, MOTION)
        why = "" if follows(fit, seed) else loose(fit)
    if why:
        return [not_judged("statistics key", why), not_judged("action scale", why)]
    sizes = {name: _size(steps, axes, seed) for name, axes in _GROUPS.items()}
    key, by_key = _best_key(steps, norm_stats, unnorm_key, sizes, seed)
    by_scale = _scaled(steps, sizes)
    if by_key and (by_scale is None or _misfit(by_key) <= _misfit(by_scale)):
        return _wrong_key(steps, by_key, sizes, (key, unnorm_key))
    return [
        Finding(
            SECTION,
            "statistics key",
            unnorm_key,
            f"none of {len(norm_stats) - 1} other keys fits the recordings clearly better",
        ),
        _scale_finding(steps, sizes, by_scale),
    ]


@dataclass(frozen=True)
class _Size:
    """How much larger recordings are than predictions, on axes that share a unit.

    Attributes:
        factor: Of standard deviations.
        least: Of the true factor, in 97.5 % of the resamples.
        most: Likewise.
        correlation: Of the axes.
    """

    factor: float
    least: float
    most: float
    correlation: float

    @property
    def is_off(self) -> bool:
        """Whether even the most cautious reading is beyond `SCALE_FACTOR`."""
        if self.correlation < LEAST_CORRELATION:
            return False
        return self.least > SCALE_FACTOR or self.most < 1.0 / SCALE_FACTOR


def _size(steps: Steps, axes: slice, seed: int) -> _Size:
    fit = Fit.of(steps, axes)
    whole = fit.amplitude(fit.all_parts)
    drawn = fit.amplitude(fit.resamples(seed))
    return _Size(
        factor=float(whole.factor[0]),
        least=float(np.percentile(drawn.least, LOW)),
        # Of values, some of which may be infinite: no interpolation between two.
        most=float(np.percentile(drawn.most, HIGH, method="higher")),
        correlation=correlation_of(fit),
    )


def _best_key(
    steps: Steps,
    norm_stats: Mapping[str, ActionStats],
    unnorm_key: str,
    sizes: Mapping[str, _Size],
    seed: int,
) -> tuple[str, Steps | None]:
    """Return the key that explains the recordings clearly better, and the steps decoded by it."""
    now = Fit.of(steps, MOTION)
    weights = now.resamples(seed)
    found: dict[str, Steps] = {}
    for key, stats in norm_stats.items():
        if key == unnorm_key or stats.action_dim != steps.normalized.shape[1]:
            continue
        other = replace(steps, predicted=unnormalize(steps.normalized, stats))
        fit = Fit.of(other, MOTION)
        shares = fit.error(weights) / now.error(weights)
        error = error_of(other)
        much_less = error <= KEY_ERROR * error_of(steps) and np.percentile(shares, HIGH) < 1.0
        mends_size = any(size.is_off for size in sizes.values()) and not any(
            _size(other, axes, seed).is_off for axes in _GROUPS.values()
        )
        if much_less or (mends_size and error < error_of(steps)):
            found[key] = other
    best = min(found, key=lambda key: _misfit(found[key]), default="")
    return best, found.get(best)


def _scaled(steps: Steps, sizes: Mapping[str, _Size]) -> Steps | None:
    """Return the steps with predictions as large as recordings, or None when they are."""
    predicted = steps.predicted.copy()
    for name, size in sizes.items():
        if size.is_off:
            predicted[:, _GROUPS[name]] *= size.factor
    return replace(steps, predicted=predicted) if any(s.is_off for s in sizes.values()) else None


def _wrong_key(
    steps: Steps, by_key: Steps, sizes: Mapping[str, _Size], keys: tuple[str, str]
) -> list[Finding]:
    wrong = [
        f"{max(1.0 / s.factor, s.factor):.1f} times too {'small' if s.factor > 1.0 else 'large'} "
        f"in {name}"
        for name, s in sizes.items()
    ]
    return [
        Finding(
            SECTION,
            "statistics key",
            f"statistics of {keys[0]!r} fit the recordings better than those of {keys[1]!r}: "
            f"{error_of(by_key) / error_of(steps):.0%} of the error",
            f"Predicted motion is {' and '.join(wrong)}. Set unnorm_key to the dataset that the "
            "checkpoint was trained on with this robot.",
            "problem",
        ),
        Finding(SECTION, "action scale", "explained by the statistics key", "correct that first"),
    ]


def _scale_finding(steps: Steps, sizes: Mapping[str, _Size], scaled: Steps | None) -> Finding:
    numbers = ", ".join(f"{name} {size.factor:.1f} ×" for name, size in sizes.items())
    if scaled is None:
        loose = [n for n, s in sizes.items() if s.correlation < LEAST_CORRELATION]
        words = "as large as the recordings, as far as can be told"
        words += f"; {' and '.join(loose)} cannot be judged" if loose else ""
        return Finding(SECTION, "action scale", f"recorded / predicted: {numbers}", words)
    return Finding(
        SECTION,
        "action scale",
        f"recorded actions are not the size of the predicted: {numbers}",
        f"Corrected, {error_of(scaled) / error_of(steps):.0%} of the error is left. See units "
        "(m or mm, rad or degrees), whether actions were recorded per second or per step, and a "
        "speed scale that was applied before recording.",
        "problem",
    )


def _misfit(steps: Steps) -> float:
    """Return how far predictions have another size and middle than recordings, mean of the axes.

    Chooses between explanations. The error cannot: of a policy that follows loosely, less motion is
    always less wrong.
    """
    recorded, predicted = steps.recorded[:, MOTION], steps.predicted[:, MOTION]
    known = np.isfinite(recorded + predicted).all(axis=1)
    recorded, predicted = recorded[known], predicted[known]
    moves = (recorded.std(axis=0) > 0.0) & (predicted.std(axis=0) > 0.0)
    recorded, predicted = recorded[:, moves], predicted[:, moves]
    size = np.abs(np.log(predicted.std(axis=0) / recorded.std(axis=0)))
    middle = np.abs(predicted.mean(axis=0) - recorded.mean(axis=0)) / recorded.std(axis=0)
    return float((size + middle).mean()) if moves.any() else 0.0
