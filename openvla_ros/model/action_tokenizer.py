"""Actions as token ids: 256 bins over [-1, 1], written into the last 256 ids of the vocabulary.

This file knows ids and numbers, never text: action tokens are not decoded to strings and back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class ActionTokenizer:
    """Maps normalised actions to token ids and back.

    `n_action_bins` edges give one centre fewer, so the two ids of the highest bins share a centre.

    Args:
        vocab_size: Ids of the text vocabulary without padding rows (32000 for Llama-2). Action ids
            are the `n_action_bins` ids below it.
        n_action_bins: Number of bin edges.

    Source: openvla @ c8f03f4, prismatic/vla/action_tokenizer.py and predict_action.
    """

    def __init__(self, vocab_size: int = 32000, n_action_bins: int = 256) -> None:
        if not 2 <= n_action_bins < vocab_size:
            raise ValueError(f"{n_action_bins} action bins do not fit {vocab_size} ids")
        self.vocab_size = vocab_size
        self.n_action_bins = n_action_bins
        self.bins = np.linspace(-1.0, 1.0, n_action_bins)
        self.bin_centers = (self.bins[:-1] + self.bins[1:]) / 2.0

    def encode(self, normalized: np.ndarray) -> np.ndarray:
        """Return the token ids of normalised actions: (...,) float -> (...,) int64.

        Values outside [-1, 1] are clipped. -1 is id `vocab_size - 1`; the id falls as the value
        rises.
        """
        clipped = np.clip(normalized, -1.0, 1.0)
        return self.vocab_size - np.digitize(clipped, self.bins).astype(np.int64)

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the normalised actions of token ids: (...,) int -> (...,) float64.

        An id outside the action range gives the nearest extreme, as in the reference; ask
        `is_action_token` before letting such a number move anything.
        """
        index = self.vocab_size - np.asarray(token_ids, dtype=np.int64) - 1
        return self.bin_centers[np.clip(index, 0, len(self.bin_centers) - 1)]

    def is_action_token(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return (...,) bool: whether each id is one of the `n_action_bins` action ids."""
        ids = np.asarray(token_ids, dtype=np.int64)
        return (ids >= self.vocab_size - self.n_action_bins) & (ids < self.vocab_size)
