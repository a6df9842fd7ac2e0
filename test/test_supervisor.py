"""When the arm may move, and which reason the user is given when it may not."""

from __future__ import annotations

import dataclasses

import pytest

from openvla_ros.config import NodeConfig
from openvla_ros.config.motion import MotionConfig
from openvla_ros.config.operation import OperationConfig
from openvla_ros.config.policy import InputConfig, TimingConfig
from openvla_ros.control.states import Drop, Reason, State
from openvla_ros.control.supervisor import (
    FRESH_FRAMES,
    NON_FINITE_FAULT,
    Supervisor,
    Verdict,
)

INPUTS = InputConfig(image_max_age=0.3, image_timeout=1.0)
TIMING = TimingConfig(inference_timeout=1.0, max_action_age=0.6, hang_timeout=10.0)


class Scene:
    """A supervisor, a camera and a hand on the clock."""

    def __init__(self, instruction: str = "pick") -> None:
        self.supervisor = Supervisor(NodeConfig(inputs=INPUTS, timing=TIMING))
        self.supervisor.instruct(instruction)
        self.now_s = 100.0
        self.stamp_ns = 1_000

    def image(self, *, age_s: float = 0.05, stamp_ns: int | None = None) -> bool:
        self.now_s += 0.2
        self.stamp_ns = self.stamp_ns + 200_000_000 if stamp_ns is None else stamp_ns
        return self.supervisor.image_arrived(self.stamp_ns, age_s, self.now_s)

    def judged(self, busy_since_s: float | None = None) -> tuple[State, Reason]:
        verdict = self.supervisor.assess(self.now_s, busy_since_s)
        assert verdict.detail or verdict.state is State.RUNNING, "a stop needs a reason in words"
        return verdict.state, verdict.reason


RUNNING = (State.RUNNING, Reason.OK)


def test_a_fresh_image_and_an_instruction_let_it_run() -> None:
    scene = Scene()
    assert scene.judged() == (State.IDLE, Reason.NO_IMAGE)
    assert scene.image()
    assert scene.judged() == RUNNING


def test_without_an_instruction_nothing_is_inferred() -> None:
    scene = Scene(instruction="")
    assert not scene.image()
    assert scene.judged() == (State.IDLE, Reason.NO_INSTRUCTION)


def test_a_camera_that_stops_stops_the_robot_until_three_fresh_frames() -> None:
    scene = Scene()
    scene.image()
    scene.now_s += 1.01
    assert scene.judged() == (State.HOLD, Reason.STALE_IMAGE)
    for _ in range(FRESH_FRAMES - 1):
        assert scene.image(), "the model looks at frames while it waits"
        assert scene.judged() == (State.HOLD, Reason.STALE_IMAGE)
    scene.image()
    assert scene.judged() == RUNNING


def test_a_frozen_stamp_age_is_caught_although_images_keep_coming() -> None:
    """A paused bag player or a frozen driver sends old pictures that look alive."""
    scene = Scene()
    scene.image()
    assert not scene.image(age_s=0.31)
    assert scene.judged() == (State.HOLD, Reason.STALE_IMAGE)


def test_an_image_can_go_stale_while_it_waits_for_the_policy() -> None:
    scene = Scene()
    scene.image()
    assert not scene.supervisor.is_fresh(0.4)
    assert scene.judged() == (State.HOLD, Reason.STALE_IMAGE)


def test_an_unset_stamp_is_answered_but_never_moves() -> None:
    scene = Scene()
    assert scene.image(stamp_ns=0, age_s=float("nan"))
    assert scene.judged() == (State.HOLD, Reason.UNSET_STAMP)
    assert scene.supervisor.is_fresh(float("nan"))


def test_a_stamp_from_the_future_is_refused() -> None:
    """Its age would stay negative, so it would never go stale."""
    scene = Scene()
    assert not scene.image(age_s=-0.5)
    assert scene.judged() == (State.HOLD, Reason.CLOCK_JUMP)


def test_a_small_difference_between_clocks_is_tolerated() -> None:
    scene = Scene()
    assert scene.image(age_s=-0.02)
    assert scene.judged() == RUNNING


def test_stamps_that_go_back_reset_and_recover() -> None:
    scene = Scene()
    scene.image(stamp_ns=5_000_000_000)
    assert scene.image(stamp_ns=1_000_000_000)
    assert scene.judged() == (State.HOLD, Reason.CLOCK_JUMP)
    for _ in range(FRESH_FRAMES):
        scene.image()
    assert scene.judged() == RUNNING


def test_a_jump_of_ros_time_holds_until_three_fresh_frames() -> None:
    scene = Scene()
    scene.image()
    scene.supervisor.clock_jumped()
    assert scene.judged() == (State.HOLD, Reason.CLOCK_JUMP)
    for _ in range(FRESH_FRAMES):
        scene.image()
    assert scene.judged() == RUNNING


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (Drop.NON_FINITE, Reason.NON_FINITE),
        (Drop.INVALID_TOKEN, Reason.INVALID_TOKEN),
        (Drop.STALE, Reason.LATE_INFERENCE),
    ],
)
def test_one_unusable_answer_stops_and_one_good_answer_goes_on(
    refusal: Drop, reason: Reason
) -> None:
    scene = Scene()
    scene.image()
    scene.supervisor.answered(refusal, "because")
    assert scene.judged() == (State.HOLD, reason)
    scene.supervisor.answered(Drop.NONE, "")
    assert scene.judged() == RUNNING


def test_five_answers_without_numbers_are_a_fault() -> None:
    scene = Scene()
    scene.image()
    for _ in range(NON_FINITE_FAULT - 1):
        scene.supervisor.answered(Drop.NON_FINITE, "nan")
    assert scene.judged() == (State.HOLD, Reason.NON_FINITE)
    scene.supervisor.answered(Drop.NON_FINITE, "nan")
    assert scene.judged() == (State.FAULT, Reason.NON_FINITE)
    scene.supervisor.answered(Drop.NONE, "")
    assert scene.judged() == (State.FAULT, Reason.NON_FINITE), "a fault needs ~/reset"


def test_invalid_tokens_in_between_do_not_add_up_to_a_fault() -> None:
    scene = Scene()
    scene.image()
    for _ in range(3 * NON_FINITE_FAULT):
        scene.supervisor.answered(Drop.NON_FINITE, "nan")
        scene.supervisor.answered(Drop.INVALID_TOKEN, "eos")
    assert scene.judged()[0] is State.HOLD


def test_a_slow_answer_stops_the_robot_while_it_is_awaited() -> None:
    scene = Scene()
    scene.image()
    scene.image()
    assert scene.judged(busy_since_s=scene.now_s - 0.9) == RUNNING
    assert scene.judged(busy_since_s=scene.now_s - 1.1) == (State.HOLD, Reason.LATE_INFERENCE)


def test_a_policy_that_hangs_is_a_fault() -> None:
    scene = Scene()
    scene.image()
    busy_since_s = scene.now_s - 10.1
    assert scene.judged(busy_since_s) == (State.FAULT, Reason.MODEL_HANG)


def test_a_bad_image_holds_until_a_good_answer() -> None:
    scene = Scene()
    scene.image()
    scene.supervisor.image_unusable("encoding 'x'")
    assert scene.judged() == (State.HOLD, Reason.BAD_IMAGE)
    scene.supervisor.answered(Drop.NONE, "")
    assert scene.judged() == RUNNING


def test_the_operator_stops_and_starts() -> None:
    scene = Scene()
    scene.image()
    scene.supervisor.hold()
    assert scene.judged() == (State.HOLD, Reason.OPERATOR)
    assert scene.image(), "what the model would do stays visible"
    scene.supervisor.release()
    assert scene.judged() == RUNNING


def test_the_first_fault_is_kept_and_reset_clears_it() -> None:
    scene = Scene()
    scene.image()
    scene.supervisor.fail(Reason.MODEL_ERROR, "broken.")
    scene.supervisor.fail(Reason.MULTIPLE_PUBLISHERS, "follow-up.")
    assert scene.judged() == (State.FAULT, Reason.MODEL_ERROR)
    assert not scene.image(), "a broken policy is given no more frames"
    scene.supervisor.reset()
    assert scene.judged() == (State.IDLE, Reason.NO_IMAGE)
    scene.image()
    assert scene.judged() == RUNNING


def test_a_full_gpu_is_a_fault_that_neither_reset_nor_activate_clears() -> None:
    scene = Scene()
    scene.image()
    scene.supervisor.fail(Reason.GPU_OOM, "full.")
    for forget in (scene.supervisor.reset, scene.supervisor.begin):
        forget()
        scene.image()
        assert scene.judged() == (State.FAULT, Reason.GPU_OOM)
    assert "configure" in scene.supervisor.assess(0.0, None).detail


def test_reset_keeps_the_stop_of_the_operator() -> None:
    scene = Scene()
    scene.supervisor.hold()
    scene.supervisor.reset()
    scene.image()
    assert scene.judged() == (State.HOLD, Reason.OPERATOR)


@pytest.mark.parametrize("detail", ["RuntimeError: bad", "RuntimeError: bad."])
def test_a_fault_is_told_in_whole_sentences(detail: str) -> None:
    scene = Scene()
    scene.supervisor.fail(Reason.MODEL_ERROR, detail)
    verdict = scene.supervisor.assess(scene.now_s, None)
    assert verdict.detail == "RuntimeError: bad. Call ~/reset to go on."


def test_only_faults_and_the_operator_cut_the_twist() -> None:
    scene = Scene()
    scene.image()
    scene.now_s += 5.0
    assert not scene.supervisor.assess(scene.now_s, None).stops_at_once
    scene.supervisor.hold()
    assert scene.supervisor.assess(scene.now_s, None).stops_at_once
    scene.supervisor.fail(Reason.MODEL_ERROR, "x.")
    assert scene.supervisor.assess(scene.now_s, None).stops_at_once


# People and controller ------------------------------------------------------------------------


def moving_scene(**operation: object) -> Scene:
    """A scene in which motion is enabled and the arm may move."""
    scene = Scene()
    motion = MotionConfig(motion_enabled=True, base_frame="base")
    scene.supervisor.config = dataclasses.replace(
        scene.supervisor.config, motion=motion, operation=OperationConfig(**operation)
    )
    scene.image()
    return scene


def test_a_lost_controller_holds_until_it_is_back_and_started() -> None:
    scene = moving_scene()
    scene.supervisor.controller_checked("nobody listens", "")
    assert scene.judged() == (State.HOLD, Reason.NO_CONTROLLER)
    scene.supervisor.release()
    assert scene.judged() == (State.HOLD, Reason.NO_CONTROLLER), "it is still away"
    scene.supervisor.controller_checked("", "")
    assert scene.judged() == (State.HOLD, Reason.NO_CONTROLLER), "nobody has called ~/start"
    scene.supervisor.release()
    assert scene.judged() == RUNNING


def test_a_rival_is_a_fault_that_a_reset_does_not_forget_as_long_as_it_is_there() -> None:
    scene = moving_scene()
    scene.supervisor.controller_checked("", "two publishers.")
    scene.supervisor.controller_checked("", "")
    assert scene.judged() == (State.FAULT, Reason.MULTIPLE_PUBLISHERS)
    scene.supervisor.reset()
    scene.image()
    assert scene.judged() == RUNNING


def test_a_dry_run_needs_no_controller_and_forgets_that_one_was_lost() -> None:
    scene = moving_scene()
    scene.supervisor.controller_checked("nobody listens", "")
    motion = dataclasses.replace(scene.supervisor.config.motion, motion_enabled=False)
    scene.supervisor.config = dataclasses.replace(scene.supervisor.config, motion=motion)
    scene.supervisor.controller_checked("nobody listens", "a rival")
    assert scene.judged() == RUNNING


def test_the_switch_is_released_by_silence_and_by_false() -> None:
    scene = moving_scene(deadman_required=True, deadman_timeout=0.3)
    assert scene.judged() == (State.HOLD, Reason.DEADMAN)
    scene.supervisor.switch_deadman(True, scene.now_s)
    assert scene.judged() == RUNNING
    scene.now_s += 0.31
    assert scene.judged() == (State.HOLD, Reason.DEADMAN)
    scene.supervisor.switch_deadman(True, scene.now_s)
    assert scene.judged() == RUNNING
    scene.supervisor.switch_deadman(False, scene.now_s)
    assert scene.judged() == (State.HOLD, Reason.DEADMAN)


@pytest.mark.parametrize("reason", [Reason.DEADMAN, Reason.NO_CONTROLLER, Reason.OPERATOR])
def test_what_people_and_robot_stop_is_cut(reason: Reason) -> None:
    assert Verdict(State.HOLD, reason).stops_at_once


def test_who_steers_keeps_the_arm_until_release() -> None:
    scene = moving_scene()
    scene.supervisor.steer()
    assert scene.judged() == (State.HOLD, Reason.TELEOPERATION)
    scene.supervisor.reset()
    scene.image()
    assert scene.judged() == (State.HOLD, Reason.TELEOPERATION)
    scene.supervisor.release()
    assert scene.judged() == RUNNING


def test_the_stronger_word_wins() -> None:
    """Fault, then ~/stop, controller, switch, and only then who steers."""
    scene = moving_scene(deadman_required=True)
    scene.supervisor.steer()
    assert scene.judged() == (State.HOLD, Reason.DEADMAN)
    scene.supervisor.controller_checked("nobody listens", "")
    assert scene.judged() == (State.HOLD, Reason.NO_CONTROLLER)
    scene.supervisor.hold()
    assert scene.judged() == (State.HOLD, Reason.OPERATOR)
    scene.supervisor.fail(Reason.MODEL_ERROR, "broken")
    assert scene.judged() == (State.FAULT, Reason.MODEL_ERROR)


def test_a_refused_instruction_voids_the_old_one_until_the_next() -> None:
    scene = Scene()
    scene.image()
    scene.supervisor.refuse_instruction("too long.")
    assert scene.supervisor.instruction == ""
    assert scene.judged() == (State.HOLD, Reason.BAD_INSTRUCTION)
    assert not scene.image(), "nothing is inferred meanwhile"
    scene.supervisor.instruct("pick")
    assert scene.judged() == RUNNING


# Clocks -----------------------------------------------------------------------------------------


def test_the_same_stamp_again_is_no_new_image() -> None:
    scene = Scene()
    assert scene.image(stamp_ns=5_000)
    for _ in range(6):
        assert not scene.image(stamp_ns=5_000)
    assert scene.judged() == (State.HOLD, Reason.STALE_IMAGE)


def test_a_repeated_stamp_that_is_too_old_stops_at_once() -> None:
    """A frozen driver must not get the longer patience of a silent camera."""
    scene = Scene()
    assert scene.image(stamp_ns=5_000)
    assert not scene.image(stamp_ns=5_000, age_s=0.31)
    assert scene.judged() == (State.HOLD, Reason.STALE_IMAGE)


def test_ros_time_that_stands_still_stops_the_robot_although_stamps_go_on() -> None:
    scene = Scene()
    scene.supervisor.ros_time(7, scene.now_s)
    for _ in range(6):
        scene.image()
        scene.supervisor.ros_time(7, scene.now_s)
    assert scene.judged() == (State.HOLD, Reason.CLOCK_JUMP)
    for _ in range(FRESH_FRAMES):
        scene.image()
        scene.supervisor.ros_time(scene.stamp_ns, scene.now_s)
    assert scene.judged() == RUNNING
