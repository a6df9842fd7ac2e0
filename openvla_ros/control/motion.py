"""From a prediction to motion: the order in which the parts of control/ are applied.

One object per activation; the node calls it and publishes what comes out. Time is an argument.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from openvla_ros.action_specs import USER_SOURCE, require_agreement
from openvla_ros.config.motion import GripperConfig, MotionConfig
from openvla_ros.control.displacement import (
    DeadBand,
    StepLimits,
    displacement,
    euler_matrix,
    needs_orientation,
    require_convertible,
)
from openvla_ros.control.gripper import GripperLogic, opening
from openvla_ros.control.pose import EndEffectorPose, Pose, pose_problem
from openvla_ros.control.safety import (
    Intervention,
    SafetyFilter,
    SafetyReport,
    SafetySettings,
)
from openvla_ros.control.slew import AccelerationLimits, SpeedLimits
from openvla_ros.control.states import Drop
from openvla_ros.control.target import Leash, TargetPose
from openvla_ros.control.twist import StreamSettings, TwistStreamer
from openvla_ros.control.workspace import Workspace
from openvla_ros.errors import MotionError
from openvla_ros.types import ActionSpec, Prediction

ACTION_DIM = 7  # x y z roll pitch yaw gripper: the only layout that becomes a twist


@dataclass(frozen=True)
class MotionPlan:
    """What an answer of the policy means for this robot.

    Attributes:
        refusal: Drop.NONE, or why the answer cannot become motion.
        detail: The refusal in words.
        steps: (K, 6) displacement, m and rad, base axes, scaled; None when it is not known.
        clip_mask: Bits of the axes of the first step that were cut to the limit.
        clipped_steps: Steps of which some axis was cut.
        ignored_steps: Steps of which a half was within the dead band.
        gripper_opening: 0 closed ... 1 open; NaN when it is not known.
    """

    refusal: Drop = Drop.NONE
    detail: str = ""
    steps: np.ndarray | None = None
    clip_mask: int = 0
    clipped_steps: int = 0
    ignored_steps: int = 0
    gripper_opening: float = math.nan


class MotionStage:
    """Plans, streams and stops: the only way from an action to a twist."""

    def __init__(self, spec: ActionSpec, motion: MotionConfig, gripper: GripperConfig) -> None:
        self.spec = spec
        self._motion = motion
        self._streamer = TwistStreamer(_stream_settings(motion))
        self._filter = SafetyFilter(_safety_settings(motion))
        self._target = TargetPose(Leash(motion.leash_position, motion.leash_rotation))
        self._twist = np.zeros(6)
        self._is_steered = False
        self._gripper = GripperLogic(gripper.threshold, gripper.hysteresis, gripper.sticky_steps)
        self._is_inverted = gripper.invert

    @property
    def is_moving(self) -> bool:
        """True while some displacement is left to execute or to make good, or the arm brakes."""
        return self._streamer.is_moving or self._filter.is_moving

    @property
    def gripper_is_open(self) -> bool | None:
        """What the gripper logic has decided; None before its first decision."""
        return self._gripper.is_open

    def configure(self, motion: MotionConfig, gripper: GripperConfig) -> None:
        """Use new limits, scales and thresholds from the next action on."""
        self._motion = motion
        self._streamer.settings = _stream_settings(motion)
        self._filter.settings = _safety_settings(motion)
        self._target.leash = Leash(motion.leash_position, motion.leash_rotation)
        self._gripper.threshold = gripper.threshold
        self._gripper.hysteresis = gripper.hysteresis
        self._gripper.sticky_steps = gripper.sticky_steps
        self._is_inverted = gripper.invert

    def obstacle(self) -> str:
        """Why no action of this dataset can become motion, in words; "" when it can."""
        unknown = self.spec.unknown_for_motion()
        if not unknown:
            try:
                require_convertible(self.spec)
            except MotionError as error:
                return str(error)
            return ""
        names = ", ".join(n if n == "action_hz" else f"action_spec.{n}" for n in unknown)
        return (
            f"nobody has published this for the statistics '{self.spec.unnorm_key}': set the "
            f"parameters {names} to what your dataset was recorded with."
        )

    def pose_obstacle(self, ee_pose: EndEffectorPose | None) -> str:
        """Why the arm must not move on this pose of the end effector, in words; "" when it may."""
        if self._motion.has_workspace:
            need = "limits.workspace_min and limits.workspace_max set a box"
        elif needs_orientation(self.spec):
            need = f"actions of '{self.spec.unnorm_key}' are given in tool axes"
        else:
            return ""
        problem = pose_problem(ee_pose)
        return f"{problem}; it is needed because {need}." if problem else ""

    def plan(self, prediction: Prediction, ee_pose: EndEffectorPose | None = None) -> MotionPlan:
        """Return what a prediction means, without moving anything.

        Args:
            prediction: What the policy answered.
            ee_pose: Where the end effector is; needed for a workspace and for tool axes.
        """
        actions = np.asarray(prediction.actions, dtype=np.float64)
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or len(actions) == 0:
            return MotionPlan(
                Drop.NON_FINITE, f"the policy answered shape {actions.shape}, not (K, {ACTION_DIM})"
            )
        if not np.isfinite(actions).all():
            return MotionPlan(Drop.NON_FINITE, f"the policy answered {actions[0].tolist()}")
        plan = self._described(actions, ee_pose)
        if not prediction.is_valid:
            positions = ", ".join(map(str, prediction.invalid_dims))
            plan = dataclasses.replace(
                plan,
                refusal=Drop.INVALID_TOKEN,
                detail=f"the model generated ids outside the action range at positions {positions}",
            )
        return plan

    def execute(self, plan: MotionPlan, now_s: float) -> None:
        """Start to stream a plan that was not refused; it replaces what is left of the last one."""
        assert plan.refusal is Drop.NONE and plan.steps is not None
        assert self.spec.action_hz is not None
        self._streamer.accept(plan.steps, 1.0 / self.spec.action_hz, now_s)
        self._is_steered = False
        self._filter.resume()
        self._filter.count(Intervention.STEP_CLIP, plan.clipped_steps)
        self._filter.count(Intervention.DEAD_BAND, plan.ignored_steps)

    def observe(self, plan: MotionPlan) -> None:
        """Book the answer of one frame, executed or not: its gripper vote, and its faults."""
        if plan.refusal is Drop.NON_FINITE:
            self._filter.count(Intervention.NON_FINITE)
        if math.isfinite(plan.gripper_opening):
            self._gripper.update(plan.gripper_opening)

    def sample(self, now_s: float, ee_pose: EndEffectorPose | None = None) -> np.ndarray:
        """Return the (6,) twist to publish now: m/s and rad/s, base axes.

        Args:
            now_s: Steady time, seconds.
            ee_pose: Where the end effector is; without it the arm stops if it is needed.
        """
        if self.is_moving and self.pose_obstacle(ee_pose):
            self.fade(now_s)
        wanted = self._streamer.sample(now_s)
        self._filter.count(Intervention.SPEED, self._streamer.slowed_steps)
        self._streamer.slowed_steps = 0
        self._twist = self._filter.apply(wanted, now_s, ee_pose, is_steered=self._is_steered)
        return self._twist

    def follow(
        self, twist: np.ndarray, now_s: float, ee_pose: EndEffectorPose | None = None
    ) -> np.ndarray:
        """Return the (6,) twist to publish now for one that a person steers (teleoperation).

        It takes the place of `sample` in its tick and passes the same limits: speed, acceleration,
        workspace. What is left of an action is dropped. Afterwards `sample` brakes to zero, and the
        next `execute` starts an action again.

        Args:
            twist: (6,) m/s and rad/s, base axes.
            now_s: Steady time, seconds.
            ee_pose: Where the end effector is; without it the arm stops if there is a workspace.
        """
        self._streamer.stop()
        self._is_steered = True
        if not (self._motion.has_workspace and pose_problem(ee_pose)):
            self._filter.resume()
        self._twist = self._filter.apply(twist, now_s, ee_pose, is_steered=True)
        return self._twist

    def target(self, now_s: float, ee_pose: EndEffectorPose) -> Pose:
        """Return the pose to publish now instead of the twist of the last `sample`.

        Raises:
            MotionError: The measured pose is not usable.
        """
        problem = pose_problem(ee_pose)
        if problem:
            raise MotionError(f"{problem}; a target pose is never further from it than the leash.")
        target = self._target.follow(self._twist, now_s, ee_pose.pose, _workspace(self._motion))
        if self._target.was_pulled:
            self._filter.count(Intervention.LEASH)
        return target

    def release_target(self) -> None:
        """Let the target pose begin again at the measured one."""
        self._target.reset()

    def report(self, now_s: float) -> SafetyReport:
        """Return what has been changed since activation, and why."""
        return self._filter.report(now_s)

    def fade(self, now_s: float) -> None:
        """Ramp to zero within `decay_time`."""
        self._streamer.fade(now_s)
        self._filter.fade(now_s)

    def stop(self) -> None:
        """Zero from the next sample on."""
        self._streamer.stop()
        self._filter.cut()

    def reset(self) -> None:
        """Stop, count from zero, and forget the gripper and the target pose."""
        self._streamer.stop()
        self._is_steered = False
        self._filter.reset()
        self._target.reset()
        self._gripper.reset()

    def _opening(self, value: float) -> float:
        """How far the gripper shall open, 0 ... 1, for a gripper number; raises `MotionError`."""
        published = opening(value, self.spec)
        return 1.0 - published if self._is_inverted else published

    def _described(self, actions: np.ndarray, ee_pose: EndEffectorPose | None) -> MotionPlan:
        """The plan of finite actions, as far as the spec describes them."""
        motion = self._motion
        try:
            grip = self._opening(float(actions[0, 6]))
        except MotionError:
            grip = math.nan
        lost = self.pose_obstacle(ee_pose)
        if lost and needs_orientation(self.spec):
            return MotionPlan(Drop.HOLD, lost, gripper_opening=grip)
        try:
            moved = displacement(
                actions,
                self.spec,
                limits=StepLimits(motion.delta_position, motion.delta_rotation),
                dead_band=DeadBand(motion.deadband_position, motion.deadband_rotation),
                base_rotation=euler_matrix(np.array(motion.action_rotation_rpy)),
                ee_rotation=ee_pose.pose.rotation if ee_pose and not lost else None,
                linear_scale=motion.linear_scale * motion.speed_scale,
                angular_scale=motion.angular_scale * motion.speed_scale,
            )
        except MotionError as error:
            return MotionPlan(Drop.MOTION_UNKNOWN, str(error), gripper_opening=grip)
        obstacle = self.obstacle()  # the rate may still be unknown: it is needed only to move
        refusal = Drop.MOTION_UNKNOWN if obstacle else Drop.HOLD if lost else Drop.NONE
        return MotionPlan(
            refusal,
            obstacle or lost,
            moved.steps,
            moved.clip_mask,
            clipped_steps=int(moved.clipped.any(axis=1).sum()),
            ignored_steps=int(moved.ignored.any(axis=1).sum()),
            gripper_opening=grip,
        )


def complete_spec(
    spec: ActionSpec, overrides: dict[str, object], expected: Mapping[str, Any] | None = None
) -> ActionSpec:
    """Return the spec with the fields that the user has given; `sources` says so.

    Raises:
        ConfigurationError: The result is not what the profile of the robot expects.
    """
    sources = {**spec.sources, **dict.fromkeys(overrides, USER_SOURCE)}
    spec = dataclasses.replace(spec, sources=sources, **overrides)  # type: ignore[arg-type]
    require_agreement(expected or {}, spec)
    return spec


def _stream_settings(motion: MotionConfig) -> StreamSettings:
    return StreamSettings(
        mode=motion.twist_mode,
        tick_s=1.0 / motion.stream_rate,
        hold_max_s=motion.hold_max,
        decay_s=motion.decay_time,
        limits=_speed_limits(motion),
    )


def _speed_limits(motion: MotionConfig) -> SpeedLimits:
    return SpeedLimits(motion.linear_speed, motion.angular_speed)


def _safety_settings(motion: MotionConfig) -> SafetySettings:
    return SafetySettings(
        speed=_speed_limits(motion),
        acceleration=AccelerationLimits(motion.linear_accel, motion.angular_accel),
        workspace=_workspace(motion),
        tick_s=1.0 / motion.stream_rate,
        decay_s=motion.decay_time,
    )


def _workspace(motion: MotionConfig) -> Workspace | None:
    if not motion.has_workspace:
        return None
    low_x, low_y, low_z = motion.workspace_min
    high_x, high_y, high_z = motion.workspace_max
    return Workspace((low_x, low_y, low_z), (high_x, high_y, high_z), motion.workspace_margin)
