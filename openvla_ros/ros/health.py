"""What /diagnostics says of the node: one `Health` per part. No ROS in here, and no clock.

Levels: OK works; WARN is degraded, or waits for somebody; ERROR has stopped the arm for a fault of
this part; STALE has no data to judge by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from openvla_ros.config import NodeConfig
from openvla_ros.control.safety import SafetyReport
from openvla_ros.control.states import Reason, State
from openvla_ros.control.supervisor import Verdict
from openvla_ros.ros.ledger import Ledger
from openvla_ros.types import DecodingStatistics, PolicyInfo

FIRST_IMAGE_S = 2.0  # an active node without an image warns after so long
SLOW_STREAM = 0.8  # of stream_rate: below it, the twist comes too slowly
FULL_GPU = 0.95  # of the memory
MEBIBYTE = 1024 * 1024


class Level(IntEnum):
    """The numbers of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


#: Reason of the verdict → the part it concerns, and how bad it is while the node is not in FAULT.
#: A FAULT is always an ERROR of its part.
CONCERNS: Mapping[Reason, tuple[str, Level]] = {
    Reason.OK: ("", Level.OK),
    Reason.NO_INSTRUCTION: ("inference", Level.OK),
    Reason.NO_IMAGE: ("camera", Level.OK),  # a warning after FIRST_IMAGE_S
    Reason.STALE_IMAGE: ("camera", Level.ERROR),
    Reason.BAD_IMAGE: ("camera", Level.ERROR),
    Reason.UNSET_STAMP: ("camera", Level.ERROR),
    Reason.CLOCK_JUMP: ("camera", Level.WARN),
    Reason.BAD_INSTRUCTION: ("inference", Level.WARN),
    Reason.LATE_INFERENCE: ("inference", Level.WARN),
    Reason.NON_FINITE: ("inference", Level.WARN),
    Reason.INVALID_TOKEN: ("inference", Level.WARN),
    Reason.MODEL_HANG: ("model", Level.ERROR),
    Reason.MODEL_ERROR: ("model", Level.ERROR),
    Reason.BAD_PARAMETER: ("model", Level.ERROR),
    Reason.GPU_OOM: ("GPU", Level.ERROR),
    Reason.MOTION_UNKNOWN: ("command stream", Level.ERROR),
    Reason.WORKSPACE: ("command stream", Level.WARN),
    Reason.OPERATOR: ("command stream", Level.OK),
    Reason.DEADMAN: ("command stream", Level.OK),
    Reason.TELEOPERATION: ("command stream", Level.OK),
    Reason.NO_CONTROLLER: ("controller", Level.ERROR),
    Reason.MULTIPLE_PUBLISHERS: ("controller", Level.ERROR),
    Reason.TF_UNAVAILABLE: ("controller", Level.ERROR),
}


@dataclass(frozen=True)
class Snapshot:
    """The node at one moment.

    Attributes:
        verdict: What it does, and why.
        is_active: True between activation and deactivation.
        active_s: Seconds since activation.
        config: Parameters in force.
        info: The loaded policy; None without one.
        ledger: Counts since activation; None without a policy.
        report: What the safety filter changed; None without a policy.
        image_age_s: Of the newest image; NaN before the first.
        now_s: Steady time, for rates.
        twist_topic: Resolved name.
        subscribers: On the twist topic.
        publishers: On the twist topic; this node is one of them.
        gpu_bytes: Used and total; (0, 0) = this process uses no GPU.
        gripper_trouble: Why the fingers may not be where they should be; "" = nothing known.
        statistics: How actions were decoded since the policy was loaded.
    """

    verdict: Verdict
    is_active: bool
    active_s: float
    config: NodeConfig
    info: PolicyInfo | None
    ledger: Ledger | None
    report: SafetyReport | None
    image_age_s: float
    now_s: float
    twist_topic: str
    subscribers: int
    publishers: int
    gpu_bytes: tuple[int, int]
    gripper_trouble: str = ""
    statistics: DecodingStatistics = field(default_factory=DecodingStatistics)


@dataclass(frozen=True)
class Health:
    """One line of rqt_robot_monitor: a part, its level, a sentence, and named values with units."""

    part: str
    level: Level
    message: str
    values: Mapping[str, str] = field(default_factory=dict)


def examine(now: Snapshot) -> list[Health]:
    """Return the health of every part, in a fixed order."""
    return [examination(now) for examination in _PARTS]


def _camera(now: Snapshot) -> Health:
    if not now.is_active or now.ledger is None:
        return Health("camera", Level.STALE, "not judged: the node is not active")
    ledger = now.ledger
    rate_hz = ledger.images.rate_hz(now.now_s)
    values = {
        "rate (Hz)": _number(rate_hz),
        "age of newest image (s)": _number(now.image_age_s, 3),
        "image_max_age (s)": _number(now.config.inputs.image_max_age),
        "received": str(ledger.received),
        "dropped": str(ledger.dropped),
    }
    if ledger.received:
        level, message = _judge(now, "camera", f"{rate_hz:.1f} Hz")
        return Health("camera", level, message, values)
    if now.active_s < FIRST_IMAGE_S:
        return Health("camera", Level.OK, "waits for the first image", values)
    return Health("camera", Level.WARN, "no image has arrived since activation", values)


def _model(now: Snapshot) -> Health:
    values = {"state": now.verdict.state.name, "backend": now.config.model.backend}
    level, message = _judge(now, "model", "loaded")
    if now.info is None:
        if level is Level.OK:
            loading = now.verdict.state is State.LOADING
            level, message = Level.STALE, "is being loaded" if loading else "no policy is loaded"
        return Health("model", level, message, values)
    values |= {
        "checkpoint": now.info.checkpoint,
        "revision": now.info.revision or "not pinned",
        "unnorm_key": now.info.unnorm_key,
        "quantization": now.info.quantization,
        **now.info.choices,
    }
    if now.verdict.state is State.READY and now.verdict.detail:
        level, message = Level.WARN, now.verdict.detail  # this machine is too slow
    return Health("model", level, message, values)


def _inference(now: Snapshot) -> Health:
    if not now.is_active or now.ledger is None:
        return Health("inference", Level.STALE, "not judged: the node is not active")
    ledger = now.ledger
    rate_hz = ledger.answers.rate_hz(now.now_s)
    values = {
        "rate (Hz)": _number(rate_hz),
        "policy_rate (Hz)": _number(now.config.timing.policy_rate),
        "last latency (ms)": _number(1000.0 * ledger.last_latency_s, 0),
        "mean latency (ms)": _number(1000.0 * ledger.mean_latency_s, 0),
        "max latency (ms)": _number(1000.0 * ledger.max_latency_s, 0),
        "answers": str(ledger.actions),
        "answers not executed": str(ledger.actions_not_executed),
        "answers clipped": str(ledger.clips),
        **now.statistics.described(),
    }
    good = f"{rate_hz:.1f} Hz" if ledger.actions else "no answer yet"
    if now.verdict.reason is Reason.NO_INSTRUCTION:
        good = "no instruction: nothing to do"
    level, message = _judge(now, "inference", good)
    return Health("inference", level, message, values)


def _command_stream(now: Snapshot) -> Health:
    part = "command stream"
    if not now.is_active or now.ledger is None:
        return Health(part, Level.STALE, "not judged: the node is not active")
    rate_hz, wanted_hz = now.ledger.commands.rate_hz(now.now_s), now.config.motion.stream_rate
    values = {
        "rate (Hz)": _number(rate_hz),
        "stream_rate (Hz)": _number(wanted_hz),
        "motion_enabled": str(now.config.motion.motion_enabled).lower(),
        "speed_scale": _number(now.config.motion.speed_scale),
    }
    if now.report is not None:
        values["twist is zero for (s)"] = _number(now.report.still_s)
        values |= {f"limited by {r.value}": str(n) for r, n in now.report.counts.items()}
    level, message = _judge(now, part, "streams" if now.verdict.may_move else "streams zeros")
    if level is Level.OK and rate_hz < SLOW_STREAM * wanted_hz and now.active_s > FIRST_IMAGE_S:
        level = Level.ERROR if rate_hz == 0.0 else Level.WARN
        message = f"{rate_hz:.1f} Hz instead of {wanted_hz:g} Hz: this machine is too busy"
    elif level is Level.OK and not now.config.motion.motion_enabled:
        message = "dry run: streams zeros"
    return Health(part, level, message, values)


def _controller(now: Snapshot) -> Health:
    values = {
        "topic": now.twist_topic,
        "subscribers": str(now.subscribers),
        "publishers": str(now.publishers),
    }
    level, message = _judge(now, "controller", f"{now.subscribers} listen")
    if level is Level.OK and now.publishers > 1:
        level, message = Level.WARN, f"{now.publishers - 1} others publish on {now.twist_topic}"
    elif level is Level.OK and now.subscribers == 0:
        wants_it = now.is_active and now.config.motion.motion_enabled
        level = Level.WARN if wants_it else Level.OK
        message = f"nobody listens to {now.twist_topic}"
    return Health("controller", level, message, values)


def _gripper(now: Snapshot) -> Health:
    backend = now.config.gripper.backend
    values = {"gripper.backend": backend}
    if now.gripper_trouble:
        return Health("gripper", Level.WARN, now.gripper_trouble, values)
    message = "on ~/gripper_cmd only" if backend == "none" else "does what it is told"
    return Health("gripper", Level.OK, message, values)


def _gpu(now: Snapshot) -> Health:
    used, total = now.gpu_bytes
    level, message = _judge(now, "GPU", "no GPU is used")
    if not total:
        return Health("GPU", level, message)
    share = used / total
    values = {
        "memory used (MiB)": _number(used / MEBIBYTE, 0),
        "memory total (MiB)": _number(total / MEBIBYTE, 0),
    }
    if level is Level.OK:
        level = Level.WARN if share > FULL_GPU else Level.OK
        message = f"{100.0 * share:.0f} % of the memory is used"
    return Health("GPU", level, message, values)


def _judge(now: Snapshot, part: str, good: str) -> tuple[Level, str]:
    """The verdict's level and words, when it concerns this part; else OK and `good`."""
    concerned, level = CONCERNS[now.verdict.reason]
    if concerned != part or (level is Level.OK and now.verdict.state is not State.FAULT):
        is_word = concerned == part and now.verdict.state is State.HOLD
        return Level.OK, _words(now.verdict) if is_word else good
    return (Level.ERROR if now.verdict.state is State.FAULT else level), _words(now.verdict)


def _words(verdict: Verdict) -> str:
    return f"{verdict.state.name} {verdict.reason.name}: {verdict.detail}"


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "unknown"


_PARTS: tuple[Callable[[Snapshot], Health], ...] = (
    _camera,
    _model,
    _inference,
    _command_stream,
    _controller,
    _gripper,
    _gpu,
)
