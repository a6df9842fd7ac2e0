"""What a fault may cost, what it did cost, and both as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measured_document import origin, write_section

from openvla_ros.config import NodeConfig
from openvla_ros.ros.process import POLL_S
from openvla_ros.sim.kinematic_arm import COMMAND_TIMEOUT_S

ARM_PERIOD_S = 0.02  # of the mock robot
SCHEDULING_S = 0.1  # a thread of a busy machine that shares two cores may wait for so long


@dataclass(frozen=True)
class Fault:
    """What happens to whom: kill (SIGKILL), hang (SIGSTOP), restart (SIGTERM)."""

    role: str
    kind: str


@dataclass
class Outcome:
    """What one fault did. Times in seconds after it; None = does not apply.

    `longest_silence_s` is no violation: an arm that hears nothing stops. It is here because a
    frozen reader can block a writer on the same machine (Fast DDS waits up to 1 s for the lock of
    the shared memory).
    """

    fault: Fault
    wire_s: float | None
    arm_s: float | None
    wire_bound_s: float | None
    arm_bound_s: float | None
    longest_silence_s: float | None = None
    jump_m: float | None = None
    recovery_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def is_violation(self) -> bool:
        """True when something went on that must not."""
        pairs = ((self.wire_s, self.wire_bound_s), (self.arm_s, self.arm_bound_s))
        is_late = any(t is not None and b is not None and t > b for t, b in pairs)
        return is_late or bool(self.problems)

    def text(self) -> str:
        """One line of the log."""
        flag = " VIOLATION" if self.is_violation else ""
        return (
            f"{self.fault.kind:8s}{self.fault.role:9s} wire {_pair(self.wire_s, self.wire_bound_s)}"
            f"  arm {_pair(self.arm_s, self.arm_bound_s)}  silence {_one(self.longest_silence_s)}"
            f"  back after {self.recovery_s:.2f} s{flag} {'; '.join(self.problems)}"
        ).rstrip()


def bounds(
    fault: Fault, config: NodeConfig, *, split: bool, allowance_s: float = SCHEDULING_S
) -> tuple[float | None, float | None]:
    """Return for how long the twist, and the arm, may go on after a fault, seconds.

    None: the twist goes on with good reason (nobody but the arm is missing), or there is no arm.
    """
    tick_s, decay_s = 1.0 / config.motion.stream_rate, config.motion.decay_time
    role, kind = fault.role, fault.kind
    if role == "consumer":
        # A frozen arm does not move, and a dead one neither.
        return None, ARM_PERIOD_S + allowance_s
    if role == "camera":
        wire = config.inputs.image_timeout + decay_s + tick_s
    elif kind == "restart":
        wire = POLL_S  # the signal is noticed, and zeros follow
        if role == "node" and split:
            wire += tick_s  # the streamer hears it from the status
    elif role == "node" and split:
        wire = config.split.node_timeout + decay_s + tick_s
    else:
        wire = 0.0  # the publisher is gone
    wire += allowance_s
    return wire, wire + COMMAND_TIMEOUT_S + ARM_PERIOD_S


def report(runs: list[Any]) -> str:
    """Return the numbers of all modes as Markdown."""
    parts = []
    for run in runs:
        rows = [
            f"**{run.mode}**: {len(run.outcomes)} faults in {run.duration_s:.0f} s, "
            f"{sum(o.is_violation for o in run.outcomes)} beyond the bound, "
            f"{len(run.leaks)} leaks.",
            "",
            "| process | fault | times | twist went on, max | bound | arm went on, max | bound "
            "| longest gap in the twist | back in motion after, median |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for fault in sorted({o.fault for o in run.outcomes}, key=lambda f: (f.role, f.kind)):
            rows.append(_row(fault, [o for o in run.outcomes if o.fault == fault]))
        rows += [
            "",
            "Growth of one process over all the faults that it survived, at most: "
            + ", ".join(f"{value} {what}" for what, value in run.growth.items())
            + f". Shared-memory segments that killed processes left: {run.segments_left}, removed.",
            "",
        ]
        rows += [f"- {line}" for line in [*run.problems, *run.leaks]]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _row(fault: Fault, outcomes: list[Outcome]) -> str:
    def worst(name: str) -> str:
        values = [v for o in outcomes if (v := getattr(o, name)) is not None]
        return _one(max(values)) if values else "–"

    back = sorted(o.recovery_s for o in outcomes)[len(outcomes) // 2]
    cells = [fault.role, fault.kind, str(len(outcomes))]
    cells += [worst(n) for n in ("wire_s", "wire_bound_s", "arm_s", "arm_bound_s")]
    cells += [worst("longest_silence_s"), f"{back:.1f} s"]
    return "| " + " | ".join(cells) + " |"


def _one(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


def _pair(value: float | None, bound: float | None) -> str:
    return f"{_one(value)} of {_one(bound)}"


def write_document(path: Path, section: str, text: str, seed: int | None = None) -> None:
    """Replace one section of a document, between its markers, by new numbers and their origin."""
    write_section(path, section, text, origin(seed, "Fast DDS with config/fastdds_images.xml"))
