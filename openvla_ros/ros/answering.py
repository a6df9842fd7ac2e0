"""From a camera message to an answer that was executed or refused. No rclpy in here.

The camera callback only stores; a thread of its own decodes, predicts and settles. While the policy
is busy with one frame, another thread decodes and resizes the next.
"""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from openvla_ros.control.motion import MotionPlan
from openvla_ros.control.pose import EndEffectorPose
from openvla_ros.control.states import Drop, Reason, State
from openvla_ros.control.supervisor import Verdict
from openvla_ros.errors import ImageError
from openvla_ros.messages import stamp_ns
from openvla_ros.ros.decoding import Decoder
from openvla_ros.ros.frames import Answer, Frame, Reply, age_s
from openvla_ros.ros.inference import (
    Measured,
    Predictor,
    gpu_memory_bytes,
    is_out_of_memory,
    memory_hint,
)
from openvla_ros.ros.shared_state import SharedState
from openvla_ros.ros.worker import InferenceWorker
from openvla_ros.types import Policy

JOIN_S = 2.0  # longest wait for an answer in flight, so that deactivate and SIGINT stay quick


class Answering:
    """Owns the thread that owns the policy; one frame is answered at a time, the newest first.

    A frame is prepared shortly before the policy is free (`InferenceWorker`): the answer is as old
    as if the policy's own thread had prepared it, and the next one comes sooner.
    """

    def __init__(
        self,
        policy: Policy,
        shared: SharedState,
        *,
        decode: Decoder,
        on_answer: Callable[[Answer], None],
        ee_pose: Callable[[], EndEffectorPose | None],
        judge: Callable[[], Verdict],
    ) -> None:
        """Start the threads.

        Args:
            policy: Loaded and self-tested.
            shared: What the stream sees too.
            decode: Message → (H, W, 3) uint8 RGB.
            on_answer: Publishes an answer; called in the policy's thread, under the lock.
            ee_pose: Where the end effector is; None when that is not known.
            judge: Whether an answer of this moment may move the arm; called under the lock.
        """
        config, clocks = shared.config, shared.clocks
        self._shared = shared
        self._on_answer = on_answer
        self._ee_pose = ee_pose
        self._judge = judge
        self._newest: Frame | None = None
        self._predictor = Predictor(
            policy, decode, config.inputs.image_roi, clocks.steady_s, shared.log
        )
        self.view = self._predictor.view
        self._worker: InferenceWorker[Frame] = InferenceWorker(
            self._process,
            look_ahead=self._predictor.prepare,
            on_replaced=self._replaced,
            min_interval_s=1.0 / config.timing.policy_rate,
            clock=clocks.steady_s,
        )

    @property
    def busy_since_s(self) -> float | None:
        """Steady time at which the policy began its current answer; None when it is idle."""
        return self._worker.busy_since_s

    @property
    def is_closed(self) -> bool:
        """True once `close` was called."""
        return self._worker.is_closed

    def set_rate(self, rate_hz: float) -> None:
        """Answer at most so many frames per second."""
        self._worker.pace.interval_s = 1.0 / rate_hz

    def forget_image(self) -> None:
        """Let ~/predict_once wait for an image of this activation."""
        self._newest = None

    def wait_until_idle(self) -> bool:
        """Return True when the policy has nothing to do, False when that takes too long."""
        return self._worker.wait_until_idle(JOIN_S)

    def close(self) -> bool:
        """End the threads; return False when the policy is still busy after a while."""
        return self._worker.close(JOIN_S)

    def drop_waiting(self) -> None:
        """Drop the frames that wait for the policy. Call it under the lock."""
        for frame in self._worker.clear():
            self._drop(frame)

    # Images -------------------------------------------------------------------------------------

    def image(self, message: Any) -> None:
        """Store a camera message for the policy. Returns at once."""
        shared = self._shared
        now_ns, now_s = shared.clocks.ros_ns(), shared.clocks.steady_s()
        with shared.lock:
            if not shared.is_active:
                return
            shared.ledger.image(now_s)
            stamp = stamp_ns(message.header.stamp)
            frame = Frame(
                message, stamp, now_ns, now_s, shared.supervisor.instruction, shared.activation
            )
            self._newest = frame
            is_wanted = shared.supervisor.image_arrived(stamp, age_s(stamp, now_ns), now_s)
            if not is_wanted or self._worker.offer(frame) is not None:
                shared.ledger.dropped += 1  # this one, or the older one that it pushed out

    def image_age_s(self) -> float:
        """ROS time minus the stamp of the newest image; NaN when there is none."""
        with self._shared.lock:
            newest = self._newest
            return (
                math.nan if newest is None else age_s(newest.stamp_ns, self._shared.clocks.ros_ns())
            )

    def predict_once(self, timeout_s: float) -> tuple[bool, str]:
        """Answer the newest image once more, without motion; return success and the answer."""
        shared = self._shared
        with shared.lock:
            newest, instruction = self._newest, shared.supervisor.instruction
            if not shared.is_active or newest is None or not instruction:
                return False, "needs an active node, an instruction, and an image."
            reply = Reply()
            frame = dataclasses.replace(newest, instruction=instruction, reply=reply)
            if not self._worker.offer_urgent(frame):
                return False, "another ~/predict_once is under way."
            shared.ledger.received += 1  # the image enters a second time
        if not reply.done.wait(timeout_s):
            return False, f"no answer within {timeout_s:g} s; it will still appear on ~/action."
        return reply.success, reply.text

    # In the worker's threads ----------------------------------------------------------------------

    def _replaced(self, frame: Frame) -> None:
        with self._shared.lock:
            self._drop(frame)

    def _process(self, frame: Frame) -> None:
        shared = self._shared
        start_ns = shared.clocks.ros_ns()
        with shared.lock:
            if not self._is_still_wanted(frame, start_ns):
                self._drop(frame)
                return
        try:
            measured = self._predictor.predict(frame)
        except ImageError as error:
            with shared.lock:
                shared.supervisor.image_unusable(str(error))
                self._drop(frame, str(error))
        except Exception as error:
            self._policy_failed(frame, error)
        else:
            self._settle(frame, measured, start_ns)

    def _is_still_wanted(self, frame: Frame, now_ns: int) -> bool:
        shared = self._shared
        if frame.activation != shared.activation or not shared.is_active:
            return False
        return frame.reply is not None or shared.supervisor.is_fresh(age_s(frame.stamp_ns, now_ns))

    def _policy_failed(self, frame: Frame, error: Exception) -> None:
        shared = self._shared
        if is_out_of_memory(error):
            reason, hint = Reason.GPU_OOM, f" ({memory_hint(*gpu_memory_bytes())})"
        else:
            reason, hint = Reason.MODEL_ERROR, ""
        shared.log.error(f"the policy failed:\n{traceback.format_exc()}")
        with shared.lock:
            if frame.activation == shared.activation:
                shared.supervisor.fail(reason, f"{type(error).__name__}: {error}{hint}")
                shared.stage.stop()
            self._drop(frame, f"{type(error).__name__}: {error}")

    def _settle(self, frame: Frame, measured: Measured, start_ns: int) -> None:
        """Decide what becomes of an answer, let the stage have it, and publish it."""
        shared, stage = self._shared, self._shared.stage
        plan = stage.plan(measured.prediction, self._ee_pose())
        with shared.lock:
            if frame.activation != shared.activation:
                self._drop(frame)
                return
            now_ns, now_s = shared.clocks.ros_ns(), shared.clocks.steady_s()
            drop = self._drop_reason(frame, plan, now_ns)
            if frame.reply is None:
                stage.observe(plan)
            if drop is Drop.NONE:
                stage.execute(plan, now_s)
            shared.ledger.answer(
                now_s - frame.received_s,
                now_s,
                is_clipped=plan.clip_mask != 0,
                is_refused=drop not in (Drop.NONE, Drop.DRY_RUN, Drop.ONCE),
            )
            self._on_answer(self._answer(frame, measured, plan, drop, start_ns, now_ns))
        if frame.reply is not None:
            frame.reply.success = True
            frame.reply.text = f"action {np.round(measured.prediction.action, 4).tolist()}"
            frame.reply.done.set()

    def _answer(
        self,
        frame: Frame,
        measured: Measured,
        plan: MotionPlan,
        drop: Drop,
        start_ns: int,
        end_ns: int,
    ) -> Answer:
        stage = self._shared.stage
        is_open, rate_hz = stage.gripper_is_open, stage.spec.action_hz
        return Answer(
            frame=frame,
            prediction=measured.prediction,
            preprocess_ms=measured.preprocess_ms,
            inference_ms=measured.inference_ms,
            plan=plan,
            drop=drop,
            sequence=self._shared.ledger.actions,
            start_ns=start_ns,
            end_ns=end_ns,
            action_dt_s=1.0 / rate_hz if rate_hz else math.nan,
            gripper_is_open=plan.gripper_opening >= 0.5 if is_open is None else is_open,
        )

    def _drop_reason(self, frame: Frame, plan: MotionPlan, now_ns: int) -> Drop:
        """Why this answer is not executed; Drop.NONE when it is. Tells the supervisor."""
        shared = self._shared
        if frame.instruction != shared.supervisor.instruction:
            return Drop.INSTRUCTION_CHANGED
        if frame.reply is not None:
            return Drop.ONCE
        if shared.supervisor.has_last_answer:
            return Drop.INSTRUCTION_CHANGED
        refusal, detail = self._refusal(frame, plan, now_ns)
        shared.supervisor.answered(refusal, detail)
        if refusal is not Drop.NONE:
            return refusal
        verdict = self._judge()
        if verdict.reason is Reason.MOTION_UNKNOWN:
            return Drop.MOTION_UNKNOWN
        if not verdict.may_move:
            return Drop.FAULT if verdict.state is State.FAULT else Drop.HOLD
        if not shared.config.motion.motion_enabled:
            return Drop.DRY_RUN
        return plan.refusal

    def _refusal(self, frame: Frame, plan: MotionPlan, now_ns: int) -> tuple[Drop, str]:
        """What is wrong with the answer itself."""
        if plan.refusal in (Drop.NON_FINITE, Drop.INVALID_TOKEN):
            return plan.refusal, plan.detail
        image_age_s, limit_s = (
            age_s(frame.stamp_ns, now_ns),
            self._shared.config.timing.max_action_age,
        )
        if image_age_s > limit_s:
            return Drop.STALE, (
                f"the image was {image_age_s:.2f} s old when its answer came; "
                f"max_action_age is {limit_s} s."
            )
        return Drop.NONE, ""

    def _drop(self, frame: Frame, why: str = "") -> None:
        shared = self._shared
        if shared.is_active and frame.activation == shared.activation:
            shared.ledger.dropped += 1
        if frame.reply is not None:
            frame.reply.text = why or frame.reply.text
            frame.reply.done.set()
