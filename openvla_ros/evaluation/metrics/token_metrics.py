"""How far two answers to the same frames are apart, in action tokens and bins.

Numbers only: no network, no file. N is the number of actions, n the ids of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openvla_ros.model.action_tokenizer import ActionTokenizer


@dataclass(frozen=True)
class Agreement:
    """How well ids agree with expected ones.

    A bin error is the distance of two ids in bins; both ids of the highest bin count as one bin,
    and an id outside the action range as the extreme bin it is decoded to.

    Attributes:
        actions: N.
        tokens_equal: Share of equal ids.
        actions_equal: Share of actions whose n ids are all equal.
        mean_bins: Mean bin error of all ids.
        p99_bins: 99th percentile of the bin errors of all ids.
        tokens_equal_by_dimension: (n,) share of equal ids.
        mean_bins_by_dimension: (n,) mean bin error.
        p99_bins_by_dimension: (n,) 99th percentile of the bin errors.
    """

    actions: int
    tokens_equal: float
    actions_equal: float
    mean_bins: float
    p99_bins: float
    tokens_equal_by_dimension: np.ndarray
    mean_bins_by_dimension: np.ndarray
    p99_bins_by_dimension: np.ndarray


def compare_tokens(
    found: np.ndarray, expected: np.ndarray, tokenizer: ActionTokenizer
) -> Agreement:
    """Return how well `found` agrees with `expected`.

    Args:
        found: (N, n) ids.
        expected: (N, n) ids of the same frames.
        tokenizer: That of the checkpoint.

    Raises:
        ValueError: The shapes differ, or there is no action.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape or found.ndim != 2 or not found.size:
        raise ValueError(
            f"ids of shape {found.shape} and {expected.shape} cannot be compared; both must be "
            "(actions, ids of one action), with one action at least"
        )
    equal = found == expected
    errors = bin_errors(found, expected, tokenizer)
    return Agreement(
        actions=len(found),
        tokens_equal=float(equal.mean()),
        actions_equal=float(equal.all(axis=1).mean()),
        mean_bins=float(errors.mean()),
        p99_bins=float(np.percentile(errors, 99)),
        tokens_equal_by_dimension=equal.mean(axis=0),
        mean_bins_by_dimension=errors.mean(axis=0),
        p99_bins_by_dimension=np.percentile(errors, 99, axis=0),
    )


def bin_errors(found: np.ndarray, expected: np.ndarray, tokenizer: ActionTokenizer) -> np.ndarray:
    """Return |bin of `found` - bin of `expected`|, the shape of both, int64."""
    return np.abs(_bins(found, tokenizer) - _bins(expected, tokenizer))


def leading_matches(
    draft: np.ndarray, found: np.ndarray, tokenizer: ActionTokenizer, tolerance_bins: int = 0
) -> np.ndarray:
    """Return (N,) how many ids at the front of each action a draft has right.

    Args:
        draft: (N, n) expected ids, such as those of the action before.
        found: (N, n) ids.
        tokenizer: That of the checkpoint.
        tolerance_bins: 0 asks for equal ids; more counts ids that many bins apart as right.
    """
    if tolerance_bins == 0:
        right = np.asarray(draft) == np.asarray(found)
    else:
        right = bin_errors(draft, found, tokenizer) <= tolerance_bins
    return np.cumprod(right, axis=1).sum(axis=1)


def most_frequent_tokens(token_ids: np.ndarray) -> np.ndarray:
    """Return (n,) the id that each dimension of (N, n) has most often: the best constant answer."""
    columns = []
    for column in np.asarray(token_ids).T:
        values, counts = np.unique(column, return_counts=True)
        columns.append(values[counts.argmax()])
    return np.array(columns)


def _bins(token_ids: np.ndarray, tokenizer: ActionTokenizer) -> np.ndarray:
    """Return the index of the bin centre that each id is decoded to."""
    index = tokenizer.vocab_size - np.asarray(token_ids, dtype=np.int64) - 1
    return np.clip(index, 0, len(tokenizer.bin_centers) - 1)
