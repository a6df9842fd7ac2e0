"""What /diagnostics says of each part, without ROS."""

from __future__ import annotations

import dataclasses
import math

import pytest

from openvla_ros.config import NodeConfig
from openvla_ros.control.safety import Intervention, SafetyReport
from openvla_ros.control.states import Reason, State
from openvla_ros.control.supervisor import Verdict
from openvla_ros.ros.health import CONCERNS, MEBIBYTE, Health, Level, Snapshot, examine
from openvla_ros.ros.ledger import Ledger
from openvla_ros.types import DecodingStatistics, PolicyInfo

PARTS = ["camera", "model", "inference", "command stream", "controller", "gripper", "GPU"]


def busy_ledger() -> Ledger:
    """Ten seconds of images and answers at 5 Hz, and of a twist at 50 Hz."""
    ledger = Ledger()
    for step in range(50):
        ledger.image(0.2 * step)
        ledger.answer(0.15, 0.2 * step, is_clipped=False, is_refused=False)
    for step in range(500):
        ledger.commands.mark(0.02 * step)
    return ledger


HEALTHY = Snapshot(
    verdict=Verdict(State.RUNNING),
    is_active=True,
    active_s=10.0,
    config=NodeConfig.from_values({"motion_enabled": True, "base_frame": "base_link"}),
    info=PolicyInfo("openvla/openvla-7b", "abc", "bridge_orig", choices={"dtype": "bfloat16: GPU"}),
    ledger=busy_ledger(),
    report=SafetyReport({Intervention.SPEED: 3}),
    image_age_s=0.05,
    now_s=10.0,
    twist_topic="/servo_node/delta_twist_cmds",
    subscribers=1,
    publishers=1,
    gpu_bytes=(8_000 * MEBIBYTE, 16_000 * MEBIBYTE),
)


def health(part: str, **changes: object) -> Health:
    parts = {h.part: h for h in examine(dataclasses.replace(HEALTHY, **changes))}
    return parts[part]


def verdict(state: State, reason: Reason, detail: str = "why") -> dict[str, Verdict]:
    return {"verdict": Verdict(state, reason, detail)}


def test_a_node_at_work_is_ok_in_every_part() -> None:
    parts = examine(HEALTHY)
    assert [h.part for h in parts] == PARTS
    assert {h.level for h in parts} == {Level.OK}, parts


def test_every_reason_concerns_one_part() -> None:
    assert set(CONCERNS) == set(Reason)
    assert {part for part, _ in CONCERNS.values()} <= {"", *PARTS}


@pytest.mark.parametrize("reason", [r for r in Reason if r is not Reason.OK])
def test_a_fault_is_an_error_of_its_part_and_of_no_other(reason: Reason) -> None:
    part = CONCERNS[reason][0]
    parts = examine(dataclasses.replace(HEALTHY, **verdict(State.FAULT, reason)))
    assert [h.part for h in parts if h.level is Level.ERROR] == [part]
    (bad,) = [h for h in parts if h.part == part]
    assert bad.message == f"FAULT {reason.name}: why"


@pytest.mark.parametrize(
    ("reason", "part", "level"),
    [
        (Reason.STALE_IMAGE, "camera", Level.ERROR),
        (Reason.CLOCK_JUMP, "camera", Level.WARN),
        (Reason.LATE_INFERENCE, "inference", Level.WARN),
        (Reason.NO_CONTROLLER, "controller", Level.ERROR),
        (Reason.OPERATOR, "command stream", Level.OK),
    ],
)
def test_a_hold_is_as_bad_as_its_reason_and_says_it(
    reason: Reason, part: str, level: Level
) -> None:
    found = health(part, **verdict(State.HOLD, reason))
    assert found.level is level
    assert found.message == f"HOLD {reason.name}: why"


@pytest.mark.parametrize(("active_s", "level"), [(1.9, Level.OK), (2.1, Level.WARN)])
def test_a_camera_that_never_came_warns_after_two_seconds(active_s: float, level: Level) -> None:
    found = health(
        "camera",
        **verdict(State.IDLE, Reason.NO_IMAGE),
        ledger=Ledger(),
        image_age_s=math.nan,
        active_s=active_s,
    )
    assert found.level is level
    assert found.values["age of newest image (s)"] == "unknown"


def test_what_cannot_be_judged_is_stale() -> None:
    inactive = verdict(State.READY, Reason.OK, "")
    for part in ("camera", "inference", "command stream"):
        assert health(part, **inactive, is_active=False).level is Level.STALE
    empty = verdict(State.UNCONFIGURED, Reason.OK, "")
    found = health("model", **empty, is_active=False, info=None, ledger=None)
    assert (found.level, found.message) == (Level.STALE, "no policy is loaded")


def test_a_failed_configure_is_an_error_of_the_model() -> None:
    failed = verdict(State.UNCONFIGURED, Reason.MODEL_ERROR, "no such folder")
    found = health("model", **failed, is_active=False, info=None, ledger=None)
    assert found.level is Level.ERROR and "no such folder" in found.message


def test_a_machine_too_slow_for_the_policy_warns_while_it_is_ready() -> None:
    slow = verdict(State.READY, Reason.OK, "one prediction takes 0.9 s")
    found = health("model", **slow, is_active=False)
    assert (found.level, found.message) == (Level.WARN, "one prediction takes 0.9 s")


def test_a_stream_slower_than_its_rate_warns_and_a_silent_one_is_an_error() -> None:
    slow = busy_ledger()
    for step in range(200):
        slow.commands.mark(10.0 + 0.05 * step)
    assert health("command stream", ledger=slow, now_s=20.0).level is Level.WARN
    assert health("command stream", now_s=100.0).level is Level.ERROR
    assert health("command stream").values["limited by speed"] == "3"


def test_motion_without_a_listener_warns_and_a_dry_run_does_not() -> None:
    assert health("controller", subscribers=0).level is Level.WARN
    dry = NodeConfig.from_values({})
    assert health("controller", subscribers=0, config=dry).level is Level.OK
    assert health("controller", publishers=2).level is Level.WARN


def test_a_gripper_that_refused_warns_with_its_words() -> None:
    """The arm goes on: only this line, and the log, say that the fingers may be elsewhere."""
    part = health("gripper", gripper_trouble="move rejected the goal")
    assert (part.level, part.message) == (Level.WARN, "move rejected the goal")
    assert health("gripper").values == {"gripper.backend": "none"}


def test_the_gpu_warns_when_it_is_nearly_full() -> None:
    assert health("GPU").values["memory used (MiB)"] == "8000"
    assert health("GPU", gpu_bytes=(96, 100)).level is Level.WARN
    assert health("GPU", gpu_bytes=(0, 0)).message == "no GPU is used"


def test_what_drafts_did_is_shown_once_there_was_an_action() -> None:
    assert "drafted actions" not in health("inference").values
    done = DecodingStatistics(
        actions=10, passes=28, drafted=9, accepted=(3, 0, 0, 0, 0, 0, 6), guard_fired=2
    )
    values = health("inference", statistics=done).values
    assert values["mean passes"] == "2.80"
    assert values["draft ids confirmed"] == "4.00 on average: 3 had 0, 6 had 6"
    assert values["guard fired"] == "2"
    assert "settled by Hugging Face" not in values
