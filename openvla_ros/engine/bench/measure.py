"""Rounds of calls, variant after variant, and what their times say."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from openvla_ros.engine.bench.variants import Variant


def latencies(
    variants: Mapping[str, Variant],
    input_ids: torch.Tensor,
    images: Sequence[torch.Tensor],
    calls: Mapping[str, int],
    rounds: int = 3,
) -> dict[str, dict[str, float]]:
    """Return p50, p90, p99, max, mean and std in milliseconds of every variant.

    Wall clock from pixel values on the host to ids on the host. Each round visits every variant,
    so that clocks and temperature drift alike for all.

    Args:
        variants: What to time, already warm.
        input_ids: (1, T).
        images: Pixel values to rotate through.
        calls: Calls of each variant per round.
        rounds: Rounds.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in variants}
    rotation = itertools.cycle(images)
    for _ in range(rounds):
        for name, run in variants.items():
            spent = []
            run(input_ids, next(rotation))  # the first after a change of variant does not count
            for _ in range(calls[name]):
                pixels = next(rotation)
                start = time.perf_counter()
                run(input_ids, pixels)
                spent.append(1e3 * (time.perf_counter() - start))
            times[name].append(spent)
    return {name: summary(spent) for name, spent in times.items()}


def summary(rounds: list[list[float]]) -> dict[str, Any]:
    """Return statistics over all calls, and the median of each round."""
    spent = np.concatenate(rounds)
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


def agreement(tokens: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> dict:
    """Return the share of equal first tokens and of equal whole actions.

    Decoding runs freely: after one differing token the rest answers another question.
    """
    first = [a[0] == b[0] for a, b in zip(tokens, reference, strict=True)]
    whole = [list(a) == list(b) for a, b in zip(tokens, reference, strict=True)]
    return {"first_token": float(np.mean(first)), "action": float(np.mean(whole))}
