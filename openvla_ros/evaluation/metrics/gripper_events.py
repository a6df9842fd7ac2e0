"""When the gripper opened and closed, and how long before or after it the policy says so.

The mean error of the gripper hides this: it changes once or twice in an episode, and a policy that
closes half a second late misses the object with 95 % of its steps right.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

#: An answered change counts as the recorded one up to this long before or after it.
WINDOW_S = 1.0


@dataclass(frozen=True)
class GripperEvent:
    """The recorded gripper changes at a step.

    Attributes:
        episode: Which of the stacked records.
        step: First step with the new state.
        kind: "open" or "close".
        delay_steps: Steps from here to the answered change of the same kind; negative = early;
            None where there is none within the window.
        delay_s: The same in seconds.
    """

    episode: int
    step: int
    kind: str
    delay_steps: int | None
    delay_s: float | None


def match_events(
    episode: np.ndarray,
    step: np.ndarray,
    rate_hz: np.ndarray,
    recorded_closed: np.ndarray,
    answered_closed: np.ndarray,
) -> tuple[list[GripperEvent], int]:
    """Return every recorded event with its answered change, and how many changes were answered.

    An answered change belongs to one event at most: the closest pairs of an episode come first,
    early before late, the earlier event before the later.

    Args:
        episode: (N,) int64, not decreasing.
        step: (N,) int64, increasing within an episode.
        rate_hz: (N,) of the episode.
        recorded_closed: (N,) 1 closed, 0 open, NaN not known: such steps are passed over.
        answered_closed: (N,) likewise.
    """
    events: list[GripperEvent] = []
    answered_changes = 0
    starts = np.flatnonzero(np.diff(episode, prepend=-1))
    for start, end in itertools.pairwise([*starts.tolist(), len(episode)]):
        rows = slice(start, end)
        recorded = _changes(step[rows], recorded_closed[rows])
        answered = _changes(step[rows], answered_closed[rows])
        answered_changes += len(answered)
        rate = float(rate_hz[start])
        delays = _delays(recorded, answered, math.floor(WINDOW_S * rate + 1e-9))
        for (at, closes), delay in zip(recorded, delays, strict=True):
            kind = "close" if closes else "open"
            delay_s = None if delay is None else delay / rate
            events.append(GripperEvent(int(episode[start]), at, kind, delay, delay_s))
    return events, answered_changes


def _changes(step: np.ndarray, closed: np.ndarray) -> list[tuple[int, bool]]:
    """(step, whether it closes) of every change of state between steps where it is known."""
    known = ~np.isnan(closed)
    step, closed = step[known], closed[known]
    rows = np.flatnonzero(np.diff(closed)) + 1
    return [(int(step[row]), bool(closed[row])) for row in rows]


def _delays(
    recorded: list[tuple[int, bool]], answered: list[tuple[int, bool]], window: int
) -> list[int | None]:
    """Steps from each recorded change to its own answered one, or None."""
    pairs = sorted(
        (abs(there - here), there - here, i, j)
        for i, (here, closes) in enumerate(recorded)
        for j, (there, also) in enumerate(answered)
        if closes == also and abs(there - here) <= window
    )
    delays: list[int | None] = [None] * len(recorded)
    taken: set[int] = set()
    for _, delay, i, j in pairs:
        if delays[i] is None and j not in taken:
            delays[i] = delay
            taken.add(j)
    return delays
