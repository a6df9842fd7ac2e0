"""Counts and measures what passes through the node since activation."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field


class RateMeter:
    """Mean rate of the last events."""

    def __init__(self, samples: int = 20, silent_after_s: float = 2.0) -> None:
        self._times: deque[float] = deque(maxlen=samples)
        self._silent_after_s = silent_after_s

    def mark(self, now_s: float) -> None:
        """Book one event."""
        self._times.append(now_s)

    def rate_hz(self, now_s: float) -> float:
        """Events per second; 0 before the second event, and when none came for a while."""
        if len(self._times) < 2 or now_s - self._times[-1] > self._silent_after_s:
            return 0.0
        span_s = self._times[-1] - self._times[0]
        return (len(self._times) - 1) / span_s if span_s > 0.0 else 0.0


@dataclass
class Ledger:
    """Every image is in flight until it is answered or dropped."""

    received: int = 0
    dropped: int = 0
    actions: int = 0
    actions_not_executed: int = 0
    clips: int = 0
    images: RateMeter = field(default_factory=RateMeter)
    answers: RateMeter = field(default_factory=RateMeter)
    commands: RateMeter = field(default_factory=lambda: RateMeter(samples=100))
    max_latency_s: float = math.nan
    _latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=20))

    @property
    def in_flight(self) -> int:
        """Images that wait or are being answered."""
        return self.received - self.dropped - self.actions

    @property
    def last_latency_s(self) -> float:
        """From arrival of the image to the answer; NaN before the first."""
        return self._latencies_s[-1] if self._latencies_s else math.nan

    @property
    def mean_latency_s(self) -> float:
        """Mean of the last answers; NaN before the first."""
        return sum(self._latencies_s) / len(self._latencies_s) if self._latencies_s else math.nan

    def image(self, now_s: float) -> None:
        """Book an image that arrived."""
        self.received += 1
        self.images.mark(now_s)

    def answer(self, latency_s: float, now_s: float, *, is_clipped: bool, is_refused: bool) -> None:
        """Book an answer."""
        self.actions += 1
        self.actions_not_executed += is_refused
        self.clips += is_clipped
        self.answers.mark(now_s)
        self._latencies_s.append(latency_s)
        # max() would keep the NaN of the beginning
        self.max_latency_s = (
            max(self._latencies_s)
            if math.isnan(self.max_latency_s)
            else max(self.max_latency_s, latency_s)
        )
