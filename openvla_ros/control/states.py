"""Words for what the node does and why; the numbers are those of VLAStatus.msg and VLAAction.msg.

Repeated here because control/ knows no messages; a test compares the two.
"""

from __future__ import annotations

from enum import IntEnum


class State(IntEnum):
    """What the node is doing. Only RUNNING moves the arm."""

    UNCONFIGURED = 0
    LOADING = 1
    READY = 2
    IDLE = 3
    RUNNING = 4
    HOLD = 5
    FAULT = 6


class Reason(IntEnum):
    """Why the node is in its state."""

    OK = 0
    NO_INSTRUCTION = 1
    NO_IMAGE = 2
    STALE_IMAGE = 3
    BAD_IMAGE = 4
    LATE_INFERENCE = 5
    NON_FINITE = 6
    NO_CONTROLLER = 7
    MULTIPLE_PUBLISHERS = 8
    WORKSPACE = 9
    GPU_OOM = 10
    MODEL_ERROR = 11
    TF_UNAVAILABLE = 12
    CLOCK_JUMP = 13
    OPERATOR = 14
    DEADMAN = 15
    INVALID_TOKEN = 16
    UNSET_STAMP = 17
    MOTION_UNKNOWN = 18
    MODEL_HANG = 19
    BAD_PARAMETER = 20
    TELEOPERATION = 21
    BAD_INSTRUCTION = 22


class Drop(IntEnum):
    """Why an action did not move the arm; NONE when it did."""

    NONE = 0
    DRY_RUN = 1
    STALE = 2
    NON_FINITE = 3
    HOLD = 4
    FAULT = 5
    INVALID_TOKEN = 6
    INSTRUCTION_CHANGED = 7
    MOTION_UNKNOWN = 8
    ONCE = 9
