"""How sure a success rate is: the interval of Wilson (1927) for a share of few trials.

Unlike the share +- two standard errors it stays within 0 and 1, and is wide at 0 or all successes.
"""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

from openvla_ros.errors import ConfigurationError


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the bounds of the success rate, two-sided, each in [0, 1].

    No trial says nothing: (0, 1).

    Raises:
        ConfigurationError: `successes` is not among 0 to `trials`, or `confidence` not between 0
            and 1.
    """
    if not 0 <= successes <= trials:
        raise ConfigurationError(
            f"{successes} successes of {trials} trials cannot be: give 0 to {trials} successes."
        )
    if not 0 < confidence < 1:
        raise ConfigurationError(
            f"A confidence of {confidence} cannot be: give a share between 0 and 1, such as 0.95."
        )
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / trials
    middle = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * sqrt(rate * (1 - rate) / trials + (z / (2 * trials)) ** 2) / (1 + z * z / trials)
    lower = 0.0 if successes == 0 else max(0.0, middle - half)
    upper = 1.0 if successes == trials else min(1.0, middle + half)
    return lower, upper
