"""Which step of which dataset is the sample of a number: the order in which a mixture is shown.

Sample numbers count from the first step of a run. The order depends on the seed alone, so that a
run which goes on at number 10,000 sees what an uninterrupted one would see.
Source: openvla @ c8f03f4 picks each frame's dataset at random, by weight times its number of steps;
within a dataset it shuffles through a buffer, where this order is a whole permutation per epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

_BLOCK = 2**16  # numbers whose datasets are drawn together
_PICKS, _PERMUTATIONS = 0, 1  # kinds of draws, none of which shares its numbers with the other


class MixtureOrder:
    """Sample number to dataset and position in it; any number can be asked for at any time.

    Args:
        seed: Decides the order, and nothing else does.
        sizes: Steps of each dataset, at least one each.
        probabilities: Of each dataset, to be picked for a sample; they sum to 1.
    """

    def __init__(
        self, seed: int, sizes: Sequence[int], probabilities: Sequence[float] | np.ndarray
    ) -> None:
        assert len(sizes) == len(probabilities) and min(sizes) > 0, (sizes, probabilities)
        self.seed = seed
        self.sizes = tuple(sizes)
        self._bounds = np.cumsum(np.asarray(probabilities, np.float64))
        assert abs(self._bounds[-1] - 1.0) < 1e-9, probabilities
        self._bounds[-1] = 1.0
        self._before = [np.zeros(len(sizes), np.int64)]  # picks of each dataset before each block
        self._permutation = lru_cache(maxsize=2 * len(sizes))(self._drawn_permutation)
        self._block = lru_cache(maxsize=2)(self._drawn_block)

    def take(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples numbered start to start + count.

        Returns:
            (count,) int64 dataset and (count,) int64 position in it. Each dataset is gone through
            in a new order per epoch, every step once.
        """
        assert start >= 0 and count >= 0, (start, count)
        first = start // _BLOCK
        blocks = range(first, -(-(start + count) // _BLOCK))
        if not blocks:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        parts = [self._block(block) for block in blocks]
        datasets, uses = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        wanted = slice(start - first * _BLOCK, start - first * _BLOCK + count)
        datasets, uses = datasets[wanted], uses[wanted]
        return datasets, self._positions(datasets, uses)

    def _drawn_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the datasets of a block, and how often each was picked before in the run."""
        while len(self._before) <= block:
            picks = np.bincount(self._picks(len(self._before) - 1), minlength=len(self.sizes))
            self._before.append(self._before[-1] + picks)
        datasets = self._picks(block)
        uses = np.zeros(_BLOCK, np.int64)
        for dataset in range(len(self.sizes)):
            places = np.flatnonzero(datasets == dataset)
            uses[places] = self._before[block][dataset] + np.arange(len(places))
        return datasets, uses

    def _picks(self, block: int) -> np.ndarray:
        if len(self.sizes) == 1:
            return np.zeros(_BLOCK, np.int64)
        drawn = np.random.default_rng([self.seed, _PICKS, block]).random(_BLOCK)
        return np.searchsorted(self._bounds, drawn, side="right").astype(np.int64)

    def _positions(self, datasets: np.ndarray, uses: np.ndarray) -> np.ndarray:
        positions = np.zeros(len(datasets), np.int64)
        for dataset in np.unique(datasets).tolist():
            mine = datasets == dataset
            epochs, places = np.divmod(uses[mine], self.sizes[dataset])
            found = np.zeros(len(places), np.int64)
            for epoch in np.unique(epochs).tolist():
                now = epochs == epoch
                found[now] = self._permutation(dataset, epoch)[places[now]]
            positions[mine] = found
        return positions

    def _drawn_permutation(self, dataset: int, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, _PERMUTATIONS, dataset, epoch])
        return generator.permutation(self.sizes[dataset])
