"""What must hold for every motion and every stop, for random answers at random times.

test_motion_properties.py runs the properties against our implementation and against mutants.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from motion_cases import (
    ANGULAR_ACCEL,
    ANGULAR_SPEED,
    DECAY_S,
    HOLD_MAX_S,
    LIMITS,
    LINEAR_ACCEL,
    LINEAR_SPEED,
    POSE,
    ROUNDING,
    TICK_S,
    Run,
    a_stage,
    prediction,
    property_of,
    ramp_time_s,
    require_within_limits,
    runs,
    shortest_time_s,
    six_numbers,
    steady_runs,
    ticks,
)

from openvla_ros.control.pose import EndEffectorPose
from openvla_ros.control.twist import StreamSettings, TwistStreamer

# Displacement -------------------------------------------------------------------------------------


def a_stream(mode: str) -> TwistStreamer:
    return TwistStreamer(StreamSettings(mode, TICK_S, HOLD_MAX_S, DECAY_S, LIMITS))


class Budget:
    """What the steps of one answer may move, per axis: the sums of their ways forth and back."""

    def __init__(self, steps: np.ndarray, held: float, carried: np.ndarray | float = 0.0) -> None:
        last, self.steps = steps[-1], steps.copy()
        self.steps[0] += carried
        self.forth, self.back = (
            np.maximum(sign * self.steps, 0.0).sum(axis=0) + np.maximum(sign * last, 0.0) * held
            for sign in (1.0, -1.0)
        )
        # Together with what it carries, and without "hold", one step is one straight line.
        self.is_straight = len(steps) == 1 and not (held and np.any(carried))
        self.total, self.late, self.late_ticks = np.zeros(6), np.zeros(6), 0.0

    def take(self, carried: np.ndarray) -> None:
        """Book what the next answer takes over; it is not motion yet."""
        total = self.total + carried
        assert (total <= self.forth + self.late + ROUNDING).all(), f"{carried} carried"
        assert (-total <= self.back + self.late + ROUNDING).all(), f"{carried} carried"

    def spend(self, twist: np.ndarray, interval_s: float) -> None:
        """Book a twist; a tick that is late by j adds at most the twist times j."""
        total = self.total = self.total + twist * interval_s
        late_s = max(interval_s - TICK_S, 0.0)
        self.late = np.maximum(self.late, np.abs(twist) * late_s)
        self.late_ticks += late_s / TICK_S
        assert (total <= self.forth + self.late + ROUNDING).all(), f"{total} for {self.steps}"
        assert (-total <= self.back + self.late + ROUNDING).all(), f"{total} for {self.steps}"
        if self.is_straight:
            step = self.steps[0]
            share = float(total @ step) / max(float(step @ step), 1e-30)
            assert np.abs(total - share * step).max() <= ROUNDING, "another direction"


@property_of(2200)
@given(runs(late_ticks=True))
def an_action_moves_no_further_than_its_displacement(run: Run) -> None:
    """At any time, whatever was before: between the sums of its steps back and forth, every axis.

    The end of the action before may come with it: what is left of that one's own displacement, and
    no more than two ticks of motion.
    """
    stream, now_s, step_s = a_stream(run.mode), 0.0, 1.0 / run.action_hz
    held = HOLD_MAX_S / step_s if run.mode == "hold" else 0.0
    budget = Budget(np.zeros((1, 6)), 0.0)
    for answer in run.answers:
        steps = answer.actions[:, 0:6].copy()
        for _ in range(1 + answer.is_repeated):
            stream.accept(steps, step_s, now_s)
        before, budget = budget, None
        for tick_s, interval_s in ticks(run, now_s, now_s + answer.wait_s):
            twist = stream.sample(tick_s)
            if budget is None:
                before.take(stream.carried)
                longest = 2.0 + before.late_ticks
                assert shortest_time_s(stream.carried) <= longest * TICK_S + ROUNDING
                budget = Budget(steps, held, stream.carried)
            assert shortest_time_s(twist) <= 1.0 + ROUNDING, "faster than the limits"
            budget.spend(twist, interval_s)
            now_s = tick_s + interval_s
        budget = budget or before


@property_of(1000)
@given(runs(late_ticks=True))
def the_arm_ends_where_the_stream_has_put_it(run: Run) -> None:
    """Acceleration delays and loses nothing: far less than the 2 % that would be allowed.

    While it moves it is at most four braking ways (v²/a) behind, and no answer moves it further
    than its displacement, what it was behind, and one more braking way.
    """
    braking = np.repeat([LINEAR_SPEED**2 / LINEAR_ACCEL, ANGULAR_SPEED**2 / ANGULAR_ACCEL], 3)
    stage, stream = a_stage(run.action_hz, twist_mode=run.mode), a_stream(run.mode)
    now_s, behind = 0.0, np.zeros(6)
    for k, answer in enumerate(run.answers):
        plan = stage.plan(prediction(answer.actions))
        assert plan.steps is not None
        for _ in range(1 + answer.is_repeated):
            stage.execute(plan, now_s)
            stream.accept(plan.steps, 1.0 / run.action_hz, now_s)
        held = HOLD_MAX_S * run.action_hz if run.mode == "hold" else 0.0
        most = np.abs(plan.steps).sum(axis=0) + np.abs(plan.steps[-1]) * held
        most, moved = most + np.abs(behind) + braking, np.zeros(6)
        rest_s = 4.0 * len(answer.actions) / run.action_hz + 2.0
        wait_s = rest_s if k == len(run.answers) - 1 else answer.wait_s
        for tick_s, interval_s in ticks(run, now_s, now_s + wait_s):
            wanted, twist = stream.sample(tick_s), stage.sample(tick_s)
            behind = behind + (wanted - twist) * interval_s
            if not (stream.is_moving or stage.is_moving) and k == len(run.answers) - 1:
                break
            moved = moved + twist * interval_s
            assert (np.abs(behind) <= 4.0 * braking).all(), f"{behind} behind"
            assert (np.abs(moved) <= most + ROUNDING).all(), f"{moved} for {plan.steps}"
            now_s = tick_s + interval_s
    assert not stage.is_moving and not twist.any()
    np.testing.assert_allclose(behind, 0.0, atol=1e-6)


@property_of(1000)
@given(steady_runs())
def a_sequence_arrives_where_its_displacements_add_up_to(run: Run) -> None:
    """Answers that come when the step before is over: nothing is lost and nothing is added.

    2 % would be allowed. Faster than the limits is another thing: what full speed cannot do in one
    step is dropped.
    """
    stage = a_stage(run.action_hz, twist_mode=run.mode)
    step_s, now_s, total, wanted = 1.0 / run.action_hz, 0.0, np.zeros(6), np.zeros(6)
    path, is_feasible = 0.0, True
    for k, answer in enumerate(run.answers):
        plan = stage.plan(prediction(answer.actions))
        assert plan.steps is not None
        is_feasible &= shortest_time_s(plan.steps[0]) <= step_s
        stage.execute(plan, now_s)
        wanted, path = wanted + plan.steps[0], path + float(np.abs(plan.steps[0]).sum())
        wait_s = answer.wait_s + (3.0 * step_s + 1.0 if k == len(run.answers) - 1 else 0.0)
        for tick_s, interval_s in ticks(run, now_s, now_s + wait_s):
            twist = stage.sample(tick_s)
            total = total + twist * interval_s
            now_s = tick_s + interval_s
    assert not twist.any(), f"still moving: {twist}"
    if is_feasible:
        np.testing.assert_allclose(total, wanted, atol=1e-6)
    assert float(np.abs(total).sum()) <= path + 1e-6, "further than all displacements together"


@property_of(600)
@given(six_numbers, st.integers(1, 4), st.floats(0.001, 0.02), st.floats(1.0, 30.0))
def an_action_takes_the_time_of_its_steps(
    way: np.ndarray, count: int, size_m: float, action_hz: float
) -> None:
    """At any time the share of the time that has passed, give or take what acceleration needs."""
    step = way * np.repeat([size_m, size_m * 5.0], 3)
    stage = a_stage(action_hz)
    plan = stage.plan(prediction(np.repeat([[*step, 1.0]], count, axis=0)))
    assert plan.steps is not None
    step_s = max(1.0 / action_hz, shortest_time_s(plan.steps[0]))
    ramp_s, duration_s = ramp_time_s(plan.steps[0] / step_s), count * step_s
    stage.execute(plan, 0.0)
    total = np.zeros(6)
    for k in range(round(duration_s / TICK_S) + 25):
        total = total + stage.sample(k * TICK_S) * TICK_S
        done_s = float(total @ plan.steps[0] / (plan.steps[0] @ plan.steps[0])) * step_s
        ahead_s = done_s - min((k + 1) * TICK_S, duration_s)
        assert -ramp_s - TICK_S <= ahead_s <= ROUNDING, f"{ahead_s} s ahead"
    np.testing.assert_allclose(total, plan.steps.sum(axis=0), atol=1e-9)


# Limits and direction -----------------------------------------------------------------------------


@property_of(800)
@given(runs(late_ticks=True))
def no_limit_is_ever_exceeded(run: Run) -> None:
    """Clip, speed at every tick, acceleration between any two, for anything the policy answers."""
    stage = a_stage(run.action_hz, twist_mode=run.mode)
    now_s, last, last_s = 0.0, np.zeros(6), -TICK_S
    moved = 0.0
    for answer in run.answers:
        plan = stage.plan(prediction(answer.actions * 3.0))  # beyond the clip of a step too
        assert plan.steps is not None
        assert np.abs(plan.steps[:, 0:3]).max() <= 0.05 + ROUNDING, "translation not clipped"
        assert np.abs(plan.steps[:, 3:6]).max() <= 0.25 * np.sqrt(3.0), "rotation not clipped"
        for _ in range(1 + answer.is_repeated):
            stage.execute(plan, now_s)
        for tick_s, interval_s in ticks(run, now_s, now_s + answer.wait_s):
            twist = stage.sample(tick_s)
            require_within_limits(twist, last, tick_s - last_s)
            last, last_s, now_s = twist, tick_s, tick_s + interval_s
            moved += float(np.abs(twist).sum())
    if all(answer.wait_s > TICK_S for answer in run.answers):
        assert moved > 0.0 or not any(a.actions[:, 0:6].any() for a in run.answers)


@property_of(800)
@given(six_numbers, st.floats(0.001, 0.2), st.floats(0.0, 1.0), st.floats(1.0, 30.0))
def an_action_from_rest_keeps_its_direction(
    way: np.ndarray, size_m: float, turn: float, action_hz: float
) -> None:
    """However fast it is: every twist is parallel to the step, in all six dimensions."""
    step = way * np.repeat([size_m, size_m * 5.0 * turn], 3)
    stage = a_stage(action_hz, delta_position=0.5, delta_rotation=1.5)
    plan = stage.plan(prediction(np.array([[*step, 1.0]])))
    assert plan.steps is not None
    expected = plan.steps[0] / np.linalg.norm(plan.steps[0])
    stage.execute(plan, 0.0)
    for k in range(12):
        twist = stage.sample(k * TICK_S)
        along = float(twist @ expected)
        assert along >= 0.0
        aside = float(np.abs(twist - along * expected).max())
        assert aside <= 1e-9, f"{aside} beside its direction"


@property_of(500)
@given(runs(chunks=False, late_ticks=True), st.integers(0, 2**32 - 1))
def a_steered_arm_obeys_the_limits_and_stays_where_it_is_let_go(run: Run, seed: int) -> None:
    """A person takes over in the middle of an action, asks for anything, and lets go."""
    rng, stage = np.random.default_rng(seed), a_stage(run.action_hz, twist_mode=run.mode)
    now_s, last, last_s = 0.0, np.zeros(6), -TICK_S
    for k, answer in enumerate(run.answers):
        if k % 2 == 0:
            stage.execute(stage.plan(prediction(answer.actions)), now_s)
        wanted = rng.uniform(-1.0, 1.0, 6) * np.repeat([0.3, 1.2], 3)
        for tick_s, interval_s in ticks(run, now_s, now_s + answer.wait_s):
            is_steered = k % 2 == 1
            twist = stage.follow(wanted, tick_s) if is_steered else stage.sample(tick_s)
            require_within_limits(twist, last, tick_s - last_s)
            last, last_s, now_s = twist, tick_s, tick_s + interval_s
        if k % 2 == 1 and answer.wait_s > 0.6:
            np.testing.assert_allclose(twist, LIMITS.capped(wanted)[0], atol=ROUNDING)
    for _ in range(40):
        last, last_s = stage.follow(wanted, last_s + TICK_S), last_s + TICK_S
    for tick_s, _ in ticks(run, last_s + TICK_S, last_s + 0.5):
        twist = stage.sample(tick_s)
        require_within_limits(twist, last, tick_s - last_s)
        aside = np.abs(twist * np.linalg.norm(last) - last * np.linalg.norm(twist)).max()
        assert twist @ last >= 0.0 and aside <= ROUNDING, "not braking straight"
        last, last_s = twist, tick_s
    assert not stage.is_moving


# Stopping -----------------------------------------------------------------------------------------

#: A box so large that it changes nothing, and needs a pose all the same.
BOX = {"workspace_min": (-5.0, -5.0, -5.0), "workspace_max": (5.0, 5.0, 5.0)}
RAMPS, CUTS = ("fade", "pose"), ("stop", "reset", "non_finite")


@property_of(800)
@given(
    runs(chunks=False),
    st.sampled_from((*RAMPS, *CUTS, "late")),
    st.floats(0.0, 0.3),
    st.sampled_from([0.0, 0.1, 0.3]),
)
def every_stop_is_zero_in_time(run: Run, cause: str, after_s: float, decay_s: float) -> None:
    """Ramp causes within decay_time, cuts at the next tick; and the arm stays where it is."""
    stage = a_stage(run.action_hz, twist_mode=run.mode, decay_time=decay_s, **BOX)
    now_s, period_s = 0.0, 1.0 / run.action_hz
    for k, answer in enumerate(run.answers):
        plan = stage.plan(prediction(answer.actions), POSE)
        stage.execute(plan, now_s)
        wait_s = after_s if k == len(run.answers) - 1 else answer.wait_s
        for tick_s, interval_s in ticks(run, now_s, now_s + wait_s):
            stage.sample(tick_s, POSE)
            now_s = tick_s + interval_s
    last = ramp_time_s(stage.sample(now_s, POSE))
    pose: EndEffectorPose | None = POSE
    limit_s = decay_s if cause in RAMPS else 0.0
    if cause == "pose":
        pose = dataclasses.replace(POSE, age_s=0.31)
    elif cause == "late":
        # No answer comes any more: the last step takes the time of the longest period, or what the
        # limits ask for it; it is held; then the arm brakes, and makes good what it was behind.
        assert plan.steps is not None
        step_s = max(period_s + 0.6, shortest_time_s(plan.steps[0]))
        limit_s = step_s + HOLD_MAX_S + 0.3
    elif cause == "non_finite":
        stage._streamer.sample = lambda _now_s: np.full(6, np.nan)  # type: ignore[method-assign]
    elif cause == "fade":
        stage.fade(now_s)
    else:
        getattr(stage, cause)()
    start_s = now_s
    for tick_s, _ in ticks(run, now_s, now_s + limit_s + 0.3):
        twist = stage.sample(tick_s, pose)
        size = ramp_time_s(twist)
        if cause in RAMPS:
            assert size <= last + ROUNDING, "faster while stopping"
        last = size
        if tick_s - start_s >= limit_s - ROUNDING:
            assert size == 0.0, f"{cause}: {twist} after {tick_s - start_s} s"
