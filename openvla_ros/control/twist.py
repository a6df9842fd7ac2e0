"""Step displacements → a twist at the stream rate, never going further than the displacement.

The one place where a displacement per step becomes a velocity.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from openvla_ros.control.slew import SpeedLimits

_PERIOD_SAMPLES = 5  # the median of five forgets two outliers
_CARRIED_TICKS = 2.0
_ARRIVED = 1e-9  # a remainder of 1 nm and 1 nrad is rounding


@dataclass(frozen=True)
class StreamSettings:
    """How `TwistStreamer` spends a displacement.

    Attributes:
        mode: "stretch": a step lasts max(its own time, measured time between answers); "exact":
            its own time; "hold": its own time, then the same velocity for at most `hold_max_s`.
        tick_s: Time between two calls of `sample`. The bound on the displacement holds for ticks
            that are not further apart; one that is late by j adds at most the twist times j.
        hold_max_s: See mode "hold".
        decay_s: Length of the ramp to zero after `fade`.
        limits: A step that would be faster takes longer instead.
    """

    mode: str = "stretch"
    tick_s: float = 0.02
    hold_max_s: float = 0.1
    decay_s: float = 0.1
    limits: SpeedLimits = field(default_factory=SpeedLimits)


class _Path:
    """Where a chunk shall be at which time: straight from the end of one step to the next."""

    def __init__(self, steps: np.ndarray, durations_s: list[float]) -> None:
        self._times = [0.0, *np.cumsum(durations_s).tolist()]
        self._points = np.vstack([np.zeros(6), np.cumsum(steps, axis=0)])

    @property
    def duration_s(self) -> float:
        """Time at which the path ends."""
        return self._times[-1]

    def at(self, time_s: float) -> np.ndarray:
        """(6,) displacement since the start, metres and radians."""
        if time_s >= self._times[-1]:
            return self._points[-1]
        k = bisect_right(self._times, time_s)
        share = (time_s - self._times[k - 1]) / (self._times[k] - self._times[k - 1])
        return self._points[k - 1] + share * (self._points[k] - self._points[k - 1])


class TwistStreamer:
    """Spends a chunk of K >= 1 displacements as a stream of twists.

    Invariant, for the twist held constant between ticks: per chunk the integral of the twist never
    exceeds the sum of its displacements ("hold": the last step times 1 + hold_max / its time). A
    new chunk begins with the next tick; what is left of the old one is dropped, because the policy
    has seen where the arm was when it asked for the new one. Only the end of a chunk, at most two
    ticks, is carried over into the first step of the next: answers never keep step with the ticks,
    and each would lose a tenth of a step at 5 Hz.

    Every twist aims at the point of the path that is due at the next tick, from the point that the
    twists until now have reached: a chunk loses neither displacement nor time to the grid of ticks.

    Attributes:
        settings: May be replaced at any time; a chunk keeps the times that it has begun with.
        slowed_steps: Steps that took longer because of the speed limits.
        carried: (6,) m and rad: what the running chunk took over from the one before.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self.settings = settings
        self.slowed_steps = 0
        self.carried = np.zeros(6)
        self._accepted: tuple[np.ndarray, float] | None = None  # begins with the next tick
        self._path: _Path | None = None  # of the chunk that is being executed
        self._own_s = 0.0  # time at which its own steps end, and mode "hold" begins to hold
        self._time_s = 0.0  # on the path; slower than the clock while the twist fades
        self._reached = np.zeros(6)  # integral of the twists of this chunk
        self._twist = np.zeros(6)  # as published last
        self._pace = 1.0  # share of the full speed with which it was published
        self._last_tick_s: float | None = None
        self._last_accept_s: float | None = None
        self._periods: deque[float] = deque(maxlen=_PERIOD_SAMPLES)
        self._fade_start_s: float | None = None

    @property
    def is_moving(self) -> bool:
        """True while some displacement is left to execute."""
        return self._path is not None or self._accepted is not None

    @property
    def period_s(self) -> float | None:
        """Median time between the last answers, seconds; None before the second one."""
        return float(np.median(self._periods)) if self._periods else None

    def accept(self, steps: np.ndarray, step_s: float, now_s: float) -> None:
        """Replace what is left of the old chunk by a new one, from the next tick on.

        Args:
            steps: (K, 6) metres and radians, base axes.
            step_s: Duration of one step in the dataset, seconds, > 0.
            now_s: Steady time, seconds.
        """
        assert steps.ndim == 2 and steps.shape[1] == 6 and step_s > 0.0, (steps, step_s)
        if self._last_accept_s is not None and now_s > self._last_accept_s:
            self._periods.append(now_s - self._last_accept_s)
        self._last_accept_s = now_s
        self._accepted = (np.array(steps, dtype=np.float64), step_s)

    def sample(self, now_s: float) -> np.ndarray:
        """Return the (6,) twist to publish now, m/s and rad/s, to be held until the next tick."""
        self._advance(now_s)
        if self._accepted is not None:
            self._begin(*self._accepted)
        self._pace = self._fading(now_s)
        if self._path is None or self._pace <= 0.0:
            self._clear()
            return np.zeros(6)
        due = self._path.at(self._time_s + self.settings.tick_s)
        # A late tick may have cut a corner; the way back to the path is not faster than the limits.
        full, _ = self.settings.limits.capped((due - self._reached) / self.settings.tick_s)
        self._twist = full * self._pace
        return self._twist

    def fade(self, now_s: float) -> None:
        """Ramp to zero within `decay_s`, and forget the rest of the chunk."""
        self._advance(now_s)
        self._accepted = None
        if self._fade_start_s is None:
            self._fade_start_s = now_s
        self._last_accept_s = None  # a pause is not a period between answers

    def stop(self) -> None:
        """Forget everything: the next sample is zero."""
        self._clear()
        self._accepted = None
        self._last_accept_s = None
        self._last_tick_s = None
        self._periods.clear()

    def _begin(self, steps: np.ndarray, step_s: float) -> None:
        self.carried = self._rest()
        self._clear()
        self._accepted = None
        settings, held = self.settings, steps[-1].copy()
        if settings.mode == "stretch" and self.period_s is not None:
            step_s = max(step_s, self.period_s / len(steps))
        steps[0] += self.carried
        durations_s = [max(step_s, settings.limits.shortest_time_s(step)) for step in steps]
        self.slowed_steps += sum(d > step_s * (1.0 + 1e-9) for d in durations_s)
        self._own_s = sum(durations_s)
        if settings.mode == "hold" and settings.hold_max_s > 0.0:
            held_s = max(step_s, settings.limits.shortest_time_s(held))
            steps = np.vstack([steps, held * (settings.hold_max_s / held_s)])
            durations_s = [*durations_s, settings.hold_max_s]
        self._path = _Path(steps, durations_s)

    def _rest(self) -> np.ndarray:
        """(6,) what is left of the steps of the running chunk when only its end is left."""
        left_s = self._own_s - self._time_s
        is_held = left_s <= 0.0 and self.settings.mode == "hold"
        if self._path is None or self._fade_start_s is not None or is_held:
            return np.zeros(6)
        if left_s > _CARRIED_TICKS * self.settings.tick_s * (1.0 + 1e-6):
            return np.zeros(6)
        return self._path.at(self._own_s) - self._reached

    def _clear(self) -> None:
        self._path, self._fade_start_s = None, None
        self._time_s, self._reached, self._twist = 0.0, np.zeros(6), np.zeros(6)

    def _advance(self, now_s: float) -> None:
        """Book what the published twist has moved since the last tick."""
        elapsed_s = 0.0 if self._last_tick_s is None else max(now_s - self._last_tick_s, 0.0)
        self._last_tick_s = now_s
        if self._path is None:
            self._fade_start_s = None
            return
        self._reached = self._reached + self._twist * elapsed_s
        self._time_s += self._pace * elapsed_s
        if self._time_s >= self._path.duration_s and self._is_arrived():
            self._clear()

    def _is_arrived(self) -> bool:
        assert self._path is not None
        left = self._path.at(self._time_s) - self._reached
        # A late tick may have carried the arm past the end: it does not come back from there.
        return float(np.abs(left).max()) <= _ARRIVED or float(left @ self._twist) <= 0.0

    def _fading(self, now_s: float) -> float:
        if self._fade_start_s is None:
            return 1.0
        if self.settings.decay_s <= 0.0:
            return 0.0
        return min(max(1.0 - (now_s - self._fade_start_s) / self.settings.decay_s, 0.0), 1.0)
