"""Decides whether the arm may move, and says why not.

It hears of every image, answer and operator command, and is asked for a verdict at every tick. It
reads no clock: steady times in seconds (`now_s`) and image ages come in as arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from openvla_ros.config import NodeConfig
from openvla_ros.control.states import Drop, Reason, State

FRESH_FRAMES = 3  # usable images in a row before an arm that stopped for its camera moves again
NON_FINITE_FAULT = 5  # answers in a row that are not numbers: this does not heal by itself
# Somebody lets go, or nobody listens: a ramp would be motion against the operator's will.
CUTTING = (Reason.OPERATOR, Reason.DEADMAN, Reason.NO_CONTROLLER)
# What only another load can heal: there is no less memory in use after a reset.
UNTIL_CONFIGURE = (Reason.GPU_OOM,)


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
        return self.state is State.FAULT or self.reason in CUTTING


class Supervisor:
    """Collects what has happened since activation and judges it."""

    def __init__(self, config: NodeConfig) -> None:
        """Begin with nothing known; `config` may be replaced at any time."""
        self.config = config
        self._instruction = ""
        self._has_last_answer = False
        self._refused: Verdict | None = None
        self._held_by_operator = False
        self._is_steered = False
        self._missing_controller = ""
        self._no_controller: Verdict | None = None
        self._pressed_s = -math.inf
        self._fault: Verdict | None = None
        self.reset()

    def begin(self) -> None:
        """Activate: as `reset`. Who stopped or steered the arm keeps it; a controller is there."""
        self.reset()
        self._welcome_controller()

    def reset(self) -> None:
        """Forget images, answers, and faults that need no new load (`UNTIL_CONFIGURE`).

        What the operator and the controller say is kept.
        """
        if self._fault is not None and self._fault.reason not in UNTIL_CONFIGURE:
            self._fault = None
        self._interruption: Verdict | None = None
        self._fresh_frames = 0
        self._problem: Verdict | None = None
        self._non_finite = 0
        self._last_stamp_ns = 0
        self._last_image_s: float | None = None
        self._ros_clock: tuple[int, float] | None = None  # ROS time, and since when it stands there

    @property
    def instruction(self) -> str:
        """What the policy is told; empty = nothing."""
        return self._instruction

    @property
    def has_last_answer(self) -> bool:
        """True when no further answer to the instruction may be executed."""
        return self._has_last_answer

    # What happened ----------------------------------------------------------------------------

    def instruct(self, text: str) -> None:
        """The operator gives another instruction, or takes it back."""
        self._instruction, self._refused = text, None
        self._has_last_answer = False

    def finish_instruction(self) -> None:
        """The instruction has had its last answer: that one may be executed, and no other."""
        self._has_last_answer = True

    def refuse_instruction(self, detail: str) -> None:
        """The operator wanted something else, and it cannot be used: the old text is void too."""
        self._instruction = ""
        self._refused = Verdict(State.HOLD, Reason.BAD_INSTRUCTION, detail)

    def hold(self) -> None:
        """The operator stops the arm."""
        self._held_by_operator = True

    def release(self) -> None:
        """The operator lets the policy move the arm again; a controller must be there for that."""
        self._held_by_operator = self._is_steered = False
        self._welcome_controller()

    def steer(self) -> None:
        """Somebody steers the arm, and keeps it until `release`."""
        self._is_steered = True

    def switch_deadman(self, is_pressed: bool, now_s: float) -> None:
        """The dead-man switch says that it is held down, or that it is not."""
        self._pressed_s = now_s if is_pressed else -math.inf

    def controller_checked(self, missing: str, rival: str) -> None:
        """Book a look at the command topic; only motion needs a controller.

        Args:
            missing: Why nobody follows the command, in words; "" when somebody does.
            rival: Who else commands the arm, in words; "" when nobody does.
        """
        if not self.config.motion.motion_enabled:
            missing = rival = ""
            self._no_controller = None
        if rival:
            self.fail(Reason.MULTIPLE_PUBLISHERS, rival)
        self._missing_controller = missing
        if missing:
            self._no_controller = Verdict(State.HOLD, Reason.NO_CONTROLLER, missing)
        elif self._no_controller is not None:
            self._no_controller = Verdict(
                State.HOLD, Reason.NO_CONTROLLER, "the controller is back; call ~/start to go on."
            )

    def fail(self, reason: Reason, detail: str) -> None:
        """Something broke that does not heal by itself. The first cause is kept."""
        if self._fault is None:
            what = detail.rstrip(". ")  # exceptions end with a full stop, or without
            way_out = (
                "Deactivate, clean up, configure and activate to go on; ~/reset is not enough."
                if reason in UNTIL_CONFIGURE
                else "Call ~/reset to go on."
            )
            self._fault = Verdict(State.FAULT, reason, f"{what}. {way_out}")

    def image_arrived(self, stamp_ns: int, age_s: float, now_s: float) -> bool:
        """Book a new image; return whether the model shall see it.

        Args:
            stamp_ns: Its stamp, 0 = unset.
            age_s: ROS time minus stamp; negative for a stamp in the future.
            now_s: Steady time, seconds.
        """
        if stamp_ns == 0:
            self._last_image_s = now_s
            # The model may look at it, but nobody knows how old it is: the arm does not move.
            self._interrupt(
                Reason.UNSET_STAMP,
                "images carry no time stamp (header.stamp is 0), so nobody can tell how old they "
                "are; let the camera driver set it.",
            )
            return self._wants_images()
        if stamp_ns == self._last_stamp_ns:
            # The same picture again is no news, however young a clock that hangs makes it look.
            self.is_fresh(age_s)
            return False
        self._last_image_s = now_s
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
        limit_s = self.config.inputs.image_max_age
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

    def ros_time(self, now_ns: int, now_s: float) -> None:
        """Book ROS time at a steady time."""
        if self._ros_clock is None or now_ns != self._ros_clock[0]:
            self._ros_clock = (now_ns, now_s)

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
        timing = self.config.timing
        busy_s = 0.0 if busy_since_s is None else now_s - busy_since_s
        if busy_s > timing.hang_timeout:
            self.fail(Reason.MODEL_HANG, f"the policy has not answered for {busy_s:.1f} s.")
        if self._fault is not None:
            return self._fault
        verdict = self._people(now_s) or self._task()
        if verdict is not None:
            return verdict
        verdict = self._camera(now_s)
        if verdict is not None:
            return verdict
        if busy_s > timing.inference_timeout:
            return Verdict(
                State.HOLD,
                Reason.LATE_INFERENCE,
                f"the policy has worked for more than {timing.inference_timeout} s on one "
                "answer (inference_timeout).",
            )
        return self._problem or Verdict(State.RUNNING)

    def _people(self, now_s: float) -> Verdict | None:
        """What the operator, the controller and the dead-man switch forbid."""
        if self._held_by_operator:
            return Verdict(State.HOLD, Reason.OPERATOR, "stopped; call ~/start to go on.")
        if self.config.motion.motion_enabled:
            if self._no_controller is not None:
                return self._no_controller
            operation = self.config.operation
            is_released = now_s - self._pressed_s > operation.deadman_timeout
            if operation.deadman_required and is_released:
                return Verdict(
                    State.HOLD,
                    Reason.DEADMAN,
                    "the dead-man switch is not held down: send true on ~/enable at least every "
                    f"{operation.deadman_timeout} s (deadman_timeout).",
                )
        if self._is_steered:
            return Verdict(
                State.HOLD,
                Reason.TELEOPERATION,
                "somebody steers the arm on ~/teleop_twist; call ~/start to give it back.",
            )
        return None

    def _task(self) -> Verdict | None:
        """What is missing to begin."""
        if not self._instruction:
            return self._refused or Verdict(
                State.IDLE, Reason.NO_INSTRUCTION, "send one on `instruction`."
            )
        if self._last_image_s is None:
            return Verdict(State.IDLE, Reason.NO_IMAGE, "no image has arrived on `image` yet.")
        return None

    def _camera(self, now_s: float) -> Verdict | None:
        assert self._last_image_s is not None
        limit_s = self.config.inputs.image_timeout
        if self._ros_clock is not None and now_s - self._ros_clock[1] > limit_s:
            # Ages and stamps mean nothing meanwhile, and pictures may keep coming.
            self._interrupt(
                Reason.CLOCK_JUMP,
                f"ROS time has stood still for {limit_s} s (image_timeout): is the bag or the "
                "simulation paused, or does nobody publish /clock?",
            )
        elif now_s - self._last_image_s > limit_s:
            self._interrupt(
                Reason.STALE_IMAGE,
                f"no image with a new stamp has arrived for {limit_s} s (image_timeout).",
            )
        if self._interruption is not None and self._fresh_frames >= FRESH_FRAMES:
            self._interruption = None
        return self._interruption

    def _welcome_controller(self) -> None:
        if not self._missing_controller:
            self._no_controller = None

    def _interrupt(self, reason: Reason, detail: str) -> None:
        self._fresh_frames = 0
        self._interruption = Verdict(State.HOLD, reason, detail)

    def _wants_images(self) -> bool:
        return self._fault is None and bool(self._instruction) and not self._has_last_answer
