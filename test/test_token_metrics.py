"""Agreement of action tokens: what counts as equal, and how far apart the rest is."""

from __future__ import annotations

import numpy as np
import pytest

from openvla_ros.evaluation.metrics.token_metrics import (
    bin_errors,
    compare_tokens,
    leading_matches,
    most_frequent_tokens,
)
from openvla_ros.model.action_tokenizer import ActionTokenizer

TOKENIZER = ActionTokenizer()


def test_equal_answers_agree_fully() -> None:
    ids = np.random.default_rng(0).integers(31744, 32000, (50, 7))
    agreement = compare_tokens(ids, ids, TOKENIZER)
    assert (agreement.actions, agreement.tokens_equal, agreement.actions_equal) == (50, 1.0, 1.0)
    assert agreement.mean_bins == agreement.p99_bins == 0.0


def test_one_wrong_dimension_is_counted_where_it_is() -> None:
    expected = np.full((10, 7), 31900)
    found = expected.copy()
    found[:5, 2] += 4
    agreement = compare_tokens(found, expected, TOKENIZER)
    assert agreement.actions_equal == 0.5
    assert agreement.tokens_equal == pytest.approx(65 / 70)
    assert agreement.tokens_equal_by_dimension.tolist() == [1, 1, 0.5, 1, 1, 1, 1]
    assert agreement.mean_bins_by_dimension.tolist() == [0, 0, 2, 0, 0, 0, 0]
    assert agreement.mean_bins == pytest.approx(20 / 70)
    assert agreement.p99_bins_by_dimension[2] == 4.0


@pytest.mark.parametrize(
    ("found", "expected", "bins"),
    [
        (31999, 31998, 1),
        (31744, 31745, 0),  # two ids, one centre
        (31744, 31999, 254),
        (2, 31744, 0),  # EOS is decoded to the highest bin
        (32063, 31999, 0),
    ],
)
def test_bin_errors_are_those_of_the_decoded_actions(found: int, expected: int, bins: int) -> None:
    assert bin_errors(np.array([found]), np.array([expected]), TOKENIZER).tolist() == [bins]
    values = TOKENIZER.decode([found]), TOKENIZER.decode([expected])
    assert abs(float(values[0][0] - values[1][0])) == pytest.approx(bins * 2 / 255)


def test_a_draft_is_right_up_to_its_first_mistake() -> None:
    found = np.array([[31800, 31801, 31802, 31803]] * 4)
    draft = found + np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 2, 0], [0, 1, 1, 3]])
    assert leading_matches(draft, found, TOKENIZER).tolist() == [4, 0, 2, 1]
    assert leading_matches(draft, found, TOKENIZER, tolerance_bins=1).tolist() == [4, 4, 2, 3]


def test_the_constant_answer_is_the_most_frequent_id_of_each_dimension() -> None:
    ids = np.array([[1, 5], [2, 5], [2, 6], [2, 7]])
    assert most_frequent_tokens(ids).tolist() == [2, 5]


@pytest.mark.parametrize("shape", [(0, 7), (7,), (3, 6)])
def test_answers_that_do_not_belong_together_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare_tokens(np.zeros(shape), np.zeros((3, 7)), TOKENIZER)
