#!/usr/bin/env python3
"""The table of docs/failure_modes.md, as data: what the tests check, and what the page says.

    python test/failure_rows.py > docs/failure_modes.md

test_failure_modes.py breaks one thing per row, mid-motion, and compares with the row: how the twist
ends, state and reason, the level in /diagnostics, and what it takes until the arm moves again.
test_failure_table.py compares the page with this file, and the rows with the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from openvla_ros.control.states import Reason, State
from openvla_ros.ros.health import Level
from openvla_ros.ros.streaming import LATE_TICK_S


class Stop(Enum):
    """How the twist ends."""

    RAMP = "ramps to zero in `decay_time` (0.1 s)"
    CUT = "zero at the next tick (20 ms)"
    NEVER = "does not move"
    GOES_ON = "goes on"
    SILENT = "nothing more is sent: the consumer's time-out stops it"


class Recovery(Enum):
    """What it takes until the arm moves again."""

    FRESH_IMAGES = "by itself, after three fresh images"
    NEXT_ANSWER = "by itself, with the next usable answer"
    FIRST_IMAGE = "by itself, with the first image"
    INSTRUCTION = "send an instruction"
    NONE = "nothing to do"
    PRESS = "hold it down again"
    POSE = "by itself, when the pose is back"
    START = "call `~/start`"
    CONTROLLER = "start the controller, then call `~/start`"
    RESET = "mend the cause, call `~/reset`"
    PUBLISHER = "stop the other publisher, call `~/reset`"
    CONFIGURE = "mend the cause, then deactivate, cleanup, configure, activate"
    RETRY = "mend the cause, configure, activate"
    PARAMETER = "set the parameter that the status names"
    RESTART = "start it, configure, activate; enable motion, if it starts in dry run"
    ACTIVATE = "activate"


@dataclass(frozen=True)
class Row:
    """One failure.

    Attributes:
        key: Name in the tests.
        failure: What breaks, and the limit at which that is noticed.
        stop: What the arm does.
        state: In ~/status; None = the process is gone.
        reason: In ~/status.
        part: Of /diagnostics; "" = no part of its own.
        level: Of that part.
        recovery: What it takes.
        tests: Tests beside test_failure_modes.py that cover it: file::function.
        note: More, in a sentence.
    """

    key: str
    failure: str
    stop: Stop
    state: State | None
    reason: Reason | None
    part: str
    level: Level | None
    recovery: Recovery
    tests: tuple[str, ...] = ()
    note: str = ""


HOLD, FAULT, IDLE, RUNNING = State.HOLD, State.FAULT, State.IDLE, State.RUNNING
UNCONFIGURED, READY = State.UNCONFIGURED, State.READY
OK, WARN, ERROR, STALE = Level.OK, Level.WARN, Level.ERROR, Level.STALE

INPUTS = (
    Row("no image", "no image since activation",
        Stop.NEVER, IDLE, Reason.NO_IMAGE, "camera", WARN, Recovery.FIRST_IMAGE,
        note="WARN after 2 s"),
    Row("camera silent", "no image for `image_timeout` (1 s)",
        Stop.RAMP, HOLD, Reason.STALE_IMAGE, "camera", ERROR, Recovery.FRESH_IMAGES),
    Row("camera repeats itself", "the same stamp for `image_timeout`",
        Stop.RAMP, HOLD, Reason.STALE_IMAGE, "camera", ERROR, Recovery.FRESH_IMAGES),
    Row("image too old", "a stamp older than `image_max_age` (0.3 s)",
        Stop.RAMP, HOLD, Reason.STALE_IMAGE, "camera", ERROR, Recovery.FRESH_IMAGES),
    Row("image from the future", "a stamp further ahead than `image_max_age`",
        Stop.RAMP, HOLD, Reason.CLOCK_JUMP, "camera", WARN, Recovery.FRESH_IMAGES),
    Row("image without stamp", "`header.stamp` is 0",
        Stop.RAMP, HOLD, Reason.UNSET_STAMP, "camera", ERROR, Recovery.FRESH_IMAGES,
        note="such images are answered, and never executed"),
    Row("stamps go back", "a stamp before the last one",
        Stop.RAMP, HOLD, Reason.CLOCK_JUMP, "camera", WARN, Recovery.FRESH_IMAGES),
    Row("clock jumps back", "ROS time jumps: a bag loops, a clock is set",
        Stop.CUT, HOLD, Reason.CLOCK_JUMP, "camera", WARN, Recovery.FRESH_IMAGES),
    Row("clock stands still", "ROS time stands for `image_timeout`: a paused bag or simulation",
        Stop.RAMP, HOLD, Reason.CLOCK_JUMP, "camera", WARN, Recovery.FRESH_IMAGES,
        tests=("test_node_failures.py::test_a_ros_clock_that_stands_still_stops_the_arm",)),
    Row("image cannot be decoded", "encoding, sizes, or data cut short",
        Stop.RAMP, HOLD, Reason.BAD_IMAGE, "camera", ERROR, Recovery.NEXT_ANSWER),
    Row("no instruction", "an empty text on `instruction`",
        Stop.RAMP, IDLE, Reason.NO_INSTRUCTION, "inference", OK, Recovery.INSTRUCTION,
        note="nothing is inferred meanwhile"),
    Row("refused instruction", "line breaks, unseen characters, marks of a tokenizer, too long",
        Stop.RAMP, HOLD, Reason.BAD_INSTRUCTION, "inference", WARN, Recovery.INSTRUCTION,
        tests=("test_instruction_entrances.py::test_the_topic_refuses_it_and_the_arm_stops",)),
    Row("instruction changes", "while the policy works on the old one",
        Stop.RAMP, RUNNING, Reason.OK, "inference", OK, Recovery.NEXT_ANSWER,
        note="the answer to the old text is dropped"),
)  # fmt: skip

POLICY = (
    Row("answer without numbers", "NaN, infinity, or not 7 numbers",
        Stop.RAMP, HOLD, Reason.NON_FINITE, "inference", WARN, Recovery.NEXT_ANSWER),
    Row("five answers without numbers", "the same, five times in a row",
        Stop.RAMP, FAULT, Reason.NON_FINITE, "inference", ERROR, Recovery.RESET),
    Row("invalid token", "a token id outside the action range",
        Stop.RAMP, HOLD, Reason.INVALID_TOKEN, "inference", WARN, Recovery.NEXT_ANSWER),
    Row("late answer", "no answer for `inference_timeout` (1 s)",
        Stop.RAMP, HOLD, Reason.LATE_INFERENCE, "inference", WARN, Recovery.NEXT_ANSWER,
        note="dropped when it comes, if its image is older than `max_action_age` (0.6 s)"),
    Row("policy raises", "an exception in the model",
        Stop.CUT, FAULT, Reason.MODEL_ERROR, "model", ERROR, Recovery.RESET,
        note="traceback in the log"),
    Row("out of memory", "no GPU memory for an answer, twice in a row",
        Stop.CUT, FAULT, Reason.GPU_OOM, "GPU", ERROR, Recovery.CONFIGURE,
        note="one retry after emptying the cache; `quantization` needs less; `~/reset` fails"),
    Row("policy hangs", "no answer for `hang_timeout` (10 s)",
        Stop.RAMP, FAULT, Reason.MODEL_HANG, "model", ERROR, Recovery.RESTART,
        tests=("test_node_process.py::"
               "test_a_policy_that_hangs_ends_the_process_with_zeros_and_an_error",),
        note="`inference_timeout` has stopped the arm before; zeros, then exit code 3"),
    Row("cannot load", "weights missing or damaged",
        Stop.NEVER, UNCONFIGURED, Reason.MODEL_ERROR, "model", ERROR, Recovery.RETRY),
    Row("out of memory at load",
        "the GPU is too small, or somebody else uses it: less is free than the weights need and "
        "1 GiB, or than `min_free_gpu_memory_gib`",
        Stop.NEVER, UNCONFIGURED, Reason.GPU_OOM, "GPU", ERROR, Recovery.RETRY,
        tests=("test_node_lifecycle.py::"
               "test_running_out_of_memory_while_loading_is_told_and_retryable",
               "test_gpu_memory.py::test_a_full_gpu_is_refused_before_anything_is_loaded"),
        note="refused with both numbers before anything is loaded"),
    Row("callback fails", "an exception anywhere else in the node",
        Stop.CUT, FAULT, Reason.MODEL_ERROR, "model", ERROR, Recovery.RESET),
)  # fmt: skip

ROBOT = (
    Row("controller lost", "nobody follows the command topic (looked at 5 times a second)",
        Stop.CUT, HOLD, Reason.NO_CONTROLLER, "controller", ERROR, Recovery.CONTROLLER),
    Row("second publisher", "somebody else publishes on the command topic",
        Stop.CUT, FAULT, Reason.MULTIPLE_PUBLISHERS, "controller", ERROR, Recovery.PUBLISHER),
    Row("pose lost", "no end-effector pose for 0.3 s where a box or `output: pose` needs it",
        Stop.CUT, HOLD, Reason.TF_UNAVAILABLE, "controller", ERROR, Recovery.POSE),
    Row("workspace edge", "the arm is at a face of its box",
        Stop.GOES_ON, RUNNING, Reason.WORKSPACE, "command stream", WARN, Recovery.NONE,
        note="what points out of the box is removed from the twist"),
    Row("gripper goal refused", "rejected or aborted by the gripper's server",
        Stop.GOES_ON, RUNNING, Reason.OK, "", None, Recovery.NONE,
        tests=("test_gripper_connection.py::test_a_rejected_goal_is_said_and_not_repeated",),
        note="a warning in the log; tried again with the next change"),
    Row("rate unknown", "nobody has published a dataset's rate, frame or unit",
        Stop.NEVER, HOLD, Reason.MOTION_UNKNOWN, "command stream", ERROR, Recovery.PARAMETER,
        tests=("test_node.py::test_motion_is_refused_while_the_rate_of_the_dataset_is_unknown",)),
)  # fmt: skip

PEOPLE = (
    Row("dead-man switch released", "`~/enable` silent for `deadman_timeout` (0.3 s), or false",
        Stop.CUT, HOLD, Reason.DEADMAN, "command stream", OK, Recovery.PRESS),
    Row("stop", "`~/stop` is called",
        Stop.CUT, HOLD, Reason.OPERATOR, "command stream", OK, Recovery.START,
        note="deactivate and activate do not give the arm back; a new configure does"),
    Row("teleoperation", "a twist on `~/teleop_twist`",
        Stop.GOES_ON, HOLD, Reason.TELEOPERATION, "command stream", OK, Recovery.START,
        note="the arm follows the person, and stands 0.1 s after the last of his twists; kept over "
             "deactivate and activate"),
)  # fmt: skip

PROCESSES = (
    Row("deactivate", "the lifecycle transition, mid-motion",
        Stop.CUT, READY, Reason.OK, "command stream", STALE, Recovery.ACTIVATE,
        tests=("test_node_process.py::test_deactivate_mid_motion_ends_with_a_zero_twist",),
        note="five zeros, acknowledged, are the last on the wire"),
    Row("SIGINT, SIGTERM or SIGHUP",
        "Ctrl-C, `ros2 launch` that ends, systemd; a closed terminal, a lost ssh (not under nohup)",
        Stop.CUT, None, None, "", None, Recovery.RESTART,
        tests=("test_node_process.py::"
               "test_a_signal_mid_motion_ends_with_a_zero_twist_and_exit_0",
               "test_launch_process.py::test_an_interrupt_of_everything_ends_with_a_zero_twist"),
        note="zeros last, exit code 0, within 4 s"),
    Row("main loop ends", "an exception that leaves the executor",
        Stop.CUT, None, None, "", None, Recovery.RESTART,
        tests=("test_node_process.py::"
               "test_an_exception_that_leaves_the_executor_ends_with_a_zero_twist",),
        note="zeros last"),
    Row("process frozen", f"no tick for {LATE_TICK_S} s: SIGSTOP, an overloaded machine",
        Stop.CUT, RUNNING, Reason.OK, "command stream", OK, Recovery.NEXT_ANSWER,
        note="the action under way is dropped, not caught up on"),
    Row("node killed", "SIGKILL, a segmentation fault, the power",
        Stop.SILENT, None, None, "", None, Recovery.RESTART,
        tests=("test_launch_process.py::"
               "test_a_node_that_was_killed_comes_back_unconfigured_and_nothing_moves",),
        note="use a controller with a time-out (MoveIt Servo: 0.1 s), or `action_to_twist`"),
    Row("node hangs beside action_to_twist", "a hanging driver, for `node_timeout` (1 s)",
        Stop.RAMP, HOLD, Reason.MODEL_HANG, "", None, Recovery.NEXT_ANSWER,
        tests=("test_follower.py::"
               "test_a_silent_node_stops_the_arm_within_node_timeout_and_zeros_go_on",),
        note="state and reason in `action_to_twist/status`; zeros go on"),
    Row("node killed beside action_to_twist", "the same, for good",
        Stop.RAMP, HOLD, Reason.MODEL_HANG, "", None, Recovery.RESTART,
        tests=("test_follower.py::"
               "test_a_silent_node_stops_the_arm_within_node_timeout_and_zeros_go_on",),
        note="state and reason in `action_to_twist/status`; zeros go on"),
)  # fmt: skip

SECTIONS = (
    ("What comes in", INPUTS),
    ("The policy", POLICY),
    ("The robot", ROBOT),
    ("People", PEOPLE),
    ("Processes", PROCESSES),
)
ROWS = {row.key: row for _, rows in SECTIONS for row in rows}

BEGIN = """\
# What the arm does when something fails

Every row is a test that breaks the thing in the middle of a motion and looks at what comes over
DDS: [test/test_failure_modes.py](../test/test_failure_modes.py). This page is written by
`python test/failure_rows.py`; do not edit it.

Zeros are streamed at `stream_rate` as long as the node is active: silence means that the node is
gone. So the consumer must stop by itself when twists stay away (MoveIt Servo:
`incoming_command_timeout`, 0.1 s). State, reason and a sentence with the way out are in `~/status`;
the level is that of the named part in `/diagnostics`. Names in backticks are parameters, with their
default. The first cause of a FAULT is kept until `~/reset`, that of GPU_OOM until cleanup.
"""


def page() -> str:
    """The whole page, as Markdown."""
    parts = [BEGIN]
    for title, rows in SECTIONS:
        parts.append(f"## {title}\n")
        parts.append("| failure | the arm | state, reason | `/diagnostics` | goes on |")
        parts.append("|---|---|---|---|---|")
        parts += [_line(row) for row in rows]
        parts.append("")
    return "\n".join(parts)


def _line(row: Row) -> str:
    state = (
        "—" if row.state is None or row.reason is None else f"{row.state.name} {row.reason.name}"
    )
    level = "—" if row.level is None else f"{row.part}: {row.level.name}"
    arm = f"{row.stop.value}; {row.note}" if row.note else row.stop.value
    what = f"**{row.key}**: {row.failure}"
    return f"| {what} | {arm} | {state} | {level} | {row.recovery.value} |"


if __name__ == "__main__":
    print(page(), end="")
