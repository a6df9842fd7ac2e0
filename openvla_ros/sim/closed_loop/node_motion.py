"""From answers to a twist by the rules of `openvla_node`, on a clock that is only a number.

The parts are the node's own: `MotionStage` plans and streams, `Supervisor` decides whether the arm
may move. What the node's threads do to time is here one attribute: the latency.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from openvla_ros.config import NodeConfig
from openvla_ros.control.motion import MotionPlan, MotionStage, complete_spec
from openvla_ros.control.pose import EndEffectorPose, Pose, rotation_to_quaternion
from openvla_ros.control.states import Drop
from openvla_ros.control.supervisor import Supervisor
from openvla_ros.errors import ConfigurationError
from openvla_ros.types import ActionSpec, Prediction

CAMERA_PERIOD_S = 0.1  # the cell's camera, which keeps the node's image time-outs quiet
BASE_FRAME = "base_link"
#: Parameters of the node that an evaluation starts from. Half the speed is for first runs on a real
#: arm; the demonstrations were made at full speed.
EVALUATION_PARAMETERS = {"motion_enabled": True, "base_frame": BASE_FRAME, "speed_scale": 1.0}
_ROUNDING_S = 1e-9


@dataclass(frozen=True)
class _Pending:
    prediction: Prediction
    picture_s: float
    due_s: float


class NodeMotion:
    """What the node sends at every tick.

    One answer is worked on at a time. The picture is taken when the policy begins, at most
    `policy_rate` times a second; the answer counts `latency_s` later, and the next picture is not
    taken before.

    Attributes:
        opening: The last gripper command; 1.0 before the first one.
        answers: How many came.
        refused: Answers that were not executed, by reason.
    """

    def __init__(self, spec: ActionSpec, config: NodeConfig, latency_s: float = 0.0) -> None:
        """Begin an episode with nothing answered.

        Args:
            spec: What the numbers of an action mean.
            config: Parameters of the node; `motion_enabled` must be true.
            latency_s: From picture to answer.

        Raises:
            ConfigurationError: The actions cannot become motion, or the latency is negative.
        """
        if not 0.0 <= latency_s < np.inf:
            raise ConfigurationError(f"the latency is {latency_s} s; it must be 0 or more.")
        spec = complete_spec(spec, config.action.overrides(), config.profile.expected())
        self._stage = MotionStage(spec, config.motion, config.gripper)
        obstacle = self._stage.obstacle()
        if obstacle or not config.motion.motion_enabled:
            raise ConfigurationError(f"the arm cannot move: {obstacle or 'motion_enabled: false.'}")
        self._supervisor = Supervisor(config)
        self._supervisor.begin()
        self._config = config
        self._latency_s = latency_s
        self._pending: _Pending | None = None
        self._next_picture_s = self._next_frame_s = 0.0
        self._was_moving = False
        self.opening = 1.0
        self.answers = 0
        self.refused: dict[str, int] = {}

    @property
    def tick_s(self) -> float:
        """Time between two twists."""
        return 1.0 / self._config.motion.stream_rate

    def instruct(self, text: str) -> None:
        """Follow an instruction."""
        self._supervisor.instruct(text)

    def tick(self, now_s: float, pose: Pose, ask: Callable[[], Prediction]) -> np.ndarray:
        """Return the (6,) twist of this tick, m/s and rad/s, base axes.

        Args:
            now_s: Simulated seconds since the episode began, increasing by `tick_s`.
            pose: Of the end effector, base frame.
            ask: Takes a picture and returns the policy's answer to it; called when the policy is
                free.
        """
        measured = EndEffectorPose(pose.position, rotation_to_quaternion(pose.rotation), age_s=0.0)
        self._see_frame(now_s)
        self._settle(now_s, measured)
        if self._pending is None and now_s >= self._next_picture_s - _ROUNDING_S:
            self._next_picture_s = now_s + 1.0 / self._config.timing.policy_rate
            self._pending = _Pending(ask(), now_s, now_s + self._latency_s)
            self._settle(now_s, measured)
        may_move = self._may_move(now_s)
        if self._was_moving and not may_move:
            self._stage.fade(now_s)
        self._was_moving = may_move
        if may_move and self._stage.gripper_is_open is not None:
            self.opening = 1.0 if self._stage.gripper_is_open else 0.0
        return self._stage.sample(now_s, measured)

    def _see_frame(self, now_s: float) -> None:
        if now_s >= self._next_frame_s - _ROUNDING_S:
            self._next_frame_s += CAMERA_PERIOD_S
            self._supervisor.image_arrived(round(now_s * 1e9) + 1, 0.0, now_s)  # 0 is "no stamp"

    def _settle(self, now_s: float, pose: EndEffectorPose) -> None:
        """Let an answer that is out take effect, or say why not."""
        pending = self._pending
        if pending is None or now_s < pending.due_s - _ROUNDING_S:
            return
        self._pending = None
        self.answers += 1
        plan = self._stage.plan(pending.prediction, pose)
        refusal, detail = self._refusal(plan, now_s - pending.picture_s)
        self._stage.observe(plan)
        self._supervisor.answered(refusal, detail)
        refusal = refusal if refusal is not Drop.NONE else plan.refusal
        if refusal is Drop.NONE and not self._may_move(now_s):
            refusal = Drop.HOLD
        if refusal is Drop.NONE:
            self._stage.execute(plan, now_s)
        else:
            name = refusal.name.lower()
            self.refused[name] = self.refused.get(name, 0) + 1

    def _refusal(self, plan: MotionPlan, age_s: float) -> tuple[Drop, str]:
        if plan.refusal in (Drop.NON_FINITE, Drop.INVALID_TOKEN):
            return plan.refusal, plan.detail
        if age_s > self._config.timing.max_action_age + _ROUNDING_S:
            return Drop.STALE, f"the picture was {age_s:.2f} s old"
        return Drop.NONE, ""

    def _may_move(self, now_s: float) -> bool:
        busy_since_s = None if self._pending is None else self._pending.picture_s
        return self._supervisor.assess(now_s, busy_since_s).may_move
