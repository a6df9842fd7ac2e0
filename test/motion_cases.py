"""Random motion: what a policy may answer and when, and the register of what must hold for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from openvla_ros.config.motion import GripperConfig, MotionConfig
from openvla_ros.control.motion import MotionStage
from openvla_ros.control.pose import EndEffectorPose
from openvla_ros.control.slew import SpeedLimits
from openvla_ros.mock_policy import ACTION_SPEC
from openvla_ros.types import ActionSpec, Prediction

TICK_S = 0.02
LINEAR_SPEED, ANGULAR_SPEED, LINEAR_ACCEL, ANGULAR_ACCEL = 0.25, 1.0, 5.0, 10.0
LIMITS = SpeedLimits(LINEAR_SPEED, ANGULAR_SPEED)
HOLD_MAX_S, DECAY_S = 0.1, 0.1
ROUNDING = 1e-9
POSE = EndEffectorPose(np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]), 0.0)

PROPERTIES: dict[str, Callable[[], None]] = {}
CASES: dict[str, int] = {}


def property_of(cases: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a property for so many random cases, the same in every run, without shrinking."""

    def register(check: Callable[..., None]) -> Callable[..., None]:
        run = settings(
            max_examples=cases,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )(check)
        PROPERTIES[check.__name__], CASES[check.__name__] = run, cases
        return run

    return register


@dataclass(frozen=True)
class Answer:
    """One chunk of the policy, and what happens until the next one."""

    actions: np.ndarray  # (K, 7)
    wait_s: float  # until the next answer: early, late, or long missing
    is_repeated: bool  # the same answer arrives twice


@dataclass(frozen=True)
class Run:
    """A sequence of answers at some rate, in some mode, on ticks that jitter."""

    answers: tuple[Answer, ...]
    action_hz: float
    mode: str
    tick_intervals_s: tuple[float, ...]


@st.composite
def runs(draw: st.DrawFn, *, chunks: bool = True, late_ticks: bool = False) -> Run:
    """Random runs: sign flips, zeros, duplicates; answers early, late and missing; 1 to 30 Hz.

    chunks: Several steps per answer. late_ticks: Ticks also come late; else they only come early.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    action_hz = draw(st.one_of(st.sampled_from([1.0, 5.0, 10.0, 15.0, 30.0]), st.floats(1.0, 30.0)))
    sizes = draw(st.sampled_from([0.05, 0.02, 0.005]))
    answers: list[Answer] = []
    for _ in range(draw(st.integers(1, 5))):
        steps = int(rng.integers(1, 5)) if chunks else 1
        actions = some_actions(rng, steps, sizes, answers[-1].actions if answers else None)
        period_s = len(actions) / action_hz
        wait_s = period_s * float(rng.choice([0.3, 0.9, 1.0, 1.1, 2.5]) * rng.uniform(0.8, 1.2))
        # A gap longer than this adds nothing but time.
        answers.append(Answer(actions, min(wait_s, period_s + 0.6), bool(rng.integers(0, 8) == 0)))
    jitter = draw(st.sampled_from([0.0, 0.3, 0.95]))
    intervals = TICK_S * (1.0 - jitter * rng.uniform(0.0, 1.0, 7))
    if late_ticks:
        intervals[rng.integers(0, 7, 2)] += TICK_S * rng.uniform(0.0, 1.5)
    mode = draw(st.sampled_from(["stretch", "exact", "hold"]))
    return Run(tuple(answers), action_hz, mode, tuple(intervals.tolist()))


def some_actions(
    rng: np.random.Generator, steps: int, size: float, before: np.ndarray | None
) -> np.ndarray:
    """(steps, 7) anything up to a size in metres, and five times that in radians."""
    actions = np.zeros((steps, 7))
    actions[:, 0:3] = rng.uniform(-size, size, (steps, 3))
    actions[:, 3:6] = rng.uniform(-5 * size, 5 * size, (steps, 3))
    what = rng.integers(0, 7)
    if what == 0:
        actions[:, 0:6] = 0.0  # no motion at all
    elif what == 1 and before is not None:
        actions = -before  # back where it came from
    elif what == 2 and before is not None:
        actions = before.copy()  # the same once more
    elif what == 3:
        actions[:, rng.integers(0, 6, 3)] = 0.0
    return actions


@st.composite
def steady_runs(draw: st.DrawFn) -> Run:
    """Runs whose answers come when their step is over, or a little later, on ticks as set.

    "exact": every wait by itself. "stretch": every wait the same, so that the measured time between
    answers is the true one.
    """
    run = draw(runs(chunks=False))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mode = draw(st.sampled_from(["stretch", "exact"]))
    waits = rng.uniform(1.0, 1.3, len(run.answers)) / run.action_hz
    waits = (
        np.ceil(waits / TICK_S)
        if mode == "exact"
        else np.full_like(waits, np.ceil(waits[0] / TICK_S))
    )
    answers = (
        dataclasses.replace(answer, wait_s=(float(count) - 0.5) * TICK_S)
        for answer, count in zip(run.answers, waits, strict=True)
    )
    return Run(tuple(answers), run.action_hz, mode, (TICK_S,))


def ticks(run: Run, start_s: float, end_s: float) -> Iterator[tuple[float, float]]:
    """Times of ticks and the time until the next one."""
    now_s, k = start_s, 0
    while now_s < end_s:
        interval_s = run.tick_intervals_s[k % len(run.tick_intervals_s)]
        yield now_s, interval_s
        now_s, k = now_s + interval_s, k + 1


def a_stage(
    action_hz: float = 5.0, spec: ActionSpec = ACTION_SPEC, **changes: object
) -> MotionStage:
    """A motion stage at full size, with the default limits unless `changes` say otherwise."""
    spec = dataclasses.replace(spec, action_hz=action_hz)
    motion = MotionConfig(**{"speed_scale": 1.0, "stream_rate": 1.0 / TICK_S, **changes})
    return MotionStage(spec, motion, GripperConfig())


def prediction(actions: np.ndarray) -> Prediction:
    """A valid answer of the policy."""
    return Prediction(actions, actions, [], "mock")


def shortest_time_s(step: np.ndarray) -> float:
    """Time that a (6,) displacement needs at the speed limits; of a twist, how close to them."""
    return max(math.hypot(*step[0:3]) / LINEAR_SPEED, math.hypot(*step[3:6]) / ANGULAR_SPEED)


def ramp_time_s(twist: np.ndarray) -> float:
    """Time in which the acceleration limits allow to stop: how fast translation or rotation is."""
    return max(math.hypot(*twist[0:3]) / LINEAR_ACCEL, math.hypot(*twist[3:6]) / ANGULAR_ACCEL)


def require_within_limits(twist: np.ndarray, last: np.ndarray, elapsed_s: float) -> None:
    """Fail when a (6,) twist is too fast, or differs too much from the one before it."""
    assert shortest_time_s(twist) <= 1.0 + ROUNDING, "too fast"
    # A late tick does not buy a larger step.
    assert ramp_time_s(twist - last) <= min(elapsed_s, TICK_S) + ROUNDING, "abrupt"


#: Random (6,) numbers in [-1, 1].
six_numbers = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).uniform(-1.0, 1.0, 6)
)
