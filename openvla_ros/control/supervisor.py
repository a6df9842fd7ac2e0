"""Decides whether the arm may move, and says why not.

It hears of every image, answer and operator command, and is asked for a verdict at every tick. It
reads no clock: steady times in seconds (`now_s`) and image ages come in as arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from openvla_ros.config.policy import InputConfig, TimingConfig
from openvla_ros.control.states import Drop, Reason, State

FRESH_FRAMES = 3  # usable images in a row before an arm that stopped for its camera moves again
NON_FINITE_FAULT = 5  # answers in a row that are not numbers: this does not heal by itself


@dataclass(frozen=True)
class Verdict:
    """What the node does now, why, and in words what the user can do about it."""

    state: State
    reason: Reason = Reason.OK
    detail: str = ""

    @property
    def may_move(self) -> bool:
        """True in RUNNING, and never else."""
        return self.state is State.RUNNING

    @property
    def stops_at_once(self) -> bool:
        """True when the twist must be cut, not ramped down."""
        return self.state is State.FAULT or self.reason is Reason.OPERATOR


class Supervisor:
    """Collects what has happened since activation and judges it."""

    def __init__(self, inputs: InputConfig, timing: TimingConfig) -> None:
        self.inputs = inputs
        self.timing = timing
        self.instruction = ""
        self._held_by_operator = False
        self.reset()

    def reset(self) -> None:
        """Forget faults, images and answers; keep the instruction and the operator's stop."""
        self._fault: Verdict | None = None
        self._interruption: Verdict | None = None
        self._fresh_frames = 0
        self._problem: Verdict | None = None
        self._non_finite = 0
        self._last_stamp_ns = 0
        self._last_image_s: float | None = None

    # What happened ----------------------------------------------------------------------------

    def hold(self) -> None:
        """The operator stops the arm."""
        self._held_by_operator = True

    def release(self) -> None:
        """The operator lets the arm move again."""
        self._held_by_operator = False

    def fail(self, reason: Reason, detail: str) -> None:
        """Something broke that does not heal by itself. The first cause is kept."""
        if self._fault is None:
            what = detail.rstrip(". ")  # exceptions end with a full stop, or without
            self._fault = Verdict(State.FAULT, reason, f"{what}. Call ~/reset to go on.")

    def image_arrived(self, stamp_ns: int, age_s: float, now_s: float) -> bool:
        """Book a new image; return whether the model shall see it.

        Args:
            stamp_ns: Its stamp, 0 = unset.
            age_s: ROS time minus stamp; negative for a stamp in the future.
            now_s: Steady time, seconds.
        """
        self._last_image_s = now_s
        if stamp_ns == 0:
            # The model may look at it, but nobody knows how old it is: the arm does not move.
            self._interrupt(
                Reason.UNSET_STAMP,
                "images carry no time stamp (header.stamp is 0), so nobody can tell how old they "
                "are; let the camera driver set it.",
            )
            return self._wants_images()
        went_back = stamp_ns < self._last_stamp_ns
        self._last_stamp_ns = stamp_ns
        if went_back:
            self._interrupt(
                Reason.CLOCK_JUMP, "image stamps went backwards: a bag looped, or clocks jumped."
            )
        if not self.is_fresh(age_s):
            return False
        self._fresh_frames += 1
        return self._wants_images()

    def is_fresh(self, age_s: float) -> bool:
        """Return whether an image of this age may be used now; if not, the arm stops."""
        limit_s = self.inputs.image_max_age
        if math.isnan(age_s) or abs(age_s) <= limit_s:
            return True
        if age_s > 0.0:
            self._interrupt(
                Reason.STALE_IMAGE,
                f"the newest image is {age_s:.2f} s old; image_max_age is {limit_s} s.",
            )
        else:
            self._interrupt(
                Reason.CLOCK_JUMP,
                f"the newest image is stamped {-age_s:.2f} s in the future: synchronise the clocks "
                "of camera and node, or give both the same use_sim_time.",
            )
        return False

    def image_unusable(self, detail: str) -> None:
        """The newest image could not be decoded."""
        self._problem = Verdict(State.HOLD, Reason.BAD_IMAGE, detail)

    def clock_jumped(self) -> None:
        """ROS time jumped: ages of the past mean nothing."""
        self._last_stamp_ns = 0
        self._interrupt(Reason.CLOCK_JUMP, "ROS time jumped: a bag looped, or a clock was set.")

    def answered(self, refusal: Drop, detail: str) -> None:
        """An answer came; `refusal` says whether it could be used, and `detail` why not."""
        self._non_finite = self._non_finite + 1 if refusal is Drop.NON_FINITE else 0
        reasons = {
            Drop.NON_FINITE: Reason.NON_FINITE,
            Drop.INVALID_TOKEN: Reason.INVALID_TOKEN,
            Drop.STALE: Reason.LATE_INFERENCE,
        }
        reason = reasons.get(refusal)
        self._problem = Verdict(State.HOLD, reason, detail) if reason else None
        if self._non_finite >= NON_FINITE_FAULT:
            self.fail(Reason.NON_FINITE, f"{self._non_finite} answers in a row: {detail}.")

    # What follows from it -----------------------------------------------------------------------

    def assess(self, now_s: float, busy_since_s: float | None) -> Verdict:
        """Return the verdict at this moment.

        Args:
            now_s: Steady time, seconds.
            busy_since_s: When the policy began the answer it is working on; None = it is idle.
        """
        busy_s = 0.0 if busy_since_s is None else now_s - busy_since_s
        if busy_s > self.timing.hang_timeout:
            self.fail(Reason.MODEL_HANG, f"the policy has not answered for {busy_s:.1f} s.")
        if self._fault is not None:
            return self._fault
        if self._held_by_operator:
            return Verdict(State.HOLD, Reason.OPERATOR, "stopped; call ~/start to go on.")
        if not self.instruction:
            return Verdict(State.IDLE, Reason.NO_INSTRUCTION, "send one on `instruction`.")
        if self._last_image_s is None:
            return Verdict(State.IDLE, Reason.NO_IMAGE, "no image has arrived on `image` yet.")
        interruption = self._camera(now_s)
        if interruption is not None:
            return interruption
        if busy_s > self.timing.inference_timeout:
            return Verdict(
                State.HOLD,
                Reason.LATE_INFERENCE,
                f"the policy has worked for more than {self.timing.inference_timeout} s on one "
                "answer (inference_timeout).",
            )
        return self._problem or Verdict(State.RUNNING)

    def _camera(self, now_s: float) -> Verdict | None:
        assert self._last_image_s is not None
        silent_s = now_s - self._last_image_s
        if silent_s > self.inputs.image_timeout:
            self._interrupt(
                Reason.STALE_IMAGE,
                f"no image has arrived for {self.inputs.image_timeout} s (image_timeout).",
            )
        if self._interruption is not None and self._fresh_frames >= FRESH_FRAMES:
            self._interruption = None
        return self._interruption

    def _interrupt(self, reason: Reason, detail: str) -> None:
        self._fresh_frames = 0
        self._interruption = Verdict(State.HOLD, reason, detail)

    def _wants_images(self) -> bool:
        return self._fault is None and bool(self.instruction)
