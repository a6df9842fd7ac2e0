"""Timed calls of a variant, and what their times say."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from openvla_ros.engine.bench.variants import Variant


@dataclass
class Measured:
    """What is known of one variant.

    Attributes:
        tokens: Ids of every image.
        cold_start: Seconds by stage, from nothing to the second answer.
        peak_bytes: Most memory in use while it answers, its weights included; None if unknown.
        times_ms: Of every timed call, by round.
        stages_ms: Of every timed call, where the variant tells.
    """

    tokens: list[list[int]]
    cold_start: dict[str, float]
    peak_bytes: int | None
    times_ms: list[list[float]] = field(default_factory=list)
    stages_ms: list[dict[str, float]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)

    def add_round(
        self,
        variant: Variant,
        input_ids: torch.Tensor,
        rotation: Iterator[torch.Tensor],
        calls: int,
    ) -> None:
        """Time some calls: wall clock from pixel values on the host to ids on the host."""
        variant.call(input_ids, next(rotation))  # the first after another variant does not count
        spent = []
        for _ in range(calls):
            pixels = next(rotation)
            start = time.perf_counter()
            _, stages = variant.call(input_ids, pixels)
            spent.append(1e3 * (time.perf_counter() - start))
            self.stages_ms.append(stages)
        self.times_ms.append(spent)

    def summary(self) -> dict[str, Any]:
        """Return statistics of all calls, the median of each round and of each stage."""
        names = self.stages_ms[0] if self.stages_ms else {}
        medians = {name: float(np.median([s[name] for s in self.stages_ms])) for name in names}
        return summary(self.times_ms) | {"stages_ms": medians}


def rotate(images: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the images in turn, for ever."""
    return itertools.cycle(images)


def summary(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return statistics over all calls, and the median of each round."""
    spent = np.concatenate([np.asarray(one) for one in rounds])
    return {
        "calls": len(spent),
        "p50_ms": float(np.percentile(spent, 50)),
        "p90_ms": float(np.percentile(spent, 90)),
        "p99_ms": float(np.percentile(spent, 99)),
        "max_ms": float(spent.max()),
        "mean_ms": float(spent.mean()),
        "std_ms": float(spent.std()),
        "round_p50_ms": [float(np.median(one)) for one in rounds],
    }
