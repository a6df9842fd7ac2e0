"""What threshold, hysteresis and votes of the gripper make of recorded openings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

HALF_OPEN = 0.5


@dataclass(frozen=True)
class GripperOutcome:
    """Which recorded openings and closings the gripper follows.

    Attributes:
        recorded: Events of the recording: the opening passes the half.
        delays: Per event in order: steps by which the gripper follows later; None = it never does.
        extra: Times the gripper opens or closes, and the recording does not.
    """

    recorded: int
    delays: tuple[int | None, ...]
    extra: int

    @property
    def kept(self) -> int:
        """Events that the gripper follows, at once or later."""
        return sum(delay is not None for delay in self.delays)

    @property
    def lost(self) -> int:
        """Events that the gripper does not follow."""
        return self.recorded - self.kept

    @property
    def delayed(self) -> int:
        """Events that the gripper follows one step later or more."""
        return sum(bool(delay) for delay in self.delays)


def gripper_outcome(
    openings: np.ndarray, decisions: Sequence[bool | None], *, votes: int = 1
) -> GripperOutcome:
    """Return what became of the recorded gripper events of one episode.

    A recorded event is followed when the gripper does the same at its step or later, before the
    recording does the opposite. It begins as the recording does, and has not moved before its first
    decision. What happens within the last `votes` - 1 steps cannot be judged, because the recording
    ends before the gripper has its votes; it is left out.

    Args:
        openings: (T,) 0 closed ... 1 open as recorded; NaN where nothing was.
        decisions: T decisions of the gripper, True = open; None = not decided yet.
        votes: Equal steps in a row that a decision takes.
    """
    is_open = [None if np.isnan(value) else bool(value > HALF_OPEN) for value in openings]
    recorded = [event for event in _events(is_open) if event[0] <= len(openings) - votes]
    begun = next((state for state in is_open if state is not None), None)
    done = _events([begun if decision is None else decision for decision in (None, *decisions)])
    done = [(step - 1, kind) for step, kind in done]
    delays: list[int | None] = []
    used: set[int] = set()
    ends = [step for step, _ in recorded[1:]] + [len(openings)]
    for (step, kind), end in zip(recorded, ends, strict=False):  # no event has no end
        found = [s for s, k in done if k == kind and step <= s < end and s not in used]
        used.update(found[:1])
        delays.append(found[0] - step if found else None)
    return GripperOutcome(len(recorded), tuple(delays), len(done) - len(used))


def _events(states: Sequence[bool | None]) -> list[tuple[int, bool]]:
    """Steps at which a state differs from the one known before, and what it becomes."""
    known = [(step, state) for step, state in enumerate(states) if state is not None]
    return [(step, state) for (_, before), (step, state) in pairwise(known) if state != before]
