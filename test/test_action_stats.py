from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from openvla_ros.errors import ActionStatsError, CheckpointError
from openvla_ros.model.action_stats import (
    ActionStats,
    normalize,
    parse_action_stats,
    read_adapter_stats,
    read_norm_stats,
    resolve_unnorm_key,
    unnormalize,
)
from openvla_ros.model.action_tokenizer import ActionTokenizer

ENTRY = {"action": {"q01": [-1.0, 0.0], "q99": [3.0, 1.0], "mask": [True, False]}}


def write_checkpoint(folder: Path, config: object, statistics: object = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if statistics is not None:
        (folder / "dataset_statistics.json").write_text(json.dumps(statistics))
    return folder


def test_masked_numbers_are_scaled_and_the_others_left_alone() -> None:
    stats = parse_action_stats("robot", ENTRY, "config.json")
    action = unnormalize(np.array([0.0, 0.25]), stats)
    assert action.tolist() == [1.0, 0.25]
    assert action.dtype == np.float64


def test_a_mask_of_words_is_refused() -> None:
    with pytest.raises(ActionStatsError, match="true and false"):
        parse_action_stats("d", {"action": {**ENTRY["action"], "mask": ["true", "false"]}}, "f")


def test_a_missing_mask_scales_every_number() -> None:
    stats = parse_action_stats("robot", {"action": {"q01": [0.0], "q99": [4.0]}}, "config.json")
    assert unnormalize(np.array([1.0]), stats).tolist() == [4.0]


def test_ten_dimensional_statistics_give_ten_numbers() -> None:
    entry = {"action": {"q01": [0.0] * 10, "q99": [2.0] * 10}}
    stats = parse_action_stats("droid_r6", entry, "config.json")
    assert stats.action_dim == 10
    assert unnormalize(np.zeros(10), stats).tolist() == [1.0] * 10


def test_statistics_of_the_run_replace_those_of_the_config(tmp_path: Path) -> None:
    """Fine-tunes keep the base keys in config.json and their own in dataset_statistics.json."""
    other = {"action": {"q01": [0.0], "q99": [9.0]}}
    folder = write_checkpoint(
        tmp_path, {"norm_stats": {"base": ENTRY, "both": ENTRY}}, {"both": other, "mine": other}
    )
    stats = read_norm_stats(folder)
    assert {key: value.source for key, value in stats.items()} == {
        "base": "config.json",
        "both": "dataset_statistics.json",
        "mine": "dataset_statistics.json",
    }
    assert stats["both"].q99.tolist() == [9.0]


def test_statistics_cannot_be_changed_in_place() -> None:
    stats = parse_action_stats("robot", ENTRY, "config.json")
    with pytest.raises(ValueError, match="read-only"):
        stats.q99[0] = 100.0


def test_a_checkpoint_without_statistics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ActionStatsError, match=r"dataset_statistics\.json"):
        read_norm_stats(write_checkpoint(tmp_path, {"norm_stats": {}}))


def test_an_absent_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint folder"):
        read_norm_stats(tmp_path / "nowhere")


def test_an_adapter_without_statistics_adds_none(tmp_path: Path) -> None:
    assert read_adapter_stats(tmp_path) == {}
    write_checkpoint(tmp_path, {}, {"mine": ENTRY})
    assert list(read_adapter_stats(tmp_path)) == ["mine"]


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"action": {"q01": [0.0]}},
        {"action": {"q01": [0.0, 1.0], "q99": [1.0]}},
        {"action": {"q01": [0.0], "q99": [float("nan")]}},
        {"action": {"q01": [0.0], "q99": ["fast"]}},
        {"action": {"q01": [], "q99": []}},
        "not an entry",
    ],
)
def test_a_malformed_entry_is_named(entry: object) -> None:
    with pytest.raises(ActionStatsError, match="'robot'"):
        parse_action_stats("robot", entry, "config.json")  # type: ignore[arg-type]


def test_only_a_sole_key_may_stay_unnamed() -> None:
    stats: dict[str, ActionStats] = {"a": None, "b": None}  # type: ignore[dict-item]
    assert resolve_unnorm_key({"a": None}, None) == "a"
    assert resolve_unnorm_key(stats, "b") == "b"
    with pytest.raises(ActionStatsError, match="a, b"):
        resolve_unnorm_key(stats, None)
    with pytest.raises(ActionStatsError, match="a, b"):
        resolve_unnorm_key(stats, "c")


def golden_normalization(reference_dir: Path) -> tuple[dict[str, np.ndarray], ActionStats]:
    stored = dict(np.load(reference_dir / "goldens" / "rlds_transforms.npz"))
    names = ("q01", "q99", "mask", "min", "max")
    entry = {"action": {name: stored[f"norm_stat_{name}"].tolist() for name in names}}
    return stored, parse_action_stats("golden", entry, "rlds_transforms.npz")


def test_normalised_actions_are_those_of_training_to_the_last_bit(reference_dir: Path) -> None:
    stored, stats = golden_normalization(reference_dir)
    assert stats.constant.tolist() == [False] * 5 + [True, False]
    found = normalize(stored["norm_in"], stats)
    difference = np.abs(found - stored["norm_out"]).max()
    assert difference == 0.0, f"off by {difference}"


def test_a_constant_number_becomes_zero_masked_or_not() -> None:
    range_ = {"min": [0.5, 2.0, 0.0], "max": [0.5, 2.0, 3.0]}
    entry = {"q01": [0.5, 2.0, 0.0], "q99": [0.5, 2.0, 2.0], "mask": [True, False, True], **range_}
    stats = parse_action_stats("robot", {"action": entry}, "f")
    assert normalize(np.array([0.5, 2.0, 2.0]), stats).tolist() == [0.0, 0.0, 1.0]


def test_normalising_undoes_unnormalising_up_to_float32(reference_dir: Path) -> None:
    _, stats = golden_normalization(reference_dir)
    normalized = ActionTokenizer().bin_centers[:, None] * np.ones(7)
    normalized[:, stats.constant] = 0.0
    back = normalize(unnormalize(normalized, stats), stats)
    np.testing.assert_allclose(back, normalized, rtol=0, atol=3e-7)
    tokenizer = ActionTokenizer()
    assert (tokenizer.encode(back) == tokenizer.encode(normalized)).all()


def test_values_beyond_the_quantiles_are_clipped_and_nan_stays() -> None:
    stats = parse_action_stats("robot", ENTRY, "config.json")
    found = normalize(np.array([[9.0, 9.0], [-9.0, 0.25], [np.nan, np.nan]]), stats)
    assert found[:2].tolist() == [[1.0, 9.0], [-1.0, 0.25]]
    assert np.isnan(found[2]).all()


@pytest.mark.parametrize("range_", [{"min": [0.0], "max": [1.0]}, {"min": [0.0], "max": [1.0] * 2}])
def test_a_range_of_another_length_is_refused(range_: dict[str, list[float]]) -> None:
    with pytest.raises(ActionStatsError, match=r"'robot'.*min"):
        parse_action_stats("robot", {"action": {**ENTRY["action"], **range_}}, "config.json")


def test_an_action_of_another_length_is_refused() -> None:
    with pytest.raises(ActionStatsError, match="3 numbers"):
        normalize(np.zeros(3), parse_action_stats("robot", ENTRY, "config.json"))
    with pytest.raises(ActionStatsError, match="3 numbers"):
        unnormalize(np.zeros(3), parse_action_stats("robot", ENTRY, "config.json"))
