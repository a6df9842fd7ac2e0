"""Frames of a recorded video, one after another from a given time on; by PyAV, AV1 included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros.errors import ConfigurationError, DependencyError
from openvla_ros.messages import MAX_PIXELS


@dataclass(frozen=True)
class VideoPart:
    """Consecutive frames of one video file.

    Attributes:
        path: The file; several episodes may share it.
        start_s: Time of the first frame in the file, seconds.
        frames: How many.
        rate_hz: Frames per second.
    """

    path: Path
    start_s: float
    frames: int
    rate_hz: float

    def require_present(self) -> None:
        """Return when the file exists and says that it is long enough; nothing is decoded.

        Raises:
            ConfigurationError: It does not, or it is no video.
            DependencyError: PyAV is not installed.
        """
        with _opened(self.path) as (_, stream):
            if stream.duration is not None:
                start = stream.start_time or 0
                end_s = float((start + stream.duration) * stream.time_base)
                self._require_until(end_s)

    def _require_until(self, end_s: float) -> None:
        needed_s = self.start_s + (self.frames - 0.5) / self.rate_hz
        if end_s < needed_s:
            raise ConfigurationError(
                f"{self.path} ends at {end_s:.3f} s, and the episode that begins at "
                f"{self.start_s:.3f} s has {self.frames} frames at {self.rate_hz:g} Hz. The video "
                "was cut short; fetch it again."
            )

    def __call__(self) -> Iterator[np.ndarray]:
        """Yield `frames` images, (H, W, 3) uint8 RGB, one at a time.

        Raises:
            ConfigurationError: The video is damaged, ends early, or has no frame at the time of a
                step (within a quarter of a step).
            DependencyError: PyAV is not installed.
        """
        tolerance_s = 0.25 / self.rate_hz
        step = 0
        with _opened(self.path) as (container, stream):
            # A seek goes to the key frame before; a start of 0 needs none.
            if self.start_s > 0:
                container.seek(int(self.start_s / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                wanted_s = self.start_s + step / self.rate_hz
                time_s = None if frame.pts is None else float(frame.pts * stream.time_base)
                if time_s is not None and time_s < wanted_s - tolerance_s:
                    if step == 0:
                        continue  # between the key frame and the episode
                    time_s = None
                if time_s is None or time_s > wanted_s + tolerance_s:
                    raise ConfigurationError(
                        f"{self.path} has no frame at {wanted_s:.3f} s, step {step} of its "
                        f"episode (the next one is at {time_s} s). Frames must be "
                        f"{1 / self.rate_hz:.4f} s apart."
                    )
                yield _to_rgb(frame)
                step += 1
                if step == self.frames:
                    return
        raise ConfigurationError(
            f"{self.path} ends after {step} of the {self.frames} frames of the episode that begins "
            f"at {self.start_s:.3f} s. The video was cut short; fetch it again."
        )


def _to_rgb(frame: Any) -> np.ndarray:
    if not 1 <= frame.width * frame.height <= MAX_PIXELS:
        raise ValueError(f"a frame of {frame.width} x {frame.height} pixels")
    return frame.to_ndarray(format="rgb24")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; what PyAV raises becomes an error of ours."""
    try:
        import av
    except ImportError as error:
        raise DependencyError(
            "Reading the videos of a LeRobot dataset needs PyAV: pip install '.[lerobot]'"
        ) from error
    if not path.is_file():
        raise ConfigurationError(f"the video {path} is missing. Fetch the dataset with its videos.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video or container.streams.video[0].time_base is None:
                raise ValueError("no video stream")
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError, ValueError, IndexError, OverflowError, MemoryError) as error:
        raise ConfigurationError(
            f"{path} is not a readable video ({type(error).__name__}: {error}). Fetch it again."
        ) from error
