"""What must hold for every motion, as properties that can be run against any implementation.

test_motion_properties.py runs them against ours, and against mutants that must fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from openvla_ros.config.motion import GripperConfig, MotionConfig
from openvla_ros.control.displacement import StepLimits, displacement, euler_matrix
from openvla_ros.control.motion import MotionStage
from openvla_ros.control.pose import (
    EndEffectorPose,
    Pose,
    exponential_map,
    integrate_twist,
    rotation_to_quaternion,
)
from openvla_ros.control.slew import AccelerationLimits, SpeedLimits
from openvla_ros.control.target import Leash, TargetPose
from openvla_ros.control.twist import StreamSettings, TwistStreamer
from openvla_ros.mock_policy import ACTION_SPEC
from openvla_ros.types import ActionSpec, Prediction

TICK_S = 0.02
LINEAR_SPEED, ANGULAR_SPEED, LINEAR_ACCEL, ANGULAR_ACCEL = 0.25, 1.0, 5.0, 10.0
HOLD_MAX_S, DECAY_S = 0.1, 0.1
ROUNDING = 1e-9


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


# Cases -----------------------------------------------------------------------------------------


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
def runs(draw: st.DrawFn, *, regular: bool = False, chunks: bool = True) -> Run:
    """Random runs; `regular`: every answer comes when its step is over, or a little later."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    action_hz = draw(st.sampled_from([1.0, 3.0, 5.0, 7.3, 10.0, 15.0, 20.0, 30.0]))
    count = draw(st.integers(1, 6))
    sizes = draw(st.sampled_from([0.05, 0.02, 0.005]))
    answers = []
    for _ in range(count):
        steps = int(rng.integers(1, 5)) if chunks and not regular else 1
        actions = np.zeros((steps, 7))
        actions[:, 0:3] = rng.uniform(-sizes, sizes, (steps, 3))
        actions[:, 3:6] = rng.uniform(-5 * sizes, 5 * sizes, (steps, 3))
        what = rng.integers(0, 6)
        if what == 0:
            actions[:, 0:6] = 0.0  # no motion at all
        elif what == 1 and answers:
            actions = -answers[-1].actions  # back where it came from
        elif what == 2:
            actions[:, rng.integers(0, 6, 3)] = 0.0
        period_s = len(actions) / action_hz
        if regular:
            wait_s = period_s * float(rng.uniform(1.0, 1.3))
        else:
            wait_s = period_s * float(rng.choice([0.3, 0.9, 1.0, 1.1, 2.5]) * rng.uniform(0.8, 1.2))
        # A gap longer than this adds nothing but time.
        answers.append(Answer(actions, min(wait_s, period_s + 0.6), bool(rng.integers(0, 8) == 0)))
    jitter = draw(st.sampled_from([0.0, 0.3, 0.95]))
    intervals = TICK_S * (1.0 - jitter * rng.uniform(0.0, 1.0, 7))
    mode = draw(st.sampled_from(["stretch", "exact", "hold"]))
    return Run(tuple(answers), action_hz, mode, tuple(intervals.tolist()))


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


def ramp_time_s(twist: np.ndarray) -> float:
    """Time in which the acceleration limits allow to stop: how fast translation or rotation is."""
    return AccelerationLimits(LINEAR_ACCEL, ANGULAR_ACCEL).ramp_time_s(twist)


# Displacement of the stream ----------------------------------------------------------------------


@property_of(2500)
@given(runs())
def an_action_moves_no_further_than_its_displacement(run: Run) -> None:
    """Per chunk, for any time between answers, any rate, jittering ticks, all modes, every axis."""
    stream = TwistStreamer(
        StreamSettings(run.mode, TICK_S, HOLD_MAX_S, DECAY_S, SpeedLimits(0.25, 1.0))
    )
    now_s, step_s = 0.0, 1.0 / run.action_hz
    for answer in run.answers:
        steps = answer.actions[:, 0:6]
        for _ in range(1 + answer.is_repeated):
            stream.accept(steps, step_s, now_s)
        total, path = np.zeros(6), np.abs(steps).sum(axis=0)
        extra = np.abs(steps[-1]) * (HOLD_MAX_S / step_s if run.mode == "hold" else 0.0)
        for tick_s, interval_s in ticks(run, now_s, now_s + answer.wait_s):
            twist = stream.sample(tick_s)
            assert np.linalg.norm(twist[0:3]) <= LINEAR_SPEED + ROUNDING
            assert np.linalg.norm(twist[3:6]) <= ANGULAR_SPEED + ROUNDING
            total += twist * interval_s
            now_s = tick_s + interval_s
        excess = float((np.abs(total) - path - extra).max())
        assert excess <= ROUNDING, f"{run.mode}: {excess} further than {steps}"
        if len(steps) == 1:
            assert (total * steps[0] >= -ROUNDING).all(), "the arm moved against its action"


# The whole stage ----------------------------------------------------------------------------------


@property_of(1200)
@given(runs())
def no_limit_is_ever_exceeded(run: Run) -> None:
    """Speed at every tick, acceleration between any two, for everything the policy may answer."""
    stage = a_stage(run.action_hz, twist_mode=run.mode)
    now_s, last, last_s = 0.0, np.zeros(6), -TICK_S
    moved = 0.0
    for answer in run.answers:
        plan = stage.plan(prediction(answer.actions * 3.0))  # beyond the clip of a step too
        for _ in range(1 + answer.is_repeated):
            stage.execute(plan, now_s)
        for tick_s, interval_s in ticks(run, now_s, now_s + answer.wait_s):
            twist = stage.sample(tick_s)
            change, allowed_s = np.abs(twist - last), tick_s - last_s
            assert np.linalg.norm(twist[0:3]) <= LINEAR_SPEED + ROUNDING
            assert np.linalg.norm(twist[3:6]) <= ANGULAR_SPEED + ROUNDING
            assert np.linalg.norm(change[0:3]) <= LINEAR_ACCEL * allowed_s + ROUNDING, "abrupt"
            assert np.linalg.norm(change[3:6]) <= ANGULAR_ACCEL * allowed_s + ROUNDING, "abrupt"
            last, last_s, now_s = twist, tick_s, tick_s + interval_s
            moved += float(np.abs(twist).sum())
    if all(answer.wait_s > TICK_S for answer in run.answers):
        assert moved > 0.0 or not any(a.actions[:, 0:6].any() for a in run.answers)


@property_of(1200)
@given(runs(regular=True))
def a_sequence_arrives_where_its_displacements_add_up_to(run: Run) -> None:
    """Answers that are not too early: nothing is lost to limits, ticks or jitter, nothing added.

    The slew stage changes the sum by less than 1 µm (2 % would be allowed), for any ticks. Faster
    than the limits for long is another thing: what full speed cannot do in one step is dropped.
    """
    run = dataclasses.replace(run, mode="stretch" if run.mode == "hold" else run.mode)
    stage = a_stage(run.action_hz, twist_mode=run.mode)
    step_s, now_s, total, wanted = 1.0 / run.action_hz, 0.0, np.zeros(6), np.zeros(6)
    limits = SpeedLimits(LINEAR_SPEED, ANGULAR_SPEED)
    path, is_feasible = 0.0, True
    for k, answer in enumerate(run.answers):
        plan = stage.plan(prediction(answer.actions))
        assert plan.steps is not None
        is_feasible &= limits.shortest_time_s(plan.steps[0]) <= step_s
        stage.execute(plan, now_s)
        wanted, path = wanted + plan.steps[0], path + float(np.abs(plan.steps[0]).sum())
        wait_s = answer.wait_s + (3.0 * step_s + 1.0 if k == len(run.answers) - 1 else 0.0)
        for tick_s, interval_s in ticks(run, now_s, now_s + wait_s):
            twist = stage.sample(tick_s)
            total += twist * interval_s
            now_s = tick_s + interval_s
    assert not twist.any(), f"still moving: {twist}"
    if is_feasible:
        np.testing.assert_allclose(total, wanted, atol=1e-6)
    assert float(np.abs(total).sum()) <= path + 1e-6, "further than all displacements together"


steps_6 = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).uniform(-1.0, 1.0, 6)
)


@property_of(800)
@given(steps_6, st.floats(0.001, 0.2), st.floats(0.0, 1.0), st.sampled_from([1.0, 5.0, 15.0]))
def an_action_from_rest_keeps_its_direction(
    way: np.ndarray, size_m: float, turn: float, action_hz: float
) -> None:
    """However fast it is: every twist is parallel to the step, in all six dimensions."""
    step = way * np.repeat([size_m, size_m * 5.0 * turn], 3)
    stage = a_stage(action_hz, delta_position=0.5, delta_rotation=1.5)
    action = np.concatenate([step, [1.0]])[None]
    plan = stage.plan(prediction(action))
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
@given(steps_6, st.floats(0.001, 0.02), st.sampled_from([1.0, 3.0, 5.0, 10.0, 15.0, 30.0]))
def an_action_takes_the_time_of_its_step(way: np.ndarray, size_m: float, action_hz: float) -> None:
    """Half of it in half the time, give or take what acceleration needs, and then all of it."""
    step = way * np.repeat([size_m, size_m * 5.0], 3)
    stage = a_stage(action_hz)
    plan = stage.plan(prediction(np.concatenate([step, [1.0]])[None]))
    assert plan.steps is not None
    duration_s = max(1.0 / action_hz, SpeedLimits().shortest_time_s(plan.steps[0]))
    stage.execute(plan, 0.0)
    total, count = np.zeros(6), int(duration_s / TICK_S)
    for k in range(count):
        total += stage.sample(k * TICK_S) * TICK_S
    done = float(total @ plan.steps[0] / (plan.steps[0] @ plan.steps[0]))
    ramp_s = ramp_time_s(plan.steps[0] / duration_s)
    assert abs(done - count * TICK_S / duration_s) <= (ramp_s + TICK_S) / duration_s, done
    for k in range(count, count + 25):
        total += stage.sample(k * TICK_S) * TICK_S
    np.testing.assert_allclose(total, plan.steps[0], atol=1e-9)


# Stopping -----------------------------------------------------------------------------------------

#: A box so large that it changes nothing, and needs a pose all the same.
BOX = {"workspace_min": (-5.0, -5.0, -5.0), "workspace_max": (5.0, 5.0, 5.0)}
POSE = EndEffectorPose(np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]), 0.0)
STOPS = ("fade", "stop", "reset", "pose", "non_finite", "late")


@property_of(1200)
@given(
    runs(chunks=False),
    st.sampled_from(STOPS),
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
    limit_s, is_ramp = decay_s, cause in ("fade", "pose")
    if cause == "fade":
        stage.fade(now_s)
    elif cause == "pose":
        pose = dataclasses.replace(POSE, age_s=0.31)
    elif cause == "late":
        # No answer comes any more: the last step takes the time of the longest period, or what the
        # limits ask for it and for what it took over; it is held; then the arm brakes, and makes
        # good what it was behind.
        assert plan.steps is not None
        at_limit_s = SpeedLimits(LINEAR_SPEED, ANGULAR_SPEED).shortest_time_s(plan.steps[0])
        limit_s = max(period_s + 0.6, at_limit_s + period_s) + HOLD_MAX_S + 0.3
    elif cause == "non_finite":
        stage._streamer.sample = lambda _now_s: np.full(6, np.nan)  # type: ignore[method-assign]
        limit_s = 0.0
    else:
        getattr(stage, cause)()
        limit_s = 0.0
    start_s = now_s
    for tick_s, _ in ticks(run, now_s, now_s + limit_s + 0.3):
        twist = stage.sample(tick_s, pose)
        size = ramp_time_s(twist)
        if is_ramp:
            assert size <= last + ROUNDING, "faster while stopping"
        last = size
        if tick_s - start_s >= limit_s - ROUNDING:
            assert size == 0.0, f"{cause}: {twist} after {tick_s - start_s} s"


# Rotation -----------------------------------------------------------------------------------------

angles = st.floats(-1.4, 1.4, allow_nan=False)
turns = st.tuples(angles, angles, angles).map(np.array)
WIDE = StepLimits(position_m=10.0, rotation_rad=1.5)


@property_of(1500)
@given(turns, turns, st.sampled_from(["base", "ee"]), st.sampled_from(["base", "ee"]))
def rotation_and_translation_compose_on_the_side_of_the_spec(
    rpy: np.ndarray, tool_rpy: np.ndarray, translation_frame: str, rotation_frame: str
) -> None:
    """Rz Ry Rx from the left in base axes, from the right in tool axes: exactly, for any angle."""
    spec = dataclasses.replace(
        ACTION_SPEC, translation_frame=translation_frame, rotation_frame=rotation_frame
    )
    tool = euler_matrix(tool_rpy)
    about = [exponential_map(v) for v in np.diag(rpy)]
    turned = about[2] @ about[1] @ about[0]
    action = np.concatenate([rpy * 0.01, rpy, [1.0]])[None]
    step = displacement(action, spec, limits=WIDE, ee_rotation=tool).steps[0]
    expected = turned @ tool if rotation_frame == "base" else tool @ turned
    error = float(np.abs(exponential_map(step[3:6]) @ tool - expected).max())
    assert error < 1e-9, f"{rotation_frame}: off by {error}"
    shift = rpy * 0.01 if translation_frame == "base" else tool @ (rpy * 0.01)
    np.testing.assert_allclose(step[0:3], shift, atol=1e-12)


@property_of(400)
@given(turns, turns, turns)
def a_chunk_in_tool_axes_turns_with_the_tool(
    first: np.ndarray, second: np.ndarray, tool_rpy: np.ndarray
) -> None:
    """Each step is given in the axes in which the one before it has left the tool."""
    spec = dataclasses.replace(ACTION_SPEC, translation_frame="ee", rotation_frame="ee")
    tool = euler_matrix(tool_rpy)
    actions = np.array([[0.01, 0.0, 0.0, *first, 1.0], [0.01, 0.0, 0.0, *second, 1.0]])
    steps = displacement(actions, spec, limits=WIDE, ee_rotation=tool).steps
    middle = tool @ euler_matrix(first)
    np.testing.assert_allclose(steps[1, 0:3], middle[:, 0] * 0.01, atol=1e-12)
    end = exponential_map(steps[1, 3:6]) @ exponential_map(steps[0, 3:6]) @ tool
    np.testing.assert_allclose(end, middle @ euler_matrix(second), atol=1e-9)


# Workspace ----------------------------------------------------------------------------------------


@property_of(500)
@given(runs(chunks=False), st.sampled_from([0.0, 0.02, 0.1, 0.29]), steps_6)
def the_end_effector_stays_in_its_box(run: Run, age_s: float, start: np.ndarray) -> None:
    """Whatever the policy wants and however old the pose, and inside nothing is changed."""
    half = np.array([0.15, 0.15, 0.15])
    box = {"workspace_min": tuple(-half), "workspace_max": tuple(half)}
    stage = a_stage(run.action_hz, twist_mode=run.mode, workspace_margin=0.02, **box)
    free = a_stage(run.action_hz, twist_mode=run.mode)
    history = [(-1.0, start[0:3] * 0.12)]  # times and positions of the arm
    now_s, was_at_edge = 0.0, False
    for answer in run.answers:
        push = answer.actions.copy()
        push[:, 0] += 0.02
        pose = EndEffectorPose(history[-1][1], POSE.quaternion, 0.0)
        for each in (stage, free):
            each.execute(each.plan(prediction(push), pose), now_s)
        for tick_s, interval_s in ticks(run, now_s, now_s + answer.wait_s):
            seen = next(p for t, p in reversed(history) if t <= tick_s - age_s or t < 0.0)
            twist = stage.sample(tick_s, EndEffectorPose(seen, POSE.quaternion, age_s))
            unbound = free.sample(tick_s)
            position = history[-1][1]
            near_m = 0.02 + LINEAR_SPEED * (age_s + 2.0 * TICK_S)
            was_at_edge |= bool((np.abs(position) > half - near_m).any())
            if not was_at_edge:
                np.testing.assert_allclose(twist, unbound, atol=ROUNDING)
            history.append((tick_s + interval_s, position + twist[0:3] * interval_s))
            now_s = tick_s + interval_s
            outside = float((np.abs(history[-1][1]) - half).max())
            # The pose is extrapolated with the speed of now; meanwhile it has changed by a·t.
            blind_m = min(LINEAR_SPEED, LINEAR_ACCEL * age_s) * age_s
            assert outside <= max(blind_m - 0.02, 0.0) + ROUNDING, f"{outside} m outside the box"


# Gripper ------------------------------------------------------------------------------------------


@property_of(700)
@given(
    st.lists(st.floats(0.0, 1.0), min_size=2, max_size=30),
    st.sampled_from([(1.0, 0.0), (0.0, 1.0), (-1.0, 1.0), (1.0, -1.0)]),
)
def the_gripper_does_what_the_dataset_means(
    openings: list[float], ends: tuple[float, float]
) -> None:
    """A clear majority in a row decides, in the polarity of the dataset, and nothing else does."""
    open_value, closed_value = ends
    stage = a_stage(
        spec=dataclasses.replace(ACTION_SPEC, gripper_open=open_value, gripper_closed=closed_value)
    )
    expected: bool | None = None
    votes: list[bool | None] = []
    for opening in openings:
        value = closed_value + opening * (open_value - closed_value)
        plan = stage.plan(prediction(np.array([[0.0] * 6 + [value]])))
        assert abs(plan.gripper_opening - opening) < 1e-9
        stage.observe(plan)
        is_open, is_closed = opening > 0.55 + 1e-9, opening < 0.45 - 1e-9
        if not (is_open or is_closed or 0.45 + 1e-9 < opening < 0.55 - 1e-9):
            return  # on the edge of the band rounding decides
        votes.append(True if is_open else False if is_closed else None)
        if len(votes) >= 2 and votes[-1] is not None and votes[-1] == votes[-2]:
            expected = votes[-1]
        assert stage.gripper_is_open is expected


# Target pose --------------------------------------------------------------------------------------


@property_of(400)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def the_target_follows_the_twist_on_a_leash(seed: int, lag: float) -> None:
    """Never further from the arm than the leash; the sum of all twists while it is slack."""
    rng = np.random.default_rng(seed)
    leash = Leash(0.03, 0.1)
    target, measured, ideal = TargetPose(leash), Pose(), Pose()
    twist, was_slack = np.zeros(6), True
    for k in range(25):
        if k % 8 == 0:
            twist = rng.uniform(-1.0, 1.0, 6) * np.repeat([0.15, 0.6], 3)
        pose = target.follow(twist, k * TICK_S, measured)
        distance = float(np.linalg.norm(pose.position - measured.position))
        turn = pose.rotation @ measured.rotation.T
        angle = float(np.arccos(np.clip((np.trace(turn) - 1.0) / 2.0, -1.0, 1.0)))
        assert distance <= leash.position_m + ROUNDING and angle <= leash.rotation_rad + 1e-6
        was_slack &= not target.was_pulled
        if was_slack:
            np.testing.assert_allclose(pose.position, ideal.position, atol=1e-9)
            np.testing.assert_allclose(pose.rotation, ideal.rotation, atol=1e-9)
        ideal = integrate_twist(ideal, twist[0:3], twist[3:6], TICK_S)
        follow = twist * lag  # an arm that follows this part of its command
        measured = integrate_twist(measured, follow[0:3], follow[3:6], TICK_S)
    assert rotation_to_quaternion(measured.rotation).shape == (4,)
