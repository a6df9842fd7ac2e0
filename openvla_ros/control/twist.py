"""Step displacements → a twist at the stream rate, never going further than the displacement.

The one place where a displacement per step becomes a velocity.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from openvla_ros.control.slew import SpeedLimits

_PERIOD_SAMPLES = 5  # the median of five forgets two outliers


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


class TwistStreamer:
    """Spends a chunk of K >= 1 displacements as a stream of twists.

    Invariant, for the twist held constant between ticks: per chunk the integral of the twist never
    exceeds the sum of its displacements ("hold": the last step times 1 + hold_max / its time). A new
    chunk begins with the next tick; what is left of the old one is dropped, because the policy has
    seen where the arm was when it asked for the new one.

    Attributes:
        settings: May be replaced at any time.
        slowed_steps: Steps that took longer because of the speed limits.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self.settings = settings
        self.slowed_steps = 0
        self._accepted: tuple[np.ndarray, float] | None = None  # begins with the next tick
        self._steps: deque[np.ndarray] = deque()  # (6,) each; the first one is being executed
        self._step_s = 1.0  # time one step takes, before the speed limits
        self._spent = 0.0  # fraction of the first step that is already executed
        self._speed = 0.0  # fraction of the first step per second, as published last
        self._last_tick_s: float | None = None
        self._last_accept_s: float | None = None
        self._periods: deque[float] = deque(maxlen=_PERIOD_SAMPLES)
        self._fade_start_s: float | None = None

    @property
    def is_moving(self) -> bool:
        """True while some displacement is left to execute."""
        return bool(self._steps) or self._accepted is not None

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
        if not self._steps:
            return np.zeros(6)
        step = self._steps[0]
        duration_s = self._duration_s(step)
        left = max(self._budget() - self._spent, 0.0)
        self._speed = min(1.0 / duration_s, left / self.settings.tick_s) * self._fading(now_s)
        if self._speed <= 0.0:
            self._clear()
            return np.zeros(6)
        return step * self._speed

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

    def _begin(self, chunk: np.ndarray, step_s: float) -> None:
        self._clear()
        self._accepted = None
        self._steps, self._step_s = deque(chunk), step_s
        if self.settings.mode == "stretch" and self.period_s is not None:
            self._step_s = max(step_s, self.period_s / len(chunk))
        shortest_s = map(self.settings.limits.shortest_time_s, chunk)
        self.slowed_steps += sum(s > self._step_s * (1.0 + 1e-9) for s in shortest_s)

    def _clear(self) -> None:
        self._steps.clear()
        self._spent, self._speed, self._fade_start_s = 0.0, 0.0, None

    def _advance(self, now_s: float) -> None:
        """Book what the published twist has moved since the last tick, and go to the next step."""
        elapsed_s = 0.0 if self._last_tick_s is None else max(now_s - self._last_tick_s, 0.0)
        self._last_tick_s = now_s
        self._spent += self._speed * elapsed_s
        while self._steps and self._step_is_over():
            step, left = self._steps.popleft(), 1.0 - self._spent
            if self._steps and left > 0.0:
                # Less than a tick of this step is left. It rides along with the next one, so that a
                # chunk loses neither displacement nor time to the grid of ticks.
                self._steps[0] = self._steps[0] + left * step
            self._spent = 0.0
        if not self._steps:
            self._clear()

    def _step_is_over(self) -> bool:
        left = self._budget() - self._spent
        if len(self._steps) > 1:
            return left * self._step_s < self.settings.tick_s * (1.0 - 1e-6)
        return left <= 1e-9

    def _budget(self) -> float:
        """How often the first step may be executed: 1, or more while its velocity is held."""
        if self.settings.mode == "hold" and len(self._steps) == 1:
            return 1.0 + self.settings.hold_max_s / self._duration_s(self._steps[0])
        return 1.0

    def _duration_s(self, step: np.ndarray) -> float:
        """Time that one step takes: longer than wanted where the speed limits ask for it."""
        return max(self._step_s, self.settings.limits.shortest_time_s(step))

    def _fading(self, now_s: float) -> float:
        if self._fade_start_s is None:
            return 1.0
        if self.settings.decay_s <= 0.0:
            return 0.0
        return max(1.0 - (now_s - self._fade_start_s) / self.settings.decay_s, 0.0)
