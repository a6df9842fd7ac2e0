"""What answers beside recordings show: a time shift, an inverted gripper, and trivial rivals.

Correlation finds the shift whatever the scale; it is corrected before `size_findings` compares
sizes. A policy that does not follow the recordings proves nothing: no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from openvla_ros.evaluation.diagnosis.evidence import (
    GRIPPER,
    HIGH,
    MOTION,
    RESAMPLES,
    SECTION,
    Fit,
    Steps,
    correlation_of,
    error_of,
    follows,
    follows_better,
    loose,
    not_judged,
)
from openvla_ros.types import ActionSpec, Finding

#: Steps by which answers are moved against the recordings: beyond, another movement has begun.
LAGS = (-3, -2, -1, 1, 2, 3)
#: Another lag must raise the correlation by so much, and leave at most this share of what is
#: missing to 1. Motion resembles itself: a policy that has learnt BridgeData by heart (0.89) still
#: has 0.76 a step beside the right one.
SHIFT_GAIN, SHIFT_REST = 0.05, 0.75
#: Balanced accuracy of the inverted gripper: 0.5 is chance.
POLARITY_ACCURACY = 0.75
#: Steps with an open and with a closed gripper that are needed.
LEAST_GRIPPER_STEPS = 8


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
        return not_judged(item, loose(now)), steps
    return Finding(
        SECTION,
        item,
        f"none: correlation {correlation_of(now):.2f} at no lag",
        f"at most {max(follow.values(), default=0.0):.2f} at -3 to 3 steps",
    ), steps


def polarity_finding(steps: Steps, spec: ActionSpec, seed: int) -> Finding:
    """Return whether the inverted gripper agrees better with the recordings."""
    item = "gripper polarity"
    recorded, predicted = steps.recorded[:, GRIPPER], steps.predicted[:, GRIPPER]
    known = np.isfinite(recorded + predicted)
    recorded, predicted, parts = recorded[known], predicted[known], steps.parts[known]
    ends = (spec.gripper_open, spec.gripper_closed)
    # The actions of every published key are 0 and 1; recordings may use other numbers.
    middle = 0.5 if None in ends else 0.5 * sum(end for end in ends if end is not None)
    if not len(recorded):
        return not_judged(item, "no gripper was recorded")
    if np.ptp(recorded) == 0.0:
        return not_judged(item, "the recorded gripper never moves")
    is_high = recorded > 0.5 * (recorded.min() + recorded.max())
    fewest = min(int(is_high.sum()), int((~is_high).sum()))
    lacks = steps.lacks_of(slice(GRIPPER, GRIPPER + 1))
    if fewest < LEAST_GRIPPER_STEPS or lacks:
        why = f"{fewest} steps with one of open and closed, {LEAST_GRIPPER_STEPS} needed"
        return not_judged(item, lacks or why)
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
    steps = replace(steps, recorded=steps.recorded[:, MOTION], predicted=steps.predicted[:, MOTION])
    mean = np.broadcast_to(np.nanmean(steps.recorded, axis=0), steps.recorded.shape)
    baselines = {"the mean action": mean, "the action before": steps.shifted(-1).recorded}
    for name, answer in baselines.items():
        both = replace(steps, predicted=np.where(np.isfinite(steps.predicted), answer, np.nan))
        same = replace(
            steps, predicted=np.where(np.isfinite(both.predicted), steps.predicted, np.nan)
        )
        if both.lacks:
            continue
        share = error_of(same) / error_of(both)
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
