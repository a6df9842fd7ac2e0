"""Whether the arm did what the actions say: actions against the differences of the states.

Only a recording with both can be asked, and it is the sharpest question of the audit: a wrong unit,
sign, axis or index shows whatever the task is. An arm follows its command late and not entirely, so
the expected answer is a lag between none and one step and a gain of about one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openvla_ros.evaluation.audit.scale import FACTORS, ROTATION_FACTORS, factor_text
from openvla_ros.types import ActionSpec, Finding

SECTION = "Tracking"
AXES = ("x", "y", "z", "roll", "pitch", "yaw")
LAGS = 3  # steps in both directions
LEAST_STEPS = 20  # steps of motion; fewer leave the lag of 3 episodes to chance
LEAST_MOTION = 1e-6  # metres or radians: an axis that moves less than its encoder reads does not

#: Mean correlation of the axes. BridgeData has 0.85, and what is shifted by three steps 0.3.
FOLLOWED, DOUBTFUL = 0.6, 0.3
#: The arm cannot move before its command; beyond the other limit it is late, or actions are early.
#: Between them lie all sets of three Octo episodes; shifting those by one step leads out of it.
EARLIEST_LAG, LATEST_LAG = -0.2, 1.1
LATE_S = 0.2  # of a fast recording several steps are no delay worth a word
WINDOW_S = 1.0  # sums over a second do not depend on a lag of a fraction of it
GAIN_WARNING, GAIN_PROBLEM = 2.0, 3.0
OPPOSED = -0.3  # correlation below which an axis runs backwards
BETTER_AXES = 0.8  # of summed correlation: another naming of the axes must win clearly
ABSOLUTE = 0.3  # of the spread of the actions: as close to the poses, they are poses


@dataclass(frozen=True)
class Tracking:
    """How reached displacements follow commanded ones.

    Attributes:
        steps: Pairs of action and displacement.
        correlation_by_lag: Lag in steps to the mean correlation of the axes that move; a positive
            lag means that the arm moves after the command.
        lag_steps: The best lag, between steps.
        lag_s: The same in seconds.
        correlation_by_axis: At the best whole lag; None for an axis that does not move.
        translation_factor: Commanded / reached over a second; None when nothing correlates.
        rotation_factor: The same of the rotation.
        axis_map: What x y z of the action are in the state: ("x", "-y", "z").
        is_absolute: Whether the actions are the poses themselves.
    """

    steps: int
    correlation_by_lag: dict[int, float]
    lag_steps: float
    lag_s: float
    correlation_by_axis: dict[str, float | None]
    translation_factor: float | None
    rotation_factor: float | None
    axis_map: tuple[str, str, str]
    is_absolute: bool


def measure_tracking(
    actions: Sequence[np.ndarray],
    states: Sequence[np.ndarray],
    rate_hz: float,
    spec: ActionSpec,
) -> Tracking | None:
    """Return how well states follow actions; None with too few steps of motion.

    Args:
        actions: (T, 7) per episode; rows may be NaN.
        states: (T, m >= 6) per episode: x y z [m] roll pitch yaw [rad].
        rate_hz: Steps per second.
        spec: Frames and units; base axes, metres and radians where it says nothing.
    """
    commanded = [_commanded(episode, spec) for episode in actions]
    reached = [reached_displacements(episode, spec) for episode in states]
    if sum(len(episode) for episode in reached) < LEAST_STEPS:
        return None
    by_lag = {
        lag: _axis_correlations(*_pair(commanded, reached, lag)) for lag in range(-LAGS, LAGS + 1)
    }
    curve = {
        lag: float(np.nanmean([*axes, np.nan]))
        for lag, axes in by_lag.items()
        if np.isfinite(axes).any()
    }
    if len(curve) < 2 * LAGS + 1:
        return None
    best = max(curve, key=lambda lag: curve[lag])
    lag = _between(curve, best)
    x, y = _pair(commanded, reached, best)
    gains = _gains(commanded, reached, max(2, round(WINDOW_S * rate_hz)))
    return Tracking(
        steps=len(x),
        correlation_by_lag=curve,
        lag_steps=lag,
        lag_s=lag / rate_hz,
        correlation_by_axis={
            name: float(value) if np.isfinite(value) else None
            for name, value in zip(AXES, by_lag[best], strict=True)
        },
        translation_factor=_factor(gains[:3], by_lag[best][:3]),
        rotation_factor=_factor(gains[3:], by_lag[best][3:]),
        axis_map=_best_axes(x[:, :3], y[:, :3]),
        is_absolute=_are_poses(commanded, states),
    )


def reached_displacements(states: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Return (T - 1, 6): what the arm moved from step to step, in the frames of the spec.

    Args:
        states: (T, m >= 6): x y z [m] roll pitch yaw [rad] in base axes.
        spec: "ee" as a frame means the axes of the end effector before the step.
    """
    rotations = _matrices(states[:, 3:6])
    before, after = rotations[:-1], rotations[1:]
    moved = np.diff(states[:, :3], axis=0)
    if spec.translation_frame == "ee":
        moved = np.einsum("tji,tj->ti", before, moved)
    inverse = before.transpose(0, 2, 1)
    turned = inverse @ after if spec.rotation_frame == "ee" else after @ inverse
    return np.concatenate([moved, _rotation_vectors(turned)], axis=1)


def judge_tracking(tracking: Tracking) -> list[Finding]:
    """Return what is to be said about actions and states."""
    if tracking.is_absolute:
        reason = (
            "OpenVLA learns displacements of one step. Take differences of the poses: a "
            "PoseStamped topic, or action.differences in the topic file."
        )
        value = "the actions equal the poses of the states"
        return [Finding(SECTION, "absolute actions", value, reason, "problem")]
    findings = [*_axes(tracking), *_signs(tracking)]
    if findings:  # with a wrong axis, the mean over axes says nothing about the others
        return [*findings, *_factors(tracking)]
    return [_follows(tracking), _lag(tracking), *_factors(tracking)]


def _follows(tracking: Tracking) -> Finding:
    best = max(tracking.correlation_by_lag.values())
    value = f"correlation {best:.2f} over {tracking.steps} steps"
    if best >= FOLLOWED:
        return Finding(SECTION, "states follow actions", value)
    reason = (
        f"{FOLLOWED:g} and more is usual. The actions may be of another frame (base or end "
        "effector), another arm, velocities, or misaligned in time by more than "
        f"{LAGS} steps."
    )
    level = "problem" if best < DOUBTFUL else "warn"
    return Finding(SECTION, "states follow actions", value, reason, level)


def _lag(tracking: Tracking) -> Finding:
    lag = tracking.lag_steps
    value = f"{lag:+.1f} steps ({1000 * tracking.lag_s:+.0f} ms)"
    if lag < EARLIEST_LAG:
        steps = max(1, round(0.5 - lag))
        reason = (
            f"The arm moves before its command: actions are shifted by {_steps(steps)} (stored too "
            "late). Pair an image with the action that followed it: check the stamps of the "
            "action topic (action.offset_s in the topic file moves them)."
        )
        return Finding(SECTION, "action lag", value, reason, "problem")
    if lag > LATEST_LAG and tracking.lag_s > LATE_S:
        reason = (
            f"Actions are shifted by {_steps(max(1, round(lag - 0.5)))} (stored too early), or the "
            "arm is that slow. An arm usually follows within one step."
        )
        return Finding(SECTION, "action lag", value, reason, "warn")
    return Finding(SECTION, "action lag", value, "The arm follows its command.")


def _steps(count: int) -> str:
    return "one step" if count == 1 else f"{count} steps"


def _axes(tracking: Tracking) -> list[Finding]:
    straight = ("x", "y", "z")
    if tracking.axis_map == straight:
        return []
    turned = [
        f"{axis} is {found} of the state"
        for axis, found in zip(straight, tracking.axis_map, strict=True)
        if axis != found
    ]
    flipped = [
        axis for axis, found in zip(straight, tracking.axis_map, strict=True) if found == f"-{axis}"
    ]
    if len(flipped) == len(turned):
        item, value = "inverted axis", f"{', '.join(flipped)} of the action runs backwards"
        reason = "Correct the sign where the action is made."
    else:
        item, value = "frame", f"of the action, {', '.join(turned)}"
        reason = (
            "Actions and states are in axes that are turned against each other: the base frame "
            "of the teleoperation device is another one."
        )
    return [Finding(SECTION, item, value, reason, "problem")]


def _signs(tracking: Tracking) -> list[Finding]:
    """Rotation about an axis may run backwards by itself."""
    flipped = [axis for axis in AXES[3:] if (tracking.correlation_by_axis[axis] or 0.0) < OPPOSED]
    if not flipped:
        return []
    value = f"{', '.join(flipped)} of the action runs backwards"
    reason = "Correct the sign where the action is made."
    return [Finding(SECTION, "inverted axis", value, reason, "problem")]


def _factors(tracking: Tracking) -> list[Finding]:
    findings = []
    for item, factor, candidates in (
        ("translation gain", tracking.translation_factor, FACTORS),
        ("rotation gain", tracking.rotation_factor, ROTATION_FACTORS),
    ):
        if factor is None:
            continue
        off = max(factor, 1 / factor)
        level = "problem" if off > GAIN_PROBLEM else "warn" if off > GAIN_WARNING else "ok"
        reason = "Commanded divided by reached motion, over a second: about 1 is right."
        value = f"the actions are {factor_text(factor, candidates)} of the motion of the arm"
        findings.append(Finding(SECTION, item, value, reason, level))
    return findings


def _commanded(actions: np.ndarray, spec: ActionSpec) -> np.ndarray:
    units = [spec.translation_unit_m or 1.0] * 3 + [spec.rotation_unit_rad or 1.0] * 3
    return actions[:, :6] * np.array(units)


def _pair(
    commanded: Sequence[np.ndarray], reached: Sequence[np.ndarray], lag: int
) -> tuple[np.ndarray, np.ndarray]:
    """(N, 6) commands and the displacements `lag` steps after them, where both are known."""
    xs, ys = [], []
    for x, y in zip(commanded, reached, strict=True):
        steps = np.arange(len(y))
        steps = steps[(steps - lag >= 0) & (steps - lag < len(x))]
        xs.append(x[steps - lag])
        ys.append(y[steps])
    x, y = np.concatenate(xs), np.concatenate(ys)
    known = np.isfinite(x).all(1) & np.isfinite(y).all(1)
    return x[known], y[known]


def _correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, m): of every column of x with every column of y; NaN where one does not move."""
    if len(x) < LEAST_STEPS // 2:
        return np.full((x.shape[1], y.shape[1]), np.nan)
    x, y = x - x.mean(0), y - y.mean(0)
    size_x, size_y = np.sqrt((x * x).mean(0)), np.sqrt((y * y).mean(0))
    size = np.outer(
        np.where(size_x > LEAST_MOTION, size_x, np.nan),
        np.where(size_y > LEAST_MOTION, size_y, np.nan),
    )
    return (x.T @ y) / len(x) / size


def _axis_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.diagonal(_correlations(x, y))


def _between(curve: dict[int, float], best: int) -> float:
    """The top of the parabola through the best lag and its neighbours."""
    if abs(best) == LAGS:
        return float(best)
    left, top, right = (curve[best + offset] for offset in (-1, 0, 1))
    bend = left - 2 * top + right
    return best + (0.5 * (left - right) / bend if bend < 0 else 0.0)


def _gains(
    commanded: Sequence[np.ndarray], reached: Sequence[np.ndarray], window: int
) -> np.ndarray:
    """(6,) reached per commanded motion, by sums over windows of consecutive steps."""
    xs, ys = [], []
    for x, y in zip(commanded, reached, strict=True):
        steps = min(window, len(y))
        if steps:
            xs.append(_sliding_sums(x[: len(y)], steps))
            ys.append(_sliding_sums(y, steps))
    x, y = np.concatenate(xs), np.concatenate(ys)
    known = np.isfinite(x).all(1) & np.isfinite(y).all(1)
    x, y = x[known], y[known]
    return (x * y).sum(0) / np.maximum((x * x).sum(0), LEAST_MOTION**2)


def _sliding_sums(values: np.ndarray, steps: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(values, steps, axis=0)
    return windows.sum(-1)


def _factor(gains: np.ndarray, correlations: np.ndarray) -> float | None:
    """Commanded / reached, by the axes that correlate; an inverted one counts as well."""
    trusted = np.abs(gains[np.nan_to_num(np.abs(correlations)) >= FOLLOWED])
    trusted = trusted[trusted > 0]
    return float(1 / np.median(trusted)) if len(trusted) else None


def _best_axes(x: np.ndarray, y: np.ndarray) -> tuple[str, str, str]:
    """The naming of the state's axes, with signs, under which the actions fit best."""
    correlations = np.nan_to_num(_correlations(x, y))
    straight = float(np.trace(correlations))
    best, names = straight + BETTER_AXES, list(AXES[:3])
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            fit = sum(signs[i] * correlations[i, order[i]] for i in range(3))
            if fit > best:
                best = fit
                names = [f"{'-' if signs[i] < 0 else ''}{AXES[order[i]]}" for i in range(3)]
    return names[0], names[1], names[2]


def _are_poses(commanded: Sequence[np.ndarray], states: Sequence[np.ndarray]) -> bool:
    x = np.concatenate([episode[:, :3] for episode in commanded])
    y = np.concatenate([episode[:, :3] for episode in states])
    known = np.isfinite(x).all(1) & np.isfinite(y).all(1)
    spread = y[known].std(0)
    off = np.sqrt(((x[known] - y[known]) ** 2).mean(0))
    return bool((off < ABSOLUTE * np.maximum(spread, LEAST_MOTION)).all())


def _matrices(rpy: np.ndarray) -> np.ndarray:
    """(N, 3, 3): Rz(yaw) Ry(pitch) Rx(roll)."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(rpy.T), np.sin(rpy.T)
    rows = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _rotation_vectors(rotations: np.ndarray) -> np.ndarray:
    """(N, 3) radians, of rotations well below half a turn, as those of one step are."""
    r = rotations
    axis = np.stack([r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0], r[:, 1, 0] - r[:, 0, 1]], -1)
    sine = np.linalg.norm(axis, axis=1) / 2
    angle = np.arctan2(sine, (np.trace(r, axis1=1, axis2=2) - 1) / 2)
    return axis / 2 * np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 1.0)[:, None]
