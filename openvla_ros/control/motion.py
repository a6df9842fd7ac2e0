"""From a prediction to motion: the order in which the parts of control/ are applied.

One object per activation; the node calls it and publishes what comes out. Time is an argument.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from openvla_ros.config.motion import GripperConfig, MotionConfig
from openvla_ros.control.displacement import (
    StepLimits,
    displacement,
    euler_matrix,
    require_convertible,
)
from openvla_ros.control.gripper import GripperLogic, opening
from openvla_ros.control.safety import SafetyFilter, SpeedLimits
from openvla_ros.control.states import Drop
from openvla_ros.control.twist import StreamSettings, TwistStreamer
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
        gripper_opening: 0 closed ... 1 open; NaN when it is not known.
    """

    refusal: Drop = Drop.NONE
    detail: str = ""
    steps: np.ndarray | None = None
    clip_mask: int = 0
    gripper_opening: float = math.nan


class MotionStage:
    """Plans, streams and stops: the only way from an action to a twist."""

    def __init__(self, spec: ActionSpec, motion: MotionConfig, gripper: GripperConfig) -> None:
        self.spec = spec
        self._motion = motion
        self._streamer = TwistStreamer(_stream_settings(motion))
        self._filter = SafetyFilter(_speed_limits(motion))
        self._gripper = GripperLogic(gripper.threshold, gripper.hysteresis, gripper.sticky_steps)

    @property
    def is_moving(self) -> bool:
        """True while some displacement is left to execute."""
        return self._streamer.is_moving

    @property
    def gripper_is_open(self) -> bool | None:
        """What the gripper logic has decided; None before its first decision."""
        return self._gripper.is_open

    def configure(self, motion: MotionConfig, gripper: GripperConfig) -> None:
        """Use new limits, scales and thresholds from the next action on."""
        self._motion = motion
        self._streamer.settings = _stream_settings(motion)
        self._filter.limits = _speed_limits(motion)
        self._gripper.threshold = gripper.threshold
        self._gripper.hysteresis = gripper.hysteresis
        self._gripper.sticky_steps = gripper.sticky_steps

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

    def plan(self, prediction: Prediction) -> MotionPlan:
        """Return what a prediction means, without moving anything."""
        actions = np.asarray(prediction.actions, dtype=np.float64)
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or len(actions) == 0:
            return MotionPlan(
                Drop.NON_FINITE, f"the policy answered shape {actions.shape}, not (K, {ACTION_DIM})"
            )
        if not np.isfinite(actions).all():
            return MotionPlan(Drop.NON_FINITE, f"the policy answered {actions[0].tolist()}")
        plan = self._described(actions)
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

    def vote_gripper(self, plan: MotionPlan) -> None:
        """Let the gripper logic see the answer of one frame."""
        if math.isfinite(plan.gripper_opening):
            self._gripper.update(plan.gripper_opening)

    def sample(self, now_s: float) -> np.ndarray:
        """Return the (6,) twist to publish now: m/s and rad/s, base axes."""
        return self._filter.apply(self._streamer.sample(now_s))

    def fade(self, now_s: float) -> None:
        """Ramp to zero within `decay_time`."""
        self._streamer.fade(now_s)

    def stop(self) -> None:
        """Zero from the next sample on."""
        self._streamer.stop()

    def reset(self) -> None:
        """Stop, and forget the gripper."""
        self._streamer.stop()
        self._gripper.reset()

    def _described(self, actions: np.ndarray) -> MotionPlan:
        """The plan of finite actions, as far as the spec describes them."""
        try:
            grip = opening(float(actions[0, 6]), self.spec)
        except MotionError:
            grip = math.nan
        try:
            moved = displacement(
                actions,
                self.spec,
                limits=StepLimits(self._motion.delta_position, self._motion.delta_rotation),
                base_rotation=euler_matrix(np.array(self._motion.action_rotation_rpy)),
                linear_scale=self._motion.linear_scale * self._motion.speed_scale,
                angular_scale=self._motion.angular_scale * self._motion.speed_scale,
            )
        except MotionError as error:
            return MotionPlan(Drop.MOTION_UNKNOWN, str(error), gripper_opening=grip)
        obstacle = self.obstacle()  # the rate may still be unknown: it is needed only to move
        refusal = Drop.MOTION_UNKNOWN if obstacle else Drop.NONE
        return MotionPlan(refusal, obstacle, moved.steps, moved.clip_mask, gripper_opening=grip)


def complete_spec(spec: ActionSpec, overrides: dict[str, object]) -> ActionSpec:
    """Return the spec with the fields that the user has given; `sources` says so."""
    sources = {**spec.sources, **dict.fromkeys(overrides, "set by the user")}
    return dataclasses.replace(spec, sources=sources, **overrides)  # type: ignore[arg-type]


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
