"""A rosbag2 recording as episodes: read once for times and numbers, then images one by one.

Raw and compressed images, MCAP and SQLite3, split and compressed bags. Memory holds the small
messages of the bag and one chunk of images, whatever its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from openvla_ros.data.alignment import gap_key, last_at_or_before, resample, segment
from openvla_ros.data.bag_file import open_bag, picture_to_rgb
from openvla_ros.data.bag_numbers import ANSWER, EMPTY, UNKNOWN_SIZE
from openvla_ros.data.bag_tracks import Track, read_tracks
from openvla_ros.data.episode import Episode
from openvla_ros.data.recorded_actions import recorded_actions, recorded_states
from openvla_ros.data.topics import TopicConfig
from openvla_ros.errors import ConfigurationError, ImageError

# A camera that gives fewer images than this share of the steps is slower than the dataset.
LEAST_IMAGES = 0.5


def bag_episodes(path: Path, topics: TopicConfig) -> list[Episode]:
    """Return the episodes of a bag, in the order of their time.

    Args:
        path: rosbag2 folder, or one .mcap or .db3 file.
        topics: What its topics mean.

    Raises:
        ConfigurationError: The bag is damaged, or does not hold what `topics` says; the text names
            topic and time. Nothing is returned then.
        ImageError: The images of one episode differ in size, or one of them has no size.
        InstructionError: A prompt cannot hold a recorded instruction.
        DependencyError: `rosbags` is not installed.
    """
    tracks = read_tracks(path, topics)
    rate_hz = _rate_hz(path, topics, tracks)
    answered = _answered(path, tracks)
    images = tracks["image"].part(answered)
    instructions = _instructions(images, tracks.get("instruction"), topics)
    episodes: list[Episode] = []
    images_used = ticks = 0
    for run in _runs(path, images, instructions, tracks, topics):
        picked = resample(images.stamps_ns[run], rate_hz)
        images_used, ticks = images_used + len(picked.picks), ticks + picked.ticks
        name = f"episode_{len(episodes):06d}"
        steps = _steps(path, name, tracks["image"], answered[run[picked.picks]])
        text = instructions.texts[run[0]]
        episodes.append(_episode(steps, text, rate_hz, tracks, topics))
    if images_used < LEAST_IMAGES * ticks and "action_dt" not in tracks:
        raise ConfigurationError(
            f"{path}: rate_hz {rate_hz:g} asks for {ticks} steps, and {images.topic} has images "
            f"for {images_used}: the camera is slower than the dataset, and a step would be longer "
            "than one of the dataset. Give a rate_hz that the camera reaches, or a smaller "
            "split.gap_s where it pauses."
        )
    _require_some_action(path, episodes, images, tracks.get("action"))
    return episodes


@dataclass(frozen=True)
class _Instructions:
    """Which instruction holds at each image: a number that changes with it, and its text."""

    keys: np.ndarray  # (N,) int64
    texts: list[str]  # "" = none


@dataclass(frozen=True)
class _Steps:
    """The images of one episode of T steps, and where in the bag they are.

    Attributes:
        path: The bag.
        name: Of the episode.
        topic: Of the images.
        stamps_ns: (T,) int64: when each was taken.
        bag_ns: (T,) int64: when the recorder got each.
        places: (T,) int64: which of the topic's messages each one is, counted from the first one
            that has the earliest of these bag times.
        sizes: (T, 2) float64: width and height, pixels.
    """

    path: Path
    name: str
    topic: str
    stamps_ns: np.ndarray
    bag_ns: np.ndarray
    places: np.ndarray
    sizes: np.ndarray

    def where(self, step: int) -> str:
        """Say which image this is."""
        return (
            f"{self.path}: image {step} of {self.name} ({self.topic}, stamp "
            f"{self.stamps_ns[step]} ns)"
        )


def _steps(path: Path, name: str, images: Track, picks: np.ndarray) -> _Steps:
    """The images of one episode by their indices in `images`, all those of the topic."""
    bag_ns = images.bag_ns[picks]
    is_within = (images.bag_ns >= bag_ns.min()) & (images.bag_ns <= bag_ns.max())
    return _Steps(
        path=path,
        name=name,
        topic=images.topic,
        stamps_ns=images.stamps_ns[picks],
        bag_ns=bag_ns,
        places=np.searchsorted(np.flatnonzero(is_within), picks),
        sizes=images.values[picks],
    )


def _rate_hz(path: Path, topics: TopicConfig, tracks: dict[str, Track]) -> float:
    if topics.rate_hz > 0.0:
        return topics.rate_hz
    said = tracks.get("action_dt")
    if said is not None and len(said):
        return 1.0 / float(said.values[0, 0])
    raise ConfigurationError(
        f"{path}: rate_hz is not given, and nothing in the bag says how long a step is. Write the "
        "rate of the dataset into the topic file: 5.0 for BridgeData."
    )


def _answered(path: Path, tracks: dict[str, Track]) -> np.ndarray:
    """Indices of the images that can become steps: with a recorded policy those it answered."""
    images, action = tracks["image"], tracks.get("action")
    if action is None or action.message_type != ANSWER:
        return np.arange(len(images))
    answered = np.flatnonzero(np.isin(images.stamps_ns, action.stamps_ns))
    if not len(answered):
        raise ConfigurationError(
            f"{path}: no answer on {action.topic} has the stamp of an image on {images.topic} "
            f"(images {images.between()}, answers {action.between()}). Name the image topic that "
            "the node listened to, and leave `stamps: header`."
        )
    return answered


def _instructions(images: Track, said: Track | None, topics: TopicConfig) -> _Instructions:
    count = len(images)
    if said is None:
        return _Instructions(np.zeros(count, np.int64), [topics.instruction.text] * count)
    message = last_at_or_before(said.stamps_ns, images.stamps_ns)
    if topics.split.by == "instruction_message" and said.message_type != ANSWER:
        keys = message
    else:
        changes = [a != b for a, b in zip(said.texts, said.texts[1:], strict=False)]
        # -1, before the first one, picks the last element.
        keys = np.concatenate([[0], np.cumsum(changes, dtype=np.int64), [-1]])[message]
    return _Instructions(keys, [said.texts[i] if i >= 0 else "" for i in message.tolist()])


def _runs(
    path: Path,
    images: Track,
    instructions: _Instructions,
    tracks: dict[str, Track],
    topics: TopicConfig,
) -> list[np.ndarray]:
    """The images of each episode: under one instruction, between markers, without a pause."""
    has_text = np.array([text != "" for text in instructions.texts], bool)
    if not has_text.any():
        said = tracks.get("instruction")
        spoken = "there is none" if said is None else f"{said.topic} speaks {said.between()}"
        raise ConfigurationError(
            f"{path}: no image has an instruction: images {images.between()}, and {spoken}, or "
            "says nothing but blanks. If one text holds for the whole bag, write "
            "`instruction: {text: ...}` into the topic file."
        )
    marks, is_marked = _marks(images, tracks.get("marker"))
    gaps = gap_key(images.stamps_ns, topics.split.gap_s)
    keys = np.stack([instructions.keys, marks, gaps], axis=1)
    runs = segment(keys, has_text & is_marked)
    if not runs:
        raise ConfigurationError(
            f"{path}: no image lies within the episodes that {topics.split.marker} marks."
        )
    return runs


def _marks(images: Track, marker: Track | None) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64 that changes with every mark, and (N,) bool: within a marked episode."""
    if marker is None:
        return np.zeros(len(images), np.int64), np.ones(len(images), bool)
    last = last_at_or_before(marker.stamps_ns, images.stamps_ns)
    is_on = marker.values[:, 0] > 0.0
    begins = is_on.copy()
    if marker.message_type != EMPTY:  # a repeated `true` goes on with the same episode
        begins[1:] &= ~is_on[:-1]
    return np.append(np.cumsum(begins), 0)[last], np.append(is_on, False)[last]


def _episode(
    steps: _Steps, instruction: str, rate_hz: float, tracks: dict[str, Track], topics: TopicConfig
) -> Episode:
    period_ns = round(1e9 / rate_hz)
    _require_one_size(steps)
    try:
        actions = recorded_actions(tracks, topics, steps.stamps_ns, period_ns)
    except ConfigurationError as error:
        raise ConfigurationError(f"{steps.path}: {error}") from error
    return Episode(
        name=steps.name,
        source=str(steps.path),
        instruction=instruction,
        rate_hz=rate_hz,
        stamps_ns=steps.stamps_ns,
        actions=actions,
        open_images=partial(_images, steps),
        states=recorded_states(tracks, steps.stamps_ns, period_ns),
    )


def _require_one_size(steps: _Steps) -> None:
    sizes = steps.sizes
    unknown = np.flatnonzero((sizes == UNKNOWN_SIZE).any(axis=1))
    if len(unknown):
        raise ImageError(f"{steps.where(int(unknown[0]))} is neither a JPEG nor a PNG, or damaged.")
    others = np.flatnonzero((sizes != sizes[0]).any(axis=1))
    if len(others):
        (width, height), (other_width, other_height) = sizes[0], sizes[others[0]]
        raise ImageError(
            f"{steps.where(int(others[0]))} has {other_width:.0f} x {other_height:.0f} pixels, and "
            f"those before it {width:.0f} x {height:.0f}: the images of an episode must have one "
            "size. Two cameras on one topic, or a camera that was set anew? Record them apart, or "
            "split the episode there with a marker."
        )


def _require_some_action(
    path: Path, episodes: list[Episode], images: Track, action: Track | None
) -> None:
    if action is None or any(np.isfinite(e.actions).all(axis=1).any() for e in episodes):
        return
    raise ConfigurationError(
        f"{path}: no image has an action: images on {images.topic} {images.between()}, actions on "
        f"{action.topic} {action.between()}. The two have different clocks (try `stamps: bag` in "
        "the topic file), or the action is stamped after its image (action.offset_s), or the "
        "gripper topic begins after the last image."
    )


def _images(steps: _Steps) -> Iterator[np.ndarray]:
    """Yield the images of one episode; of the bag only its part from first to last is read."""
    step, size = 0, None
    with open_bag(steps.path) as bag:
        connections = [c for c in bag.connections if c.topic == steps.topic]
        rows = bag.messages(connections, int(steps.bag_ns.min()), int(steps.bag_ns.max()) + 1)
        for place, (connection, bag_ns, raw) in enumerate(rows):
            if step == len(steps.places):
                break
            if place != steps.places[step]:
                continue
            if bag_ns != steps.bag_ns[step]:
                break
            image = _decoded(steps, step, bag.deserialize(raw, connection.msgtype), connection)
            if size not in (None, image.shape):
                raise ImageError(f"{steps.where(step)} has another size than those before it.")
            size = image.shape
            yield image
            step += 1
    if step != len(steps.places):
        raise ConfigurationError(
            f"{steps.where(step)} is no longer in the bag: the file changed while it was read."
        )


def _decoded(steps: _Steps, step: int, message: Any, connection: Any) -> np.ndarray:
    try:
        return picture_to_rgb(message, connection.msgtype)
    except (ImageError, AttributeError, TypeError, ValueError, OverflowError, cv2.error) as error:
        raise ImageError(f"{steps.where(step)} cannot be used: {error}") from error
