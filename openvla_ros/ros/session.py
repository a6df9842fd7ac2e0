"""What the node does while a policy is loaded: frames in, answers and twists out. No rclpy in here.

Callbacks only store; the worker's thread decodes and predicts; `tick` is called at the stream rate.
One lock guards what they share, and nothing slow happens while it is held.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from openvla_ros.config import NodeConfig
from openvla_ros.control.motion import MotionPlan, MotionStage, complete_spec
from openvla_ros.control.pose import EndEffectorPose
from openvla_ros.control.states import Drop, Reason, State
from openvla_ros.control.supervisor import Supervisor, Verdict
from openvla_ros.errors import ImageError
from openvla_ros.messages import stamp_ns
from openvla_ros.ros.decoding import Decoder
from openvla_ros.ros.frames import Answer, Clocks, Frame, Reply, Tick, age_s
from openvla_ros.ros.inference import Measured, Predictor, is_out_of_memory
from openvla_ros.ros.ledger import Ledger
from openvla_ros.ros.worker import InferenceWorker
from openvla_ros.types import Policy

JOIN_S = 2.0  # longest wait for an answer in flight, so that deactivate and SIGINT stay quick
GRIPPER_REPEAT_S = 1.0


class Session:
    """Owns the policy, the worker and the motion stage between configure and cleanup."""

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
        """Start the worker; nothing is answered before `begin`.

        Args:
            policy: Loaded and self-tested.
            config: Checked parameters.
            decode: Message → (H, W, 3) uint8 RGB.
            clocks: Time, from outside.
            on_answer: Publishes an answer; called in the worker's thread.
            log: A logger with `error` and `warning`.
            ee_pose: Where the end effector is, and how old that is; None when it is unknown.

        Raises:
            ConfigurationError: The robot expects other actions than the policy gives.
        """
        self.policy = policy
        self.config = config
        self.ledger = Ledger()
        self._log = log
        self._predictor = Predictor(policy, decode, config.inputs.image_roi, clocks.steady_s, log)
        self._clocks = clocks
        self._on_answer = on_answer
        self._lock = threading.RLock()
        self._is_active = False
        self._activation = 0
        self._newest: Frame | None = None
        self._was_moving = False
        self._gripper_sent: tuple[float, float] | None = None  # opening, steady seconds
        self._supervisor = Supervisor(config.inputs, config.timing)
        self._ee_pose = ee_pose
        spec = complete_spec(
            policy.action_spec, config.action.overrides(), config.profile.expected()
        )
        self._stage = MotionStage(spec, config.motion, config.gripper)
        self._worker: InferenceWorker[Frame] = InferenceWorker(
            self._process,
            min_interval_s=1.0 / config.timing.policy_rate,
            clock=clocks.steady_s,
        )

    # Commands -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Activate: count from zero and answer frames."""
        with self._lock:
            self.ledger = Ledger()
            self._supervisor.reset()
            self._supervisor.release()
            self._stage.reset()
            self._newest = self._gripper_sent = None
            self._is_active = True

    def end(self) -> None:
        """Deactivate: when this returns, no twist and no answer leaves any more."""
        with self._lock:
            self._is_active = False
            self._activation += 1  # an answer in flight belongs to the past
            self._stage.reset()
            self._drop_waiting()

    def wait_until_idle(self) -> bool:
        """Return True when the policy has nothing to do, False when that takes too long."""
        return self._worker.wait_until_idle(JOIN_S)

    def close(self) -> bool:
        """End the thread; return False when the policy is still busy after a while."""
        self.end()
        return self._worker.close(JOIN_S)

    @property
    def is_active(self) -> bool:
        """True between `begin` and `end`."""
        return self._is_active

    @property
    def is_closed(self) -> bool:
        """True once `close` was called: this session answers nothing any more."""
        return self._worker.is_closed

    def configure(self, config: NodeConfig) -> None:
        """Use new limits and thresholds from now on.

        Raises:
            ConfigurationError: The robot expects other actions; everything stays as it was.
        """
        spec = complete_spec(
            self.policy.action_spec, config.action.overrides(), config.profile.expected()
        )
        with self._lock:
            self.config = config
            self._supervisor.inputs, self._supervisor.timing = config.inputs, config.timing
            self._worker.min_interval_s = 1.0 / config.timing.policy_rate
            self._stage.spec = spec
            self._stage.configure(config.motion, config.gripper)
            if not config.motion.motion_enabled:
                self._stage.stop()

    def set_instruction(self, text: str) -> None:
        """Follow another instruction; answers to the old one are dropped."""
        with self._lock:
            if text == self._supervisor.instruction:
                return
            self._supervisor.instruction = text
            self._drop_waiting()
            self._stage.fade(self._clocks.steady_s())

    def hold(self) -> None:
        """The operator stops the arm: zero from the next tick on."""
        with self._lock:
            self._supervisor.hold()
            self._stage.stop()

    def release(self) -> str:
        """The operator lets the arm move again; return why it cannot, or ""."""
        with self._lock:
            self._supervisor.release()
            verdict = self.verdict()
            return verdict.detail if verdict.state is State.FAULT else ""

    def reset(self) -> None:
        """Clear a fault, what is known of the camera, and the gripper's memory."""
        with self._lock:
            self._supervisor.reset()
            self._stage.reset()
            self._gripper_sent = None

    def fail(self, reason: Reason, detail: str) -> None:
        """Stop until `reset`: something broke outside the policy."""
        with self._lock:
            self._supervisor.fail(reason, detail)
            self._stage.stop()

    def clock_jumped(self) -> None:
        """ROS time jumped: drop what belongs to the old time."""
        with self._lock:
            self._supervisor.clock_jumped()
            self._drop_waiting()
            self._stage.stop()

    def obstacle_to_motion(self) -> str:
        """Why motion cannot be enabled, in words; "" when it can."""
        with self._lock:
            verdict = self.verdict()
            return verdict.detail if verdict.state is State.FAULT else self._stage.obstacle()

    # Images -------------------------------------------------------------------------------------

    def image(self, message: Any) -> None:
        """Store a camera message for the policy. Returns at once."""
        now_ns, now_s = self._clocks.ros_ns(), self._clocks.steady_s()
        with self._lock:
            if not self._is_active:
                return
            self.ledger.image(now_s)
            stamp = stamp_ns(message.header.stamp)
            frame = Frame(
                message, stamp, now_ns, now_s, self._supervisor.instruction, self._activation
            )
            self._newest = frame
            is_wanted = self._supervisor.image_arrived(stamp, age_s(stamp, now_ns), now_s)
            if not is_wanted or self._worker.offer(frame) is not None:
                self.ledger.dropped += 1  # this one, or the older one that it pushed out

    def predict_once(self, timeout_s: float) -> tuple[bool, str]:
        """Answer the newest image once more, without motion; return success and the answer."""
        with self._lock:
            newest, instruction = self._newest, self._supervisor.instruction
            if not self._is_active or newest is None or not instruction:
                return False, "needs an active node, an instruction, and an image."
            reply = Reply()
            frame = dataclasses.replace(newest, instruction=instruction, reply=reply)
            if not self._worker.offer_urgent(frame):
                return False, "another ~/predict_once is under way."
            self.ledger.received += 1  # the image enters a second time
        if not reply.done.wait(timeout_s):
            return False, f"no answer within {timeout_s:g} s; it will still appear on ~/action."
        return reply.success, reply.text

    # Output -------------------------------------------------------------------------------------

    def verdict(self) -> Verdict:
        """What the node does now, and why."""
        with self._lock:
            verdict = self._supervisor.assess(self._clocks.steady_s(), self._worker.busy_since_s)
            if verdict.state is not State.RUNNING:
                return verdict
            if not self.config.motion.motion_enabled:
                return Verdict(State.RUNNING, Reason.OK, "dry run: motion_enabled is false.")
            obstacle = self._stage.obstacle()
            if obstacle:
                return Verdict(State.HOLD, Reason.MOTION_UNKNOWN, obstacle)
            lost = self._stage.pose_obstacle(self._ee_pose())
            return Verdict(State.HOLD, Reason.TF_UNAVAILABLE, lost) if lost else verdict

    def tick(self, publish: Callable[[Tick], None]) -> Verdict:
        """Publish the twist of this moment and return the verdict it rests on.

        `publish` runs under the lock: no twist can slip out after `end` or `hold` has returned.
        """
        with self._lock:
            now_s = self._clocks.steady_s()
            verdict = self.verdict()
            if not self._is_active:
                return verdict
            may_move = verdict.may_move and self.config.motion.motion_enabled
            if self._was_moving and not may_move:
                if verdict.stops_at_once:
                    self._stage.stop()
                else:
                    self._stage.fade(now_s)
            self._was_moving = may_move
            twist = self._stage.sample(now_s, self._ee_pose())
            self.ledger.commands.mark(now_s)
            publish(Tick(twist, self._gripper_command(now_s) if may_move else None))
            return verdict

    def image_age_s(self) -> float:
        """ROS time minus the stamp of the newest image; NaN when there is none."""
        with self._lock:
            newest = self._newest
            return math.nan if newest is None else age_s(newest.stamp_ns, self._clocks.ros_ns())

    def _gripper_command(self, now_s: float) -> float | None:
        """The opening to publish now: when it changed, and once a second."""
        is_open = self._stage.gripper_is_open
        if is_open is None:
            return None
        opening = 1.0 if is_open else 0.0
        if self._gripper_sent is not None:
            last, sent_s = self._gripper_sent
            if opening == last and now_s - sent_s < GRIPPER_REPEAT_S:
                return None
        self._gripper_sent = (opening, now_s)
        return opening

    # In the worker's thread -----------------------------------------------------------------------

    def _process(self, frame: Frame) -> None:
        start_ns = self._clocks.ros_ns()
        with self._lock:
            if not self._is_still_wanted(frame, start_ns):
                self._drop(frame)
                return
        try:
            measured = self._predictor.predict(frame)
        except ImageError as error:
            with self._lock:
                self._supervisor.image_unusable(str(error))
                self._drop(frame, str(error))
        except Exception as error:
            self._policy_failed(frame, error)
        else:
            self._settle(frame, measured, start_ns)

    def _is_still_wanted(self, frame: Frame, now_ns: int) -> bool:
        if frame.activation != self._activation or not self._is_active:
            return False
        return frame.reply is not None or self._supervisor.is_fresh(age_s(frame.stamp_ns, now_ns))

    def _policy_failed(self, frame: Frame, error: Exception) -> None:
        if is_out_of_memory(error):
            reason, hint = Reason.GPU_OOM, " (a smaller `quantization` needs less memory)"
        else:
            reason, hint = Reason.MODEL_ERROR, ""
        self._log.error(f"the policy failed:\n{traceback.format_exc()}")
        with self._lock:
            if frame.activation == self._activation:
                self._supervisor.fail(reason, f"{type(error).__name__}: {error}{hint}")
                self._stage.stop()
            self._drop(frame, f"{type(error).__name__}: {error}")

    def _settle(self, frame: Frame, measured: Measured, start_ns: int) -> None:
        """Decide what becomes of an answer, let the stage have it, and publish it."""
        plan = self._stage.plan(measured.prediction, self._ee_pose())
        with self._lock:
            if frame.activation != self._activation:
                self._drop(frame)
                return
            now_ns, now_s = self._clocks.ros_ns(), self._clocks.steady_s()
            drop = self._drop_reason(frame, plan, now_ns)
            if frame.reply is None:
                self._stage.observe(plan)
            if drop is Drop.NONE:
                self._stage.execute(plan, now_s)
            self.ledger.answer(
                now_s - frame.received_s,
                now_s,
                is_clipped=plan.clip_mask != 0,
                is_refused=drop not in (Drop.NONE, Drop.DRY_RUN, Drop.ONCE),
            )
            is_open = self._stage.gripper_is_open
            answer = Answer(
                frame=frame,
                prediction=measured.prediction,
                preprocess_ms=measured.preprocess_ms,
                inference_ms=measured.inference_ms,
                plan=plan,
                drop=drop,
                sequence=self.ledger.actions,
                start_ns=start_ns,
                end_ns=now_ns,
                action_dt_s=1.0 / self._stage.spec.action_hz
                if self._stage.spec.action_hz
                else math.nan,
                gripper_is_open=plan.gripper_opening >= 0.5 if is_open is None else is_open,
            )
            self._on_answer(answer)
        if frame.reply is not None:
            frame.reply.success = True
            frame.reply.text = f"action {np.round(measured.prediction.action, 4).tolist()}"
            frame.reply.done.set()

    def _drop_reason(self, frame: Frame, plan: MotionPlan, now_ns: int) -> Drop:
        """Why this answer is not executed; Drop.NONE when it is. Tells the supervisor."""
        if frame.instruction != self._supervisor.instruction:
            return Drop.INSTRUCTION_CHANGED
        if frame.reply is not None:
            return Drop.ONCE
        image_age_s, limit_s = age_s(frame.stamp_ns, now_ns), self.config.timing.max_action_age
        refusal, detail = Drop.NONE, ""
        if plan.refusal in (Drop.NON_FINITE, Drop.INVALID_TOKEN):
            refusal, detail = plan.refusal, plan.detail
        elif image_age_s > limit_s:
            refusal = Drop.STALE
            detail = (
                f"the image was {image_age_s:.2f} s old when its answer came; "
                f"max_action_age is {limit_s} s."
            )
        self._supervisor.answered(refusal, detail)
        if refusal is not Drop.NONE:
            return refusal
        verdict = self._supervisor.assess(self._clocks.steady_s(), None)
        if not verdict.may_move:
            return Drop.FAULT if verdict.state is State.FAULT else Drop.HOLD
        if not self.config.motion.motion_enabled:
            return Drop.DRY_RUN
        return plan.refusal

    def _drop_waiting(self) -> None:
        for frame in self._worker.clear():
            self._drop(frame)

    def _drop(self, frame: Frame, why: str = "") -> None:
        if self._is_active and frame.activation == self._activation:
            self.ledger.dropped += 1
        if frame.reply is not None:
            frame.reply.text = why or frame.reply.text
            frame.reply.done.set()
