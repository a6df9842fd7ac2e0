"""What must hold for frames, the workspace, the gripper and the target pose, for random cases.

test_motion_properties.py runs the properties against our implementation and against mutants.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from motion_cases import (
    LINEAR_ACCEL,
    LINEAR_SPEED,
    POSE,
    ROUNDING,
    TICK_S,
    Run,
    a_stage,
    prediction,
    property_of,
    runs,
    six_numbers,
    ticks,
)

from openvla_ros.control.displacement import StepLimits, displacement, euler_matrix
from openvla_ros.control.pose import (
    EndEffectorPose,
    Pose,
    exponential_map,
    integrate_twist,
    rotation_to_quaternion,
)
from openvla_ros.control.target import Leash, TargetPose
from openvla_ros.mock_policy import ACTION_SPEC

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
@given(runs(chunks=False), st.sampled_from([0.0, 0.02, 0.1, 0.29]), six_numbers)
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
