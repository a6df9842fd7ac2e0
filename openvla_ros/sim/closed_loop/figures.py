"""The results of many episodes as the numbers that a report holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from openvla_ros.evaluation.metrics.wilson import wilson_interval
from openvla_ros.sim.closed_loop.episode import EpisodeResult

CONFIDENCE = 0.95


def rate(successes: int, episodes: int) -> dict[str, Any]:
    """Return episodes, successes, their share (None without episodes) and Wilson's interval."""
    return {
        "episodes": episodes,
        "successes": successes,
        "success_rate": successes / episodes if episodes else None,
        "interval": list(wilson_interval(successes, episodes, CONFIDENCE)),
    }


def summary(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Return what the episodes say together.

    `went_to` counts with which block the task was done first: the one that is named, the one that
    the seed draws (with swapped instructions), another one, or none.
    """
    succeeded = [result for result in results if result.succeeded]
    steps = [result.steps for result in succeeded]
    refused: dict[str, int] = defaultdict(int)
    for result in results:
        for reason, count in result.refused.items():
            refused[reason] += count
    return {
        **rate(len(succeeded), len(results)),
        "confidence": CONFIDENCE,
        "mean_steps_to_success": sum(steps) / len(steps) if steps else None,
        "nearest_share": _share(results, lambda result: result.target == result.nearest),
        "went_to": _went_to(results),
        "per_instruction": _by(results, lambda result: result.instruction),
        "per_colour": _by(results, lambda result: result.target),
        "answers": sum(result.answers for result in results),
        "refused_answers": dict(refused),
    }


def _went_to(results: Sequence[EpisodeResult]) -> dict[str, int]:
    counts = dict.fromkeys(("named", "original", "other", "none"), 0)
    for result in results:
        first = result.done_with[0] if result.done_with else ""
        named = "named" if first == result.target else "original"
        is_known = first in (result.target, result.original)
        counts[named if is_known else "other" if first else "none"] += 1
    return counts


def _by(
    results: Sequence[EpisodeResult], key: Callable[[EpisodeResult], str]
) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        groups[key(result)].append(result.succeeded)
    return {name: rate(sum(group), len(group)) for name, group in sorted(groups.items())}


def _share(
    results: Sequence[EpisodeResult], is_so: Callable[[EpisodeResult], bool]
) -> float | None:
    return sum(map(is_so, results)) / len(results) if results else None
