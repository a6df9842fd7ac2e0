"""What the node does while a policy is loaded: commands in, twists out. No rclpy in here.

Callbacks only store; the policy's thread answers (`Answering`); `tick` is called at the stream
rate. One lock guards what they share, and nothing slow happens while it is held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openvla_ros.config import NodeConfig
from openvla_ros.control.motion import MotionStage, complete_spec
from openvla_ros.control.pose import EndEffectorPose
from openvla_ros.control.states import Reason, State
from openvla_ros.control.supervisor import Supervisor, Verdict
from openvla_ros.ros.answering import Answering
from openvla_ros.ros.decoding import Decoder
from openvla_ros.ros.frames import Answer, Clocks, Tick
from openvla_ros.ros.ledger import Ledger
from openvla_ros.ros.shared_state import SharedState
from openvla_ros.types import Policy

GRIPPER_REPEAT_S = 1.0


class Session:
    """Owns the policy, its thread and the motion stage between configure and cleanup."""

    def __init__(
        self,
        policy: Policy,
        config: NodeConfig,
        *,
        decode: Decoder,
        clocks: Clocks,
        on_answer: Callable[[Answer], None],
        log: Any,
        ee_pose: Callable[[], EndEffectorPose | None] = lambda: None,
    ) -> None:
        """Start the policy's thread; nothing is answered before `begin`.

        Args:
            policy: Loaded and self-tested.
            config: Checked parameters.
            decode: Message → (H, W, 3) uint8 RGB.
            clocks: Time, from outside.
            on_answer: Publishes an answer; called in the policy's thread.
            log: A logger with `error` and `warning`.
            ee_pose: Where the end effector is, and how old that is; None when it is unknown.

        Raises:
            ConfigurationError: The robot expects other actions than the policy gives.
        """
        self.policy = policy
        self._ee_pose = ee_pose
        self._was_moving = False
        self._gripper_sent: tuple[float, float] | None = None  # opening, steady seconds
        spec = complete_spec(
            policy.action_spec, config.action.overrides(), config.profile.expected()
        )
        self._shared = SharedState(
            config,
            clocks,
            Supervisor(config.inputs, config.timing),
            MotionStage(spec, config.motion, config.gripper),
            log,
        )
        self._answering = Answering(
            policy,
            self._shared,
            decode=decode,
            on_answer=on_answer,
            ee_pose=lambda: self._ee_pose(),
        )
        self.image = self._answering.image
        self.image_age_s = self._answering.image_age_s
        self.predict_once = self._answering.predict_once
        self.wait_until_idle = self._answering.wait_until_idle

    # Commands -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Activate: count from zero and answer frames."""
        shared = self._shared
        with shared.lock:
            shared.ledger = Ledger()
            shared.supervisor.reset()
            shared.supervisor.release()
            shared.stage.reset()
            self._answering.forget_image()
            self._gripper_sent = None
            shared.is_active = True

    def end(self) -> None:
        """Deactivate: when this returns, no twist and no answer leaves any more."""
        shared = self._shared
        with shared.lock:
            shared.is_active = False
            shared.activation += 1  # an answer in flight belongs to the past
            shared.stage.reset()
            self._answering.drop_waiting()

    def close(self) -> bool:
        """End the thread; return False when the policy is still busy after a while."""
        self.end()
        return self._answering.close()

    @property
    def is_active(self) -> bool:
        """True between `begin` and `end`."""
        return self._shared.is_active

    @property
    def is_closed(self) -> bool:
        """True once `close` was called: this session answers nothing any more."""
        return self._answering.is_closed

    @property
    def ledger(self) -> Ledger:
        """What has passed since activation."""
        return self._shared.ledger

    @property
    def config(self) -> NodeConfig:
        """The parameters in force."""
        return self._shared.config

    def configure(self, config: NodeConfig) -> None:
        """Use new limits and thresholds from now on.

        Raises:
            ConfigurationError: The robot expects other actions; everything stays as it was.
        """
        shared = self._shared
        spec = complete_spec(
            self.policy.action_spec, config.action.overrides(), config.profile.expected()
        )
        with shared.lock:
            shared.config = config
            shared.supervisor.inputs, shared.supervisor.timing = config.inputs, config.timing
            self._answering.set_rate(config.timing.policy_rate)
            shared.stage.spec = spec
            shared.stage.configure(config.motion, config.gripper)
            if not config.motion.motion_enabled:
                shared.stage.stop()

    def set_instruction(self, text: str) -> None:
        """Follow another instruction; answers to the old one are dropped."""
        shared = self._shared
        with shared.lock:
            if text == shared.supervisor.instruction:
                return
            shared.supervisor.instruction = text
            self._answering.drop_waiting()
            shared.stage.fade(shared.clocks.steady_s())

    def hold(self) -> None:
        """The operator stops the arm: zero from the next tick on."""
        with self._shared.lock:
            self._shared.supervisor.hold()
            self._shared.stage.stop()

    def release(self) -> str:
        """The operator lets the arm move again; return why it cannot, or ""."""
        with self._shared.lock:
            self._shared.supervisor.release()
            verdict = self.verdict()
            return verdict.detail if verdict.state is State.FAULT else ""

    def reset(self) -> None:
        """Clear a fault, what is known of the camera, and the gripper's memory."""
        with self._shared.lock:
            self._shared.supervisor.reset()
            self._shared.stage.reset()
            self._gripper_sent = None

    def fail(self, reason: Reason, detail: str) -> None:
        """Stop until `reset`: something broke outside the policy."""
        with self._shared.lock:
            self._shared.supervisor.fail(reason, detail)
            self._shared.stage.stop()

    def clock_jumped(self) -> None:
        """ROS time jumped: drop what belongs to the old time."""
        with self._shared.lock:
            self._shared.supervisor.clock_jumped()
            self._answering.drop_waiting()
            self._shared.stage.stop()

    def obstacle_to_motion(self) -> str:
        """Why motion cannot be enabled, in words; "" when it can."""
        with self._shared.lock:
            verdict = self.verdict()
            is_fault = verdict.state is State.FAULT
            return verdict.detail if is_fault else self._shared.stage.obstacle()

    # Output -------------------------------------------------------------------------------------

    def verdict(self) -> Verdict:
        """What the node does now, and why."""
        shared = self._shared
        with shared.lock:
            verdict = shared.supervisor.assess(
                shared.clocks.steady_s(), self._answering.busy_since_s
            )
            if verdict.state is not State.RUNNING:
                return verdict
            if not shared.config.motion.motion_enabled:
                return Verdict(State.RUNNING, Reason.OK, "dry run: motion_enabled is false.")
            obstacle = shared.stage.obstacle()
            if obstacle:
                return Verdict(State.HOLD, Reason.MOTION_UNKNOWN, obstacle)
            lost = shared.stage.pose_obstacle(self._ee_pose())
            return Verdict(State.HOLD, Reason.TF_UNAVAILABLE, lost) if lost else verdict

    def tick(self, publish: Callable[[Tick], None]) -> Verdict:
        """Publish the twist of this moment and return the verdict it rests on.

        `publish` runs under the lock: no twist can slip out after `end` or `hold` has returned.
        """
        shared, stage = self._shared, self._shared.stage
        with shared.lock:
            now_s = shared.clocks.steady_s()
            verdict = self.verdict()
            if not shared.is_active:
                return verdict
            may_move = verdict.may_move and shared.config.motion.motion_enabled
            if self._was_moving and not may_move:
                if verdict.stops_at_once:
                    stage.stop()
                else:
                    stage.fade(now_s)
            self._was_moving = may_move
            twist = stage.sample(now_s, self._ee_pose())
            shared.ledger.commands.mark(now_s)
            publish(Tick(twist, self._gripper_command(now_s) if may_move else None))
            return verdict

    def _gripper_command(self, now_s: float) -> float | None:
        """The opening to publish now: when it changed, and once a second."""
        is_open = self._shared.stage.gripper_is_open
        if is_open is None:
            return None
        opening = 1.0 if is_open else 0.0
        if self._gripper_sent is not None:
            last, sent_s = self._gripper_sent
            if opening == last and now_s - sent_s < GRIPPER_REPEAT_S:
                return None
        self._gripper_sent = (opening, now_s)
        return opening
