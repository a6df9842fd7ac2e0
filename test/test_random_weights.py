from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from openvla_ros.errors import ConfigurationError, StorageError
from openvla_ros.model import shards
from openvla_ros.model.random_weights import build_checkpoint
from openvla_ros.policy import OpenVLAPolicy


def test_the_same_seed_gives_the_same_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    again = build_checkpoint("tiny", tmp_path / "again")
    name = "model.safetensors"
    assert (again / name).read_bytes() == (tiny_checkpoint / name).read_bytes()
    other = build_checkpoint("tiny", tmp_path / "other", seed=1)
    assert (other / name).read_bytes() != (again / name).read_bytes()


def test_the_tiny_checkpoint_answers_with_action_tokens(tiny_checkpoint: Path) -> None:
    policy = OpenVLAPolicy.from_pretrained(tiny_checkpoint)
    policy.self_test()
    rng = np.random.default_rng(0)
    frames = [
        np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((40, 40, 1))).astype(np.uint8)
        for _ in range(8)
    ]
    answers = [policy.predict_action(frame, "pick up the cup") for frame in frames]
    assert all(answer.is_valid for answer in answers)
    assert len({tuple(answer.token_ids) for answer in answers}) >= 6
    other = policy.predict_action(frames[0], "open the drawer")
    assert other.token_ids != answers[0].token_ids
    assert policy.action_spec.action_hz == 5.0


def test_shards_and_index_hold_every_key(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_SHARD_BYTES", 2_000_000)
    sharded = build_checkpoint("tiny", tmp_path / "sharded")
    files = sorted(sharded.glob("model-*.safetensors"))
    assert len(files) > 2
    whole = load_file(tiny_checkpoint / "model.safetensors")
    parts = {key: t for path in files for key, t in load_file(path).items()}
    assert set(parts) == set(whole)
    OpenVLAPolicy.from_pretrained(sharded).self_test()


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ConfigurationError, match="not an empty folder"):
        build_checkpoint("tiny", tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_an_interrupted_build_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(shards, "save_file", disk_full)
    with pytest.raises(StorageError, match="no space left on device"):
        build_checkpoint("tiny", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_profile_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="tiny, 7b"):
        build_checkpoint("13b", tmp_path / "new")
