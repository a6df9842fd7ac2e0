"""The same recorded episodes give the same batches, whichever format they are in."""

from __future__ import annotations

import shutil
from pathlib import Path

import bridge_episodes
import pytest
import torch
from training_recordings import training_data

from openvla_ros.ros.frame_sources import shared_data_folder
from openvla_ros.training.batch import TrainingBatch
from openvla_ros.training.config import DataConfig, SourceConfig

DATA = shared_data_folder() or Path("absent")
NPZ = DATA / bridge_episodes.EPISODES
ROOT = Path(__file__).resolve().parents[1]
FORMATS = (
    "bridge_octo_tfrecord",
    "bridge_rosbag2_mcap",
    "lerobot_v21_bridge",
    "lerobot_v30_bridge",
)
pytestmark = pytest.mark.skipif(
    not (NPZ.is_dir() and all((DATA / name).is_dir() for name in FORMATS)),
    reason=bridge_episodes.WHY_NOT,
)


def batches_of(checkpoint: Path, cache: Path, **source: object) -> list[TrainingBatch]:
    """Three batches of a source, each with augmentation; step 0 of the data is no action."""
    used = SourceConfig(name="bridge", drop_first_steps=1, **source)  # type: ignore[arg-type]
    config = DataConfig(sources=(used,), held_out=0.2, workers=0, cache_folder=str(cache))
    data = training_data(checkpoint, config)
    return [batch for step in data.batches(6, 1, 0, 3) for batch in step]


def require_same(ours: list[TrainingBatch], others: list[TrainingBatch]) -> None:
    for number, (one, other) in enumerate(zip(ours, others, strict=True)):
        for name in ("input_ids", "labels", "attention_mask", "pixel_values"):
            a, b = getattr(one, name), getattr(other, name)
            assert torch.equal(a, b), (number, name, a.shape, b.shape)


def copy_episodes(numbers: tuple[int, ...], folder: Path) -> str:
    """The npz episodes of these numbers, in this order."""
    folder.mkdir()
    for place, number in enumerate(numbers):
        shutil.copy(NPZ / f"episode_{number:03d}.npz", folder / f"episode_{place:03d}.npz")
    return str(folder)


def test_an_mcap_bag_gives_the_batches_of_the_npz_episodes(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    topics = ROOT / "config" / "topics" / "bridge_sample.yaml"
    from_bag = batches_of(
        tiny_checkpoint, tmp_path, path=str(DATA / "bridge_rosbag2_mcap"), topics=str(topics)
    )
    same = copy_episodes((4, 0, 13), tmp_path / "npz")
    from_npz = batches_of(tiny_checkpoint, tmp_path, path=same, camera="image_0", rate_hz=5)
    require_same(from_bag, from_npz)


@pytest.mark.parametrize("version", ["v21", "v30"])
def test_lerobot_folders_give_the_batches_of_the_npz_episodes(
    tiny_checkpoint: Path, tmp_path: Path, version: str
) -> None:
    """By a camera kept as pictures: the third one is an AV1 video, which loses what it encodes."""
    folder = str(DATA / f"lerobot_{version}_bridge")
    from_lerobot = batches_of(tiny_checkpoint, tmp_path, path=folder, camera="image_1")
    same = copy_episodes((0, 1, 2, 3, 4), tmp_path / "npz")
    from_npz = batches_of(tiny_checkpoint, tmp_path, path=same, camera="image_1", rate_hz=5)
    require_same(from_lerobot, from_npz)


def test_a_tfrecord_gives_the_batches_of_the_npz_episodes(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """By the decoder of the node, which reads JPEG from bags, npz and cameras."""
    where = {"camera": "image_0", "rate_hz": 5.0}
    folder = str(DATA / "bridge_octo_tfrecord")
    from_record = batches_of(
        tiny_checkpoint, tmp_path, path=folder, jpeg_as_tensorflow=False, **where
    )
    require_same(from_record, batches_of(tiny_checkpoint, tmp_path, path=str(NPZ), **where))


def test_decoded_as_tensorflow_does_only_its_pixels_are_others(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    where = {"camera": "image_0", "rate_hz": 5.0}
    folder = str(DATA / "bridge_octo_tfrecord")
    from_record = batches_of(tiny_checkpoint, tmp_path, path=folder, **where)
    from_npz = batches_of(tiny_checkpoint, tmp_path, path=str(NPZ), **where)
    for one, other in zip(from_record, from_npz, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.labels, other.labels)
        # SigLIP's three channels: a level is 2 / 255 there.
        levels = (one.pixel_values - other.pixel_values)[:, 3:].abs() * 127.5
        assert 0 < levels.mean() < 2, float(levels.mean())
        assert levels.max() < 40, float(levels.max())
