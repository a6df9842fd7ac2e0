"""What answers beside recordings show: time shift, wrong statistics, wrong scale, polarity.

Each fault is looked for with the ones before it corrected: correlation finds the shift whatever the
scale, size is compared at that shift, and one explanation of a wrong size is given, the one that
fits the recordings best. A policy that does not follow the recordings proves nothing: no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from openvla_ros.evaluation.evidence import (
    GRIPPER,
    HIGH,
    LEAST_CORRELATION,
    LOW,
    MOTION,
    RESAMPLES,
    ROTATION,
    SECTION,
    TRANSLATION,
    Fit,
    Steps,
    correlation_of,
    follows,
    follows_better,
    not_judged,
)
from openvla_ros.model.action_stats import ActionStats, unnormalize
from openvla_ros.types import ActionSpec, Finding

#: Steps by which answers are moved against the recordings: beyond, another movement has begun.
LAGS = (-3, -2, -1, 1, 2, 3)
#: Another lag must raise the correlation by so much, and leave at most this share of what is
#: missing to 1. Motion resembles itself: a policy that has learnt BridgeData by heart (0.89) still
#: has 0.76 a step beside the right one.
SHIFT_GAIN, SHIFT_REST = 0.05, 0.75
#: A policy may be half as bold as its demonstrations, or twice; units and rates that are wrong
#: give 5 (rate), 57.3 (degrees), 1000 (millimetres).
SCALE_FACTOR = 2.0
#: Other statistics must leave at most this share of the error. Smaller motion always lies closer
#: to recordings that a policy follows loosely, but by that alone never below sqrt((1 + r) / 2) of
#: the error, which is more than 0.7 (r: correlation); one too bold by half comes near 0.6.
KEY_ERROR = 0.5
#: Balanced accuracy of the inverted gripper: 0.5 is chance.
POLARITY_ACCURACY = 0.75
#: Steps with an open and with a closed gripper that are needed.
LEAST_GRIPPER_STEPS = 8
_GROUPS = {"translation": TRANSLATION, "rotation": ROTATION}


def shift_finding(steps: Steps, seed: int) -> tuple[Finding, Steps]:
    """Return whether answers fit the recordings of other steps better, and the steps put right.

    Args:
        steps: Consecutive within each episode.
        seed: Of the resamples.
    """
    item = "time shift"
    if steps.lacks:
        return not_judged(item, steps.lacks), steps
    now = Fit.of(steps, MOTION)
    moved = {lag: steps.shifted(lag) for lag in LAGS}
    moved = {lag: other for lag, other in moved.items() if not other.lacks}
    follow = {lag: correlation_of(Fit.of(other, MOTION)) for lag, other in moved.items()}
    lag = max(follow, key=lambda lag: follow[lag], default=0)
    if lag and _is_better_shifted(steps, moved[lag], seed):
        when = "later" if lag > 0 else "earlier"
        late = ("late", "early") if lag > 0 else ("early", "late")
        count = f"{abs(lag)} step{'s' * (abs(lag) > 1)}"
        return Finding(
            SECTION,
            item,
            f"answers fit the actions recorded {count} {when}: correlation {follow[lag]:.2f} "
            f"instead of {correlation_of(now):.2f}",
            f"Recorded actions are {count} {late[0]} against their images (or answers are "
            f"{late[1]}). Compare the stamps of images and actions, and which action the recorder "
            "stores beside an image: the one before it, or the one that followed.",
            "problem",
        ), moved[lag]
    if not follows(now, seed):
        return not_judged(item, _loose(now)), steps
    return Finding(
        SECTION,
        item,
        f"none: correlation {correlation_of(now):.2f} at no lag",
        f"at most {max(follow.values(), default=0.0):.2f} at -3 to 3 steps",
    ), steps


def size_findings(
    steps: Steps, norm_stats: Mapping[str, ActionStats], unnorm_key: str, seed: int
) -> list[Finding]:
    """Return the findings on statistics key and action scale; at most one is a problem."""
    why = steps.lacks
    if not why:
        fit = Fit.of(steps, MOTION)
        why = "" if follows(fit, seed) else _loose(fit)
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
        error = _error(other)
        much_less = error <= KEY_ERROR * _error(steps) and np.percentile(shares, HIGH) < 1.0
        mends_size = any(size.is_off for size in sizes.values()) and not any(
            _size(other, axes, seed).is_off for axes in _GROUPS.values()
        )
        if much_less or (mends_size and error < _error(steps)):
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
            f"{_error(by_key) / _error(steps):.0%} of the error",
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
        f"Corrected, {_error(scaled) / _error(steps):.0%} of the error is left. See units "
        "(m or mm, rad or degrees), whether actions were recorded per second or per step, and a "
        "speed scale that was applied before recording.",
        "problem",
    )


def polarity_finding(steps: Steps, spec: ActionSpec, seed: int) -> Finding:
    """Return whether the inverted gripper agrees better with the recordings."""
    item = "gripper polarity"
    recorded, predicted = steps.recorded[:, GRIPPER], steps.predicted[:, GRIPPER]
    known = np.isfinite(recorded + predicted)
    recorded, predicted, parts = recorded[known], predicted[known], steps.parts[known]
    ends = (spec.gripper_open, spec.gripper_closed)
    # The actions of every published key are 0 and 1; recordings may use other numbers.
    middle = 0.5 if None in ends else 0.5 * sum(end for end in ends if end is not None)
    if not len(recorded) or np.ptp(recorded) == 0.0:
        return not_judged(item, "the recorded gripper never moves")
    is_high = recorded > 0.5 * (recorded.min() + recorded.max())
    fewest = min(int(is_high.sum()), int((~is_high).sum()))
    if fewest < LEAST_GRIPPER_STEPS or steps.lacks:
        why = f"{fewest} steps with one of open and closed, {LEAST_GRIPPER_STEPS} needed"
        return not_judged(item, steps.lacks or why)
    accuracy, high = _balanced_accuracy(is_high, predicted > middle, parts, seed)
    numbers = f"balanced accuracy {accuracy:.2f}, inverted {1.0 - accuracy:.2f}"
    if 1.0 - accuracy < POLARITY_ACCURACY or high >= 0.5:
        return Finding(SECTION, item, numbers, "no evidence that open and closed are exchanged")
    return Finding(
        SECTION,
        item,
        f"the gripper is probably inverted: {numbers}",
        "One side takes open for closed. Compare the recording's convention with the action spec "
        "of the statistics key, and invert where the action is recorded or sent.",
        "problem",
    )


def _balanced_accuracy(
    is_high: np.ndarray, answered_high: np.ndarray, parts: np.ndarray, seed: int
) -> tuple[float, float]:
    """Return the mean accuracy of the two classes, and its upper bound over resamples."""
    right = (is_high == answered_high).astype(float)
    sums = np.zeros((int(parts.max()) + 1, 2, 2))  # part, class, (steps, right)
    np.add.at(sums, (parts, is_high.astype(int)), np.stack([np.ones_like(right), right], axis=1))
    sums = sums[sums[:, :, 0].sum(axis=1) > 0.0]
    shares = np.full(len(sums), 1.0 / len(sums))
    weights = np.random.default_rng(seed).multinomial(len(sums), shares, RESAMPLES)
    drawn = np.tensordot(weights, sums, axes=1)
    drawn = drawn[(drawn[:, :, 0] > 0.0).all(axis=1)]  # both classes
    whole = sums.sum(axis=0)
    accuracy = float((whole[:, 1] / whole[:, 0]).mean())
    return accuracy, float(np.percentile((drawn[:, :, 1] / drawn[:, :, 0]).mean(axis=1), HIGH))


def trivial_findings(steps: Steps) -> Iterator[Finding]:
    """Yield whether the policy beats answers that need no policy; no fault of the pipeline."""
    item = "trivial answers"
    if steps.lacks:
        yield not_judged(item, steps.lacks)
        return
    mean = np.broadcast_to(np.nanmean(steps.recorded, axis=0), steps.recorded.shape)
    baselines = {"the mean action": mean, "the action before": steps.shifted(-1).recorded}
    for name, answer in baselines.items():
        both = replace(steps, predicted=np.where(np.isfinite(steps.predicted), answer, np.nan))
        same = replace(
            steps, predicted=np.where(np.isfinite(both.predicted), steps.predicted, np.nan)
        )
        if both.lacks:
            continue
        share = _error(same) / _error(both)
        numbers = f"{share:.2f} × the error of {name}"
        if share < 1.0:
            yield Finding(SECTION, item, numbers, f"the policy is better than {name}")
        else:
            yield Finding(
                SECTION,
                item,
                numbers,
                f"The policy is no better than {name}. That is no fault of the pipeline: it does "
                "not know these scenes, or answers another way than the operator did.",
                "warn",
            )


def _is_better_shifted(now: Steps, moved: Steps, seed: int) -> bool:
    """Return whether answers clearly follow the moved recordings, and clearly better."""
    both = np.isfinite(now.recorded + moved.recorded)
    pair = [replace(s, recorded=np.where(both, s.recorded, np.nan)) for s in (now, moved)]
    if pair[0].lacks:
        return False
    before, after = (Fit.of(s, MOTION) for s in pair)
    rest = SHIFT_REST * (1.0 - correlation_of(before))
    if 1.0 - correlation_of(after) > rest:
        return False
    return follows_better(after, before, seed, gain=SHIFT_GAIN, looks=len(LAGS))


def _loose(fit: Fit) -> str:
    return (
        f"the policy does not follow these recordings closely enough (correlation "
        f"{correlation_of(fit):.2f}, {LEAST_CORRELATION} needed, and by more than chance)"
    )


def _misfit(steps: Steps) -> float:
    """Return how far predictions have another size and middle than recordings, mean of the axes.

    Chooses between explanations. The error cannot: of a policy that follows loosely, less motion is
    always less wrong.
    """
    known = np.isfinite(steps.recorded + steps.predicted).all(axis=1)
    recorded, predicted = steps.recorded[known, MOTION], steps.predicted[known, MOTION]
    moves = (recorded.std(axis=0) > 0.0) & (predicted.std(axis=0) > 0.0)
    recorded, predicted = recorded[:, moves], predicted[:, moves]
    size = np.abs(np.log(predicted.std(axis=0) / recorded.std(axis=0)))
    middle = np.abs(predicted.mean(axis=0) - recorded.mean(axis=0)) / recorded.std(axis=0)
    return float((size + middle).mean()) if moves.any() else 0.0


def _error(steps: Steps) -> float:
    fit = Fit.of(steps, MOTION)
    return float(fit.error(fit.all_parts)[0])
