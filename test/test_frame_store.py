"""Prepared pictures: those of the image path, made once, whole or not at all."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from openvla_ros.data import frame_store
from openvla_ros.data.episode import Episode
from openvla_ros.data.episode_edits import drop_first_steps, drop_steps
from openvla_ros.data.frame_store import FrameStore
from openvla_ros.data.steps import even_stamps
from openvla_ros.errors import ImageError, StorageError
from openvla_ros.model.image_options import ImageOptions

FIXED = ImageOptions(rotate_180=True, lanczos3=True)


class Images:
    """Four random pictures, and how often they were read."""

    def __init__(self) -> None:
        self.pictures = np.random.default_rng(0).integers(0, 256, (4, 30, 40, 3), np.uint8)
        self.reads = 0
        self.fails_at = -1

    def __call__(self) -> Iterator[np.ndarray]:
        for step, picture in enumerate(self.pictures):
            if step == self.fails_at:
                raise ImageError("the recording is damaged here")
            self.reads += 1
            yield picture


def made_up(images: Images) -> Episode:
    stamps = even_stamps(range(4), 5)
    return Episode("episode_000", "made up", "wave", 5, stamps, np.zeros((4, 7)), images)


def test_frames_are_what_the_image_path_gives_and_are_read_once(tmp_path: Path) -> None:
    images = Images()
    store = FrameStore(tmp_path, "source", FIXED)
    frames = store.frames(made_up(images))
    expected = np.stack([FIXED.apply(picture) for picture in images.pictures])
    assert frames.dtype == np.uint8 and np.array_equal(frames, expected)
    assert not frames.flags.writeable
    reads = images.reads
    store.frames(made_up(images))
    again = FrameStore(tmp_path, "source", FIXED)
    assert again.has(made_up(images)) and np.array_equal(again.frames(made_up(images)), expected)
    assert images.reads == reads


def test_other_content_other_steps_and_other_options_are_other_files(tmp_path: Path) -> None:
    episode = made_up(Images())
    FrameStore(tmp_path, "source", FIXED).frames(episode)
    assert not FrameStore(tmp_path, "another", FIXED).has(episode)
    assert not FrameStore(tmp_path, "source", replace(FIXED, rotate_180=False)).has(episode)
    store = FrameStore(tmp_path, "source", FIXED)
    assert not store.has(replace(episode, name="episode_001"))
    fewer = drop_first_steps(episode, 1)
    assert fewer is not None and not store.has(fewer)
    assert np.array_equal(store.frames(fewer), store.frames(episode)[1:])
    others = drop_steps(episode, lambda actions: np.arange(4) == 3)  # as many, and not the same
    assert others is not None and not store.has(others)
    assert np.array_equal(store.frames(others), store.frames(episode)[:3])


def test_what_is_mapped_is_not_sent_to_workers_and_does_not_grow_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_store, "_OPEN_FILES", 2)
    store, episode = FrameStore(tmp_path, "source", FIXED), made_up(Images())
    episodes = [replace(episode, name=f"episode_{number}") for number in range(4)]
    expected = [np.array(store.frames(one)) for one in episodes]
    assert len(store._open) == 2
    sent = pickle.dumps(store)
    assert len(sent) < 2000, len(sent)
    for one, frames in zip(episodes, expected, strict=True):
        assert np.array_equal(pickle.loads(sent).frames(one), frames)


@pytest.mark.parametrize("damage", ["cut", "longer", "header", "empty"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    episode = made_up(Images())
    expected = np.array(FrameStore(tmp_path, "source", FIXED).frames(episode))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-1],
            "longer": content + b"x",
            "header": b"x" + content[1:],
            "empty": b"",
        }[damage]
    )
    store = FrameStore(tmp_path, "source", FIXED)
    assert not store.has(episode)
    assert np.array_equal(store.frames(episode), expected)
    assert path.read_bytes() == content


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    store, episode = FrameStore(tmp_path, "source", FIXED), made_up(Images())
    needed = 128 + 4 * 224 * 224 * 3
    assert store.required_bytes(episode) == needed
    as_recorded = FrameStore(tmp_path, "source", ImageOptions())
    assert as_recorded.required_bytes(episode) == 128 + 4 * 30 * 40 * 3
    with pytest.raises(StorageError, match=f"{needed:,} bytes and .* has 1,000 free"):
        store.frames(episode)
    assert list(tmp_path.iterdir()) == []


def test_a_recording_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    images = Images()
    images.fails_at = 2
    store = FrameStore(tmp_path, "source", FIXED)
    with pytest.raises(ImageError, match="damaged"):
        store.frames(made_up(images))
    assert list(tmp_path.iterdir()) == []
    images.fails_at = -1
    assert len(store.frames(made_up(images))) == 4
