"""Where the frames of a camera node come from: a bag, a folder of stills, or a rendered scene.

Every source gives an endless sequence of frames with the instruction that belongs to each. No ROS
import: the camera node turns frames into messages.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from openvla_ros.data.bag_file import IMAGE_TYPES, open_bag, picture_to_rgb
from openvla_ros.errors import ConfigurationError, ImageError
from openvla_ros.sim import table_scene

SHARED_VARIABLE = "OPENVLA_ROS_SHARED"
INSTRUCTION_TYPE = "std_msgs/msg/String"
STILL_S = 1.6  # seconds that one still picture is shown: 12 of them in a demo of 20 s


@dataclass(frozen=True)
class Frame:
    """One picture: (H, W, 3) uint8 RGB, and the instruction that belongs to it."""

    image: np.ndarray
    instruction: str


class FrameSource(Protocol):
    """Anything that a camera node can publish."""

    @property
    def description(self) -> str:
        """What the screen says about where the frames come from."""
        ...

    def frames(self, rate_hz: float) -> Iterator[Frame]:
        """Yield frames for ever, `rate_hz` of them per second of the source's own time."""
        ...


class RenderedFrames:
    """The rendered table top, for machines without any recorded data."""

    description = "rendered table-top scene (not real data)"

    def frames(self, rate_hz: float) -> Iterator[Frame]:
        """Yield one picture per 1 / `rate_hz` seconds of the scene's script."""
        index = 0
        while True:
            yield Frame(table_scene.render(index / rate_hz), table_scene.INSTRUCTION)
            index += 1


class StillFrames:
    """A folder with `samples.json`: a list of {"image": file, "instruction": text}."""

    def __init__(self, folder: Path, still_s: float = STILL_S) -> None:
        """Read the list; pictures are opened one at a time, and shown for `still_s` seconds each.

        Raises:
            ConfigurationError: `samples.json` is absent, empty or malformed.
        """
        try:
            samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
            self._samples = [(folder / row["image"], str(row["instruction"])) for row in samples]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{folder} is not a folder of frames: samples.json must be a list of "
                f'{{"image": file, "instruction": text}} ({type(error).__name__}: {error}).'
            ) from error
        if not self._samples:
            raise ConfigurationError(f"{folder / 'samples.json'} lists no frames.")
        self._still_s = still_s
        self.description = f"{len(self._samples)} recorded stills in {folder.name}"

    def frames(self, rate_hz: float) -> Iterator[Frame]:
        """Yield every still for its time, then the next one."""
        repeats = max(1, round(self._still_s * rate_hz))
        while True:
            for path, instruction in self._samples:
                frame = Frame(_open_picture(path), instruction)
                for _ in range(repeats):
                    yield frame


class BagFrames:
    """Images of a rosbag2 recording (MCAP or SQLite), resampled on its own clock, looping."""

    def __init__(self, path: Path, image_topic: str = "", instruction_topic: str = "") -> None:
        """Look up the topics.

        Args:
            path: Bag folder, or one .mcap or .db3 file.
            image_topic: Topic to play; "" takes the only image topic.
            instruction_topic: Topic of std_msgs/String; "" takes the only one, if there is one.

        Raises:
            ConfigurationError: The bag is unreadable, has no such topic, or the choice is open.
            DependencyError: `rosbags` is not installed.
        """
        self._path = path
        with open_bag(path) as reader:
            topics = {c.topic: c.msgtype for c in reader.connections if c.msgcount}
        images = [name for name, kind in topics.items() if kind in IMAGE_TYPES]
        texts = [name for name, kind in topics.items() if kind == INSTRUCTION_TYPE]
        self.image_topic = _choose_topic(path, "image", image_topic, images)
        self.instruction_topic = (
            _choose_topic(path, "instruction", instruction_topic, texts)
            if texts or instruction_topic
            else ""
        )
        self.description = f"{self.image_topic} of the bag {path.name}"

    def frames(self, rate_hz: float) -> Iterator[Frame]:
        """Yield the newest image at every 1 / `rate_hz` seconds of bag time, then start again."""
        while True:
            yield from self._play_once(rate_hz)

    def _play_once(self, rate_hz: float) -> Iterator[Frame]:
        period_ns = round(1e9 / rate_hz)
        instruction, image = "", None
        due_ns: int | None = None
        for topic, message_type, stamp_ns, message in self._messages():
            while due_ns is not None and stamp_ns > due_ns:
                if image is not None:
                    yield Frame(image, instruction)
                due_ns += period_ns
            if topic == self.instruction_topic:
                instruction = message.data
            else:
                image = picture_to_rgb(message, message_type)
                # Half a period of slack: a camera at exactly this rate gives every frame once.
                due_ns = stamp_ns + period_ns // 2 if due_ns is None else due_ns
        if image is not None:
            yield Frame(image, instruction)

    def _messages(self) -> Iterator[tuple[str, str, int, Any]]:
        wanted = (self.image_topic, self.instruction_topic)
        with open_bag(self._path) as reader:
            connections = [c for c in reader.connections if c.topic in wanted]
            for connection, stamp_ns, raw in reader.messages(connections):
                message = reader.deserialize(raw, connection.msgtype)
                yield connection.topic, connection.msgtype, stamp_ns, message


def open_frame_source(
    bag: Path | None = None,
    image_topic: str = "",
    instruction_topic: str = "",
    still_s: float = STILL_S,
) -> FrameSource:
    """Return the user's bag, else real recorded frames next to the checkout, else a rendering.

    Stills are shown for `still_s` seconds each.

    Raises:
        ConfigurationError: `bag` is given and not usable.
    """
    if bag is not None:
        return BagFrames(bag, image_topic, instruction_topic)
    data = shared_data_folder()
    if data is not None:
        if (data / "bridge_v2_frames100" / "samples.json").is_file():
            return StillFrames(data / "bridge_v2_frames100", still_s)
        for folder in sorted(data.glob("*rosbag2*/metadata.yaml")):
            return BagFrames(folder.parent)
    return RenderedFrames()


def shared_data_folder() -> Path | None:
    """Return the folder of shared sample data, or None when this machine has none.

    It is `$OPENVLA_ROS_SHARED/data`, else `shared/data` beside the repository's folder.
    """
    repository = Path(__file__).resolve().parents[2]
    shared = os.environ.get(SHARED_VARIABLE)
    folder = (Path(shared) if shared else repository.parent / "shared") / "data"
    return folder if folder.is_dir() else None


def _choose_topic(path: Path, what: str, wanted: str, available: list[str]) -> str:
    listing = ", ".join(sorted(available)) or "none"
    if wanted:
        if wanted not in available:
            raise ConfigurationError(
                f"{path} has no {what} topic {wanted!r}. Topics of that kind: {listing}."
            )
        return wanted
    if len(available) != 1:
        raise ConfigurationError(
            f"{path} has {len(available)} {what} topics ({listing}); "
            f"name the one to play with --{what}-topic."
        )
    return available[0]


def _open_picture(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise ImageError(f"{path} cannot be read as an image: {error}") from error
