"""One demonstration, whatever it was recorded with: small things in memory, images one at a time.

Every reader of this room gives these; replay, audit and fine-tuning take nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Episode:
    """T consecutive steps under one instruction, at the rate of their dataset.

    Step t is the image that was taken at `stamps_ns[t]` and the action that followed it.

    Attributes:
        name: Unique within its source, and usable as a file name: "episode_000003".
        source: The bag, folder or file it was read from.
        instruction: The task as it was recorded.
        rate_hz: Steps per second.
        stamps_ns: (T,) int64, nanoseconds, increasing: when each image was taken.
        actions: (T, n) float64 in dataset units; a row of NaN where nothing was recorded.
        open_images: Reads from the first step on: yields T images, (H, W, 3) uint8 RGB, all of one
            size. Every call reads anew; one image at a time is in memory.
        states: (T, m) float64, or None: x y z [m] roll pitch yaw [rad] gripper of the end
            effector, in base axes.
    """

    name: str
    source: str
    instruction: str
    rate_hz: float
    stamps_ns: np.ndarray
    actions: np.ndarray
    open_images: Callable[[], Iterator[np.ndarray]]
    states: np.ndarray | None = None

    def __post_init__(self) -> None:
        steps = len(self.stamps_ns)
        assert steps > 0 and self.rate_hz > 0.0, (self.name, steps, self.rate_hz)
        assert self.actions.ndim == 2 and len(self.actions) == steps, self.actions.shape
        assert self.states is None or len(self.states) == steps, self.states

    def __len__(self) -> int:
        return len(self.stamps_ns)
