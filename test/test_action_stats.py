from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from openvla_ros.errors import ActionStatsError, CheckpointError
from openvla_ros.model.action_stats import (
    ActionStats,
    parse_action_stats,
    read_adapter_stats,
    read_norm_stats,
    resolve_unnorm_key,
    unnormalize,
)

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


def test_an_action_of_another_length_is_refused() -> None:
    with pytest.raises(ActionStatsError, match="3 numbers"):
        unnormalize(np.zeros(3), parse_action_stats("robot", ENTRY, "config.json"))
