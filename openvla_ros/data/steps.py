"""What the readers of recorded steps have in common: stamps, tasks that change, checked numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from openvla_ros.action_specs import load_action_spec
from openvla_ros.errors import ConfigurationError

#: Where recordings without a clock begin: a stamp of 0 would mean "no camera took this".
FIRST_STAMP_NS = 1_000_000_000


def even_stamps(steps: np.ndarray | range, rate_hz: float) -> np.ndarray:
    """Return (T,) int64 nanoseconds: step 0 at `FIRST_STAMP_NS`, the others at the rate."""
    since_first = np.asarray(steps, np.float64) * (1e9 / rate_hz)
    return FIRST_STAMP_NS + np.rint(since_first).astype(np.int64)


def equal_runs(values: Sequence[object]) -> list[tuple[int, int]]:
    """Return first and last-plus-one of each run of equal neighbours: one task each."""
    starts = [i for i in range(len(values)) if i == 0 or values[i] != values[i - 1]]
    return list(zip(starts, [*starts, len(values)][1:], strict=True))


def require_finite(numbers: np.ndarray, what: str, where: str) -> np.ndarray:
    """Return (T, n) as float64 when every number is one.

    Raises:
        ConfigurationError: NaN or infinity; the text names the first step that holds it.
    """
    bad = ~np.isfinite(numbers).all(axis=1)
    if bad.any():
        step = int(bad.argmax())
        raise ConfigurationError(
            f"{where}: the {what} of step {step} is {numbers[step].tolist()} ({int(bad.sum())} of "
            f"{len(numbers)} steps are not finite). Repair the recording, or leave the episode out."
        )
    return numbers.astype(np.float64)


def require_instruction(text: str, where: str) -> None:
    """Return when the text says something.

    Raises:
        ConfigurationError: It is blank.
    """
    if not text.strip():
        raise ConfigurationError(
            f"{where} has no instruction: the text is empty. Write the task into the recording, or "
            "leave such episodes out (skip_unlabelled when fine-tuning)."
        )


def require_rate(given: float | None, dataset: str, where: str) -> float:
    """Return the steps per second of a recording that does not say it.

    Args:
        given: What the user says, which wins.
        dataset: Name of the dataset, or "": its published rate is used when there is one.
        where: The recording, for the error.

    Raises:
        ConfigurationError: Neither is known, or `given` is not a positive number.
    """
    if given is not None:
        if not (math.isfinite(given) and given > 0):
            raise ConfigurationError(f"{where}: rate_hz is {given!r}; it must be greater than 0.")
        return float(given)
    published = load_action_spec(dataset).action_hz if dataset else None
    if published is None:
        name = f"no rate is published for the dataset {dataset!r}" if dataset else "no rate in it"
        raise ConfigurationError(
            f"{where}: how many steps per second were recorded is unknown ({name}). Give rate_hz "
            "(BridgeData: 5)."
        )
    return published
