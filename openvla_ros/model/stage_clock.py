"""Splits an action into stages on the device's own clock, without waiting for it in between."""

from __future__ import annotations

import time

import torch


class StageClock:
    """Times the stages of one action after the other. On a GPU it only leaves marks in the stream.

    Args:
        device: Where the stages run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._names: list[str] = []
        self._times_ms: list[float] = []  # of the host, where there is no GPU
        self._events: list[torch.cuda.Event] = []  # reused: they cost more to make than to record

    def begin(self) -> None:
        """Start an action."""
        self._names, self._times_ms = [], []
        self._mark(0)

    def mark(self, name: str) -> None:
        """End a stage."""
        self._names.append(name)
        self._mark(len(self._names))

    def timings(self) -> dict[str, float]:
        """Return milliseconds by stage, stages of one name added up. Waits for the last mark."""
        if self._device.type == "cuda":
            self._events[len(self._names)].synchronize()
        spans: dict[str, float] = {}
        for i, name in enumerate(self._names):
            spans[name] = spans.get(name, 0.0) + self._span_ms(i)
        return spans

    def _mark(self, index: int) -> None:
        if self._device.type != "cuda":
            self._times_ms.append(1e3 * time.perf_counter())
            return
        if index == len(self._events):
            self._events.append(torch.cuda.Event(enable_timing=True))
        self._events[index].record(torch.cuda.current_stream(self._device))

    def _span_ms(self, index: int) -> float:
        if self._device.type == "cuda":
            return self._events[index].elapsed_time(self._events[index + 1])
        return self._times_ms[index + 1] - self._times_ms[index]
