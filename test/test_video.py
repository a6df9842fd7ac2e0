"""Frames of a video from a given time on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import recording_formats as formats

from openvla_ros.data.video import VideoPart
from openvla_ros.errors import ConfigurationError

pytest.importorskip("av")

IMAGES = formats.recording(4, 23).images


@pytest.fixture(scope="module", params=[1, 2, 250])
def video(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 frames at 5 Hz; a key frame every 1, 2 or 250 frames."""
    path = tmp_path_factory.mktemp("video") / "file.mp4"
    formats.write_video(path, IMAGES, gop=request.param)
    return path


@pytest.mark.parametrize(("start", "frames"), [(0, 23), (0, 1), (1, 5), (7, 16), (22, 1)])
def test_exactly_the_frames_of_the_part_come(video: Path, start: int, frames: int) -> None:
    part = VideoPart(video, start / formats.RATE_HZ, frames, formats.RATE_HZ)
    part.require_present()
    images = np.stack(list(part()))
    differences = np.abs(images[:, None].astype(int) - IMAGES[None]).mean(axis=(2, 3, 4))
    assert differences.argmin(axis=1).tolist() == list(range(start, start + frames))


def test_a_part_beyond_the_end_is_refused_at_once_and_while_reading(video: Path) -> None:
    part = VideoPart(video, 4.0, 4, formats.RATE_HZ)
    with pytest.raises(ConfigurationError, match=r"ends at 4\.600 s"):
        part.require_present()
    images = part()
    assert [next(images).shape for _ in range(3)] == [(48, 64, 3)] * 3
    with pytest.raises(ConfigurationError, match="ends after 3 of the 4 frames"):
        next(images)


@pytest.mark.parametrize(("start_s", "rate_hz"), [(0.1, 5.0), (0.0, 10.0), (0.0, 4.0)])
def test_frames_that_lie_at_other_times_are_refused(
    video: Path, start_s: float, rate_hz: float
) -> None:
    with pytest.raises(ConfigurationError, match="has no frame at"):
        list(VideoPart(video, start_s, 8, rate_hz)())


@pytest.mark.parametrize("data", [b"", b"not a video" * 99])
def test_what_is_no_video_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"a\.mp4 is not a readable video"):
        VideoPart(tmp_path / "a.mp4", 0.0, 1, 5.0).require_present()


def test_a_missing_video_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.mp4 is missing"):
        VideoPart(tmp_path / "absent.mp4", 0.0, 1, 5.0).require_present()
