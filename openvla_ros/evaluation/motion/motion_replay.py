"""The actions of one episode through the real motion stage, on a clock that is only a number.

What the node would stream if every answer came without delay: the same plans, limits and ramps.
This file knows no ROS and waits for nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from openvla_ros.config.motion import GripperConfig, MotionConfig
from openvla_ros.control.displacement import (
    StepLimits,
    displacement,
    euler_matrix,
    needs_orientation,
)
from openvla_ros.control.motion import ACTION_DIM, MotionPlan, MotionStage
from openvla_ros.control.pose import EndEffectorPose, Pose, integrate_twist, rotation_to_quaternion
from openvla_ros.control.safety import SafetyReport
from openvla_ros.control.states import Drop
from openvla_ros.errors import MotionError
from openvla_ros.types import ActionSpec, Prediction

SETTLE_MOST_S = 120.0  # an arm that is allowed 1 mm/s needs 50 s for one step of BridgeData
_ROUNDING_S = 1e-9
_UNLIMITED = StepLimits(np.inf, np.inf)


@dataclass(frozen=True)
class StreamedMotion:
    """What the arm was told, tick by tick: T steps, N ticks. Metres and radians, base axes.

    Attributes:
        due_s: (T,) seconds: when each action was given to the stage.
        times_s: (N,) seconds on the same clock: when each twist was sent; the last one is zero.
        twists: (N, 6) m/s and rad/s; each holds until the next.
        poses: N + 1 poses: where the end effector is when a twist is sent, and at the end.
        plans: T plans: clipped axes, refusals and their words.
        gripper_is_open: T decisions of the gripper logic; None before its first one.
        report: Interventions by reason.
        asked: (6,) sum of the steps that were executed, after clip and scale.
        reached: (6,) integral of the twists.
    """

    due_s: np.ndarray
    times_s: np.ndarray
    twists: np.ndarray
    poses: tuple[Pose, ...]
    plans: tuple[MotionPlan, ...]
    gripper_is_open: tuple[bool | None, ...]
    report: SafetyReport
    asked: np.ndarray
    reached: np.ndarray

    @property
    def end(self) -> Pose:
        """Where the end effector comes to rest."""
        return self.poses[-1]

    @property
    def is_executed(self) -> np.ndarray:
        """(T,) bool: steps that were not refused."""
        return np.array([plan.refusal is Drop.NONE for plan in self.plans], dtype=bool)

    @property
    def clipped(self) -> np.ndarray:
        """(T, 6) bool: axes x y z roll pitch yaw of the action that were cut to the limit."""
        masks = np.array([plan.clip_mask for plan in self.plans])
        return (masks[:, None] >> np.arange(6) & 1).astype(bool)

    def pose_at(self, time_s: float) -> Pose:
        """Where the end effector is at the first tick that is not before a time."""
        return self.poses[int(np.searchsorted(self.times_s, time_s - _ROUNDING_S))]


def stream_actions(
    actions: np.ndarray,
    spec: ActionSpec,
    motion: MotionConfig,
    gripper: GripperConfig,
    *,
    unnorm_key: str = "",
    rate_hz: float | None = None,
    due_s: np.ndarray | None = None,
    is_valid: np.ndarray | None = None,
    start: Pose | None = None,
) -> StreamedMotion:
    """Return the motion that one episode of actions becomes.

    A workspace and actions in tool axes need the pose of the end effector. Here it is the
    integrated one: an arm that follows every twist exactly, from `start`. A refused step stops the
    arm within `decay_time`, as in the node, and the next good one sets it going again.

    Args:
        actions: (T, 7) in dataset units; a row with NaN is refused, as the node does.
        spec: What the numbers mean; complete it with `control.motion.complete_spec`.
        motion: Limits and scales, `speed_scale` among them.
        gripper: Threshold, hysteresis, votes.
        unnorm_key: Statistics of the actions; empty = those of `spec`.
        rate_hz: Actions per second; None = `spec.action_hz`.
        due_s: (T,) seconds, increasing, from 0: when each action is given instead of evenly.
        is_valid: (T,) bool: False where the model generated an id that is no action.
        start: Pose at the first action, in base axes of this robot; None = the identity, which is
            nowhere in particular: give it when there is a workspace or actions are in tool axes.

    Raises:
        MotionError: `spec` does not say what motion needs (the text names the parameters), or an
            action does not have seven numbers.
    """
    actions = _seven_numbers(actions)
    stage = MotionStage(spec, motion, gripper)
    obstacle = stage.obstacle()
    if obstacle:
        raise MotionError(obstacle)
    assert spec.action_hz is not None
    period_s = 1.0 / (rate_hz or spec.action_hz)
    due_s = np.arange(len(actions)) * period_s if due_s is None else np.asarray(due_s, np.float64)
    valid = np.ones(len(actions), bool) if is_valid is None else np.asarray(is_valid, bool)
    assert len(actions) == len(due_s) == len(valid), (actions.shape, due_s.shape, valid.shape)
    predictions = [
        as_prediction(action, unnorm_key or spec.unnorm_key, is_valid=bool(ok))
        for action, ok in zip(actions, valid, strict=True)
    ]
    run = _Run(stage, 1.0 / motion.stream_rate, has_pose=_needs_pose(spec, motion))
    run.play(predictions, due_s, period_s, start or Pose())
    return run.result(due_s)


def as_prediction(action: np.ndarray, unnorm_key: str, *, is_valid: bool = True) -> Prediction:
    """Return an (n,) action as the answer of a policy, so that the motion stage plans it."""
    chunk = np.asarray(action, dtype=np.float64)[None]
    invalid_dims = () if is_valid else (0,)  # which of them it was changes nothing for the plan
    return Prediction(chunk, chunk, [], unnorm_key, invalid_dims=invalid_dims)


def commanded_steps(
    actions: np.ndarray, spec: ActionSpec, motion: MotionConfig, start: Pose | None = None
) -> np.ndarray:
    """Return what the actions themselves say: no limits, no scales, no dead band.

    Args:
        actions: (T, 7) in dataset units.
        spec: What the numbers mean.
        motion: Its `action_rotation_rpy` turns them into the base axes of this robot.
        start: Pose at the first action, for actions in tool axes; None = the identity.

    Returns:
        (T, 6) metres and rotation vectors in radians, base axes; NaN where the action is not
        finite.

    Raises:
        MotionError: `spec` does not say what is needed.
    """
    actions = _seven_numbers(actions)
    steps = np.full((len(actions), 6), np.nan)
    is_known = np.isfinite(actions[:, :6]).all(axis=1)
    steps[is_known] = displacement(
        actions[is_known],
        spec,
        limits=_UNLIMITED,
        base_rotation=euler_matrix(np.array(motion.action_rotation_rpy)),
        ee_rotation=(start or Pose()).rotation,
    ).steps
    return steps


def pose_of_state(state: np.ndarray, motion: MotionConfig) -> Pose | None:
    """Return the pose of a recorded state in base axes of this robot; None when it holds none.

    Args:
        state: (m,) x y z [m] roll pitch yaw [rad] ..., in base axes of the dataset.
        motion: Its `action_rotation_rpy` turns the dataset's base axes into those of this robot.
    """
    if len(state) < 6 or not np.isfinite(state[:6]).all():
        return None
    turn = euler_matrix(np.array(motion.action_rotation_rpy))
    return Pose(turn @ state[:3], turn @ euler_matrix(np.asarray(state[3:6], np.float64)))


def without_unknown_box(motion: MotionConfig, start: Pose | None) -> MotionConfig:
    """Return the limits without their workspace where nobody knows where in it the arm begins."""
    if start is not None or not motion.has_workspace:
        return motion
    return dataclasses.replace(motion, workspace_min=motion.workspace_max)


@dataclass
class _Run:
    """One pass of the virtual clock."""

    stage: MotionStage
    tick_s: float
    has_pose: bool
    times_s: list[float] = field(default_factory=list)
    twists: list[np.ndarray] = field(default_factory=list)
    poses: list[Pose] = field(default_factory=list)
    plans: list[MotionPlan] = field(default_factory=list)
    gripper_is_open: list[bool | None] = field(default_factory=list)

    def play(
        self, predictions: list[Prediction], due_s: np.ndarray, period_s: float, start: Pose
    ) -> None:
        """Give every prediction at its time, and tick until the arm rests."""
        self.poses.append(start)
        end_s = float(due_s[-1]) + period_s
        for tick in range(round((end_s + SETTLE_MOST_S) / self.tick_s)):
            now_s = tick * self.tick_s
            answered = len(self.plans)
            while answered < len(due_s) and due_s[answered] <= now_s + _ROUNDING_S:
                self._answer(predictions[answered], float(due_s[answered]), now_s)
                answered += 1
            self._tick(now_s)
            if now_s >= end_s - _ROUNDING_S and not self.stage.is_moving:
                return

    def result(self, due_s: np.ndarray) -> StreamedMotion:
        """Return what was streamed."""
        twists = np.array(self.twists)
        steps = [p.steps for p in self.plans if p.refusal is Drop.NONE and p.steps is not None]
        return StreamedMotion(
            due_s=due_s,
            times_s=np.array(self.times_s),
            twists=twists,
            poses=tuple(self.poses),
            plans=tuple(self.plans),
            gripper_is_open=tuple(self.gripper_is_open),
            report=self.stage.report(self.times_s[-1]),
            asked=np.sum(steps, axis=(0, 1)) if steps else np.zeros(6),
            reached=twists.sum(axis=0) * self.tick_s,
        )

    def _answer(self, prediction: Prediction, due_s: float, now_s: float) -> None:
        plan = self.stage.plan(prediction, self._measured())
        self.stage.observe(plan)
        if plan.refusal is Drop.NONE:
            self.stage.execute(plan, due_s)
        else:
            self.stage.fade(now_s)
        self.plans.append(plan)
        self.gripper_is_open.append(self.stage.gripper_is_open)

    def _tick(self, now_s: float) -> None:
        twist = self.stage.sample(now_s, self._measured())
        self.times_s.append(now_s)
        self.twists.append(twist)
        pose = self.poses[-1]
        if twist.any():
            pose = integrate_twist(pose, twist[:3], twist[3:], self.tick_s)
        self.poses.append(pose)

    def _measured(self) -> EndEffectorPose | None:
        if not self.has_pose:
            return None
        pose = self.poses[-1]
        return EndEffectorPose(pose.position, rotation_to_quaternion(pose.rotation), age_s=0.0)


def _needs_pose(spec: ActionSpec, motion: MotionConfig) -> bool:
    return motion.has_workspace or needs_orientation(spec)


def _seven_numbers(actions: np.ndarray) -> np.ndarray:
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or not len(actions):
        raise MotionError(
            f"actions of shape {actions.shape} cannot become motion: (T, {ACTION_DIM}) are needed, "
            "T >= 1 steps of x y z roll pitch yaw gripper."
        )
    return actions
