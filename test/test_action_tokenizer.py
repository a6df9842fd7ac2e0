"""Golden source: openvla @ c8f03f4, ActionTokenizer, run on 315 random, edge and centre values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openvla_ros.model.action_tokenizer import ActionTokenizer


@pytest.fixture
def goldens(reference_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(reference_dir / "goldens" / "discretisation.npz"))


def test_bins_and_centres_equal_the_reference(goldens: dict[str, np.ndarray]) -> None:
    tokenizer = ActionTokenizer()
    assert np.array_equal(tokenizer.bins, goldens["bins"])
    assert np.array_equal(tokenizer.bin_centers, goldens["bin_centers"])
    assert len(tokenizer.bin_centers) == 255


def test_encoding_equals_the_reference_in_both_precisions(goldens: dict[str, np.ndarray]) -> None:
    tokenizer = ActionTokenizer()
    for precision in ("f64", "f32"):
        ids = tokenizer.encode(goldens[f"actions_{precision}"])
        assert np.array_equal(ids, goldens[f"token_ids_{precision}"])


def test_decoding_equals_the_reference_for_action_and_text_ids(
    goldens: dict[str, np.ndarray],
) -> None:
    decoded = ActionTokenizer().decode(goldens["decode_ids"])
    assert np.array_equal(decoded, goldens["decoded"])


def test_every_bin_survives_a_round_trip_but_the_shared_highest() -> None:
    tokenizer = ActionTokenizer()
    ids = np.arange(31744, 32000)
    again = tokenizer.encode(tokenizer.decode(ids))
    assert np.array_equal(again[1:], ids[1:])
    assert again[0] == 31745  # 31744 and 31745 share a centre: 256 edges have 255 centres


def test_only_the_last_256_ids_below_the_vocabulary_are_actions() -> None:
    tokenizer = ActionTokenizer()
    ids = [2, 31743, 31744, 31999, 32000, 32063]
    assert tokenizer.is_action_token(ids).tolist() == [False, False, True, True, False, False]
