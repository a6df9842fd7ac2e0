"""How often the interval of a comparison covers the true difference, by number of episodes.

python test/interval_coverage.py
"""

from __future__ import annotations

import numpy as np

from openvla_ros.evaluation.metrics.comparison import bootstrap_interval

DIFFERENCE = 1.0
TRIALS = 2000


def simulated(random: np.random.Generator, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return differences of steps and their episodes; these share most of the noise."""
    steps = random.integers(5, 15, episodes)
    episode = np.repeat(np.arange(episodes), steps)
    shared = random.normal(0.0, 2.0, episodes)[episode]
    return DIFFERENCE + shared + random.normal(0.0, 1.0, len(episode)), episode


def coverage(episodes: int, trials: int, *, by_steps: bool = False) -> float:
    """Return the share of trials whose interval covers `DIFFERENCE`; 0.95 is what it promises."""
    random, covered = np.random.default_rng(0), 0
    for trial in range(trials):
        differences, episode = simulated(random, episodes)
        drawn = np.zeros_like(episode) if by_steps else episode
        low, high = bootstrap_interval(differences, drawn, seed=trial)
        covered += low <= DIFFERENCE <= high
    return covered / trials


if __name__ == "__main__":
    for number in (2, 5, 10, 20, 50):
        print(f"{number:3d} episodes: {100 * coverage(number, TRIALS):.0f} %")
