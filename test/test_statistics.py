"""Golden source: get_dataset_statistics and BOUNDS_Q99 of openvla @ c8f03f4 on random actions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from openvla_ros.data.statistics import action_statistics, cached_statistics
from openvla_ros.errors import StorageError
from openvla_ros.model.action_stats import normalize, parse_action_stats

MASK = np.array([True] * 6 + [False])


@pytest.fixture(scope="module")
def golden(reference_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(reference_dir / "goldens" / "rlds_transforms.npz"))


def test_statistics_are_the_references(golden: dict[str, np.ndarray]) -> None:
    entry = action_statistics(golden["norm_in"], 12, MASK)
    assert (entry["num_transitions"], entry["num_trajectories"]) == (500, 12)
    for name in ("max", "min", "q01", "q99", "mask"):
        ours = np.array(entry["action"][name])
        assert np.array_equal(ours, golden[f"norm_stat_{name}"]), (name, ours)
    for name in ("mean", "std"):  # sums of float32, in an order that depends on the NumPy version
        apart = np.abs(np.array(entry["action"][name]) - golden[f"norm_stat_{name}"]).max()
        assert apart < 1e-7, (name, apart)


def test_normalised_actions_are_the_references(golden: dict[str, np.ndarray]) -> None:
    stats = parse_action_stats("made_up", action_statistics(golden["norm_in"], 1, MASK), "test")
    ours = normalize(golden["norm_in"], stats)
    assert np.array_equal(ours, golden["norm_out"]), float(np.abs(ours - golden["norm_out"]).max())


def test_proprio_is_zeros_in_the_form_of_the_action(golden: dict[str, np.ndarray]) -> None:
    entry = action_statistics(golden["norm_in"], 1, MASK)
    assert entry["proprio"] == dict.fromkeys(("mean", "std", "max", "min", "q01", "q99"), [0.0] * 7)


def test_kept_statistics_are_found_by_content(
    golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    actions = golden["norm_in"]
    entry = cached_statistics(actions, 12, MASK, tmp_path)
    assert entry == action_statistics(actions, 12, MASK)
    (path,) = tmp_path.iterdir()
    path.write_text(json.dumps({"kept": True}))
    assert cached_statistics(actions.astype(np.float64), 12, MASK, tmp_path) == {"kept": True}
    for other in (
        cached_statistics(actions + np.float32(1e-3), 12, MASK, tmp_path),
        cached_statistics(actions, 13, MASK, tmp_path),
        cached_statistics(actions, 12, ~MASK, tmp_path),
    ):
        assert "action" in other


def test_a_damaged_file_is_made_anew(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    entry = cached_statistics(golden["norm_in"], 12, MASK, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert cached_statistics(golden["norm_in"], 12, MASK, tmp_path) == entry
    assert json.loads(path.read_text()) == entry


def test_a_cache_that_cannot_be_written_is_named(
    golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        cached_statistics(golden["norm_in"], 12, MASK, tmp_path / "file" / "cache")
