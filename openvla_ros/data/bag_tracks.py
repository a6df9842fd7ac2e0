"""First reading of a bag: small messages as numbers, and of the images only when they were taken.

What one topic says becomes a `Track`; memory does not grow with the pictures.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openvla_ros.data.bag_file import BagReader, open_bag
from openvla_ros.data.bag_numbers import (
    ANSWER,
    ROLE_TYPES,
    Reader,
    action_period,
    action_reader,
    gripper_reader,
    image_reader,
    marker_reader,
    state_reader,
)
from openvla_ros.data.topics import TopicConfig
from openvla_ros.errors import ConfigurationError, InstructionError
from openvla_ros.messages import check_instruction, stamp_ns

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

# Between a header stamp and the time at which the recorder got the message lie the camera's latency
# and the network, not the difference of two clocks.
MAX_CLOCK_OFFSET_S = 1.0
#: Roles whose numbers must be finite.
_MEASURED = ("action", "gripper", "state")


@dataclass(frozen=True)
class Track:
    """Everything that one topic says about one thing, in the order of the bag.

    Attributes:
        topic: Its name.
        message_type: Its type, such as "std_msgs/msg/String".
        stamps_ns: (N,) int64, not decreasing: `header.stamp`, or bag time where there is none.
        bag_ns: (N,) int64: when the recorder got each message.
        values: (N, m) float64, see `bag_numbers`; m = 0 for texts.
        texts: N texts, of an instruction topic.
        has_header: `stamps_ns` come from headers.
    """

    topic: str
    message_type: str
    stamps_ns: np.ndarray
    bag_ns: np.ndarray
    values: np.ndarray
    texts: tuple[str, ...] = ()
    has_header: bool = False

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def part(self, indices: np.ndarray) -> Track:
        """Return the track with these messages only."""
        return replace(
            self,
            stamps_ns=self.stamps_ns[indices],
            bag_ns=self.bag_ns[indices],
            values=self.values[indices],
            texts=tuple(self.texts[i] for i in indices.tolist()) if self.texts else (),
        )

    def between(self) -> str:
        """Say from when to when the messages are, in seconds."""
        return f"{self.stamps_ns[0] / 1e9:.3f} s to {self.stamps_ns[-1] / 1e9:.3f} s"


def read_tracks(path: Path, config: TopicConfig) -> dict[str, Track]:
    """Return what each topic says, by role: image, instruction, action, gripper, state, marker.

    A role without a topic is absent. Answers of our node also give `action_dt`, and the
    instruction where no topic of it is named.

    Raises:
        ConfigurationError: The bag is damaged, a topic is missing or has another type, a stamp goes
            backwards or is unset, a number is not finite, or the clocks of two topics differ.
        InstructionError: A prompt cannot hold the instruction.
        DependencyError: `rosbags` is not installed.
    """
    with open_bag(path) as bag:
        listeners = _listeners(bag, config)
        topics = {listener.topic for listener in listeners}
        connections = [c for c in bag.connections if c.topic in topics]
        counts = dict.fromkeys((c.id for c in connections), 0)
        for connection, bag_ns, raw in bag.messages(connections):
            counts[connection.id] += 1
            message = bag.deserialize(raw, connection.msgtype)
            for listener in listeners:
                if listener.topic == connection.topic:
                    listener.hear(message, bag_ns)
        for connection in connections:
            _require_all(path, connection, counts[connection.id])
    tracks = {listener.role: listener.track() for listener in listeners}
    for role, track in tracks.items():
        _require_messages(path, role, track)
    _require_one_clock(path, tracks)
    return tracks


class _Listener:
    """Collects what one topic says about one thing."""

    def __init__(
        self, path: Path, role: str, topic: tuple[str, str], read: Callable, config: TopicConfig
    ) -> None:
        self.role = role
        self.topic, self.message_type = topic
        self._path = path
        self._read = read
        self._uses_header = config.stamps == "header"
        self._offset_ns = round(config.action.offset_s * 1e9) if role == "action" else 0
        self._skips = role == "action" and config.action.skip_non_finite
        self._width = -1
        self._stamps, self._bag, self._values = array("q"), array("q"), array("d")
        self._texts: list[str] = []
        self._has_header = False

    def hear(self, message: Any, bag_ns: int) -> None:
        """Keep what a message says.

        Raises:
            ConfigurationError: It cannot be used; the text says which message and why.
        """
        try:
            self._has_header = self._uses_header and hasattr(message, "header")
            stamp = stamp_ns(message.header.stamp) if self._has_header else bag_ns
            said = self._read(message)
        except InstructionError as error:
            raise InstructionError(f"{self._where(bag_ns)}: {error}") from error
        except (AttributeError, TypeError, ValueError, LookupError, OverflowError) as error:
            raise ConfigurationError(
                f"{self._where(bag_ns)} is no usable {self.message_type}: {error}."
            ) from error
        if said is None or (self._skips and not np.isfinite(said).all()):
            return
        self._require_order(stamp, bag_ns)
        if isinstance(said, str):
            self._texts.append(said)
        else:
            self._require_numbers(said, stamp, bag_ns)
            self._values.extend(said)
        self._stamps.append(stamp)
        self._bag.append(bag_ns)

    def track(self) -> Track:
        """Return all that was heard."""
        count = len(self._stamps)
        return Track(
            topic=self.topic,
            message_type=self.message_type,
            stamps_ns=np.array(self._stamps, np.int64) + self._offset_ns,
            bag_ns=np.array(self._bag, np.int64),
            values=np.array(self._values, np.float64).reshape(count, max(self._width, 0)),
            texts=tuple(self._texts),
            has_header=self._has_header,
        )

    def _where(self, bag_ns: int) -> str:
        return f"{self._path}: the message on {self.topic} at bag time {bag_ns} ns"

    def _require_order(self, stamp: int, bag_ns: int) -> None:
        if self._has_header and stamp == 0:
            raise ConfigurationError(
                f"{self._where(bag_ns)} has no time stamp (header.stamp is 0). "
                "Write `stamps: bag` into the topic file to use the time of the recorder."
            )
        if self._stamps and stamp < self._stamps[-1]:
            raise ConfigurationError(
                f"{self._where(bag_ns)} has the stamp {stamp} ns, and the one before it "
                f"{self._stamps[-1]} ns: stamps must not go backwards. The clock jumped, the "
                "recording was stitched together, or two publishers share the topic. "
                "`stamps: bag` in the topic file uses the time of the recorder."
            )

    def _require_numbers(self, said: tuple[float, ...], stamp: int, bag_ns: int) -> None:
        if self._width < 0:
            self._width = len(said)
        if len(said) != self._width:
            raise ConfigurationError(
                f"{self._where(bag_ns)} has {len(said)} numbers, and those before it {self._width}."
            )
        if self.role in _MEASURED and not np.isfinite(said).all():
            hint = ""
            if self.role == "action":
                hint = " `skip_non_finite: true` under action treats it as not recorded."
            raise ConfigurationError(
                f"{self._where(bag_ns)} (stamp {stamp} ns) holds NaN or infinity: "
                f"{list(said)}.{hint}"
            )


def _listeners(bag: BagReader, config: TopicConfig) -> list[_Listener]:
    """One listener per role; which topic it is, and whether its type and settings fit."""
    named = {"image": config.image}
    if not config.action.is_absent:
        named["action"] = config.action.topic
    if config.gripper.topic and not config.gripper.is_absent:
        named["gripper"] = config.gripper.topic
    if config.state.topic:
        named["state"] = config.state.topic
    if config.split.marker:
        named["marker"] = config.split.marker
    topics = {role: _topic(bag, role, name) for role, name in named.items()}
    answers = topics.get("action", ("", ""))
    is_answered = answers[1] == ANSWER
    readers: dict[str, tuple[tuple[str, str], Callable]] = {}
    if not config.instruction.text:
        if is_answered and not config.instruction.topic:
            readers["instruction"] = answers, lambda m: check_instruction(m.instruction)
        else:
            topic = _topic(bag, "instruction", config.instruction.topic)
            readers["instruction"] = topic, lambda m: check_instruction(m.data)
    if is_answered:
        readers["action_dt"] = answers, action_period
    for role, topic in topics.items():
        readers[role] = topic, _number_reader(bag.path, role, topic, config)
    return [
        _Listener(bag.path, role, topic, read, config) for role, (topic, read) in readers.items()
    ]


def _number_reader(path: Path, role: str, topic: tuple[str, str], config: TopicConfig) -> Reader:
    name, message_type = topic
    try:
        if role == "action":
            return action_reader(message_type, replace(config.action, topic=name))
        if role == "gripper":
            return gripper_reader(message_type, config.gripper)
        if role == "state":
            return state_reader(message_type, config.state)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {name}: {error}") from error
    return image_reader(message_type) if role == "image" else marker_reader(message_type)


def _topic(bag: BagReader, role: str, wanted: str) -> tuple[str, str]:
    """Name and type of the topic of a role; "" takes the only one that it can be."""
    types = {c.topic: c.msgtype for c in bag.connections if c.msgcount}
    allowed = (ANSWER,) if role == "action" and not wanted else ROLE_TYPES[role]
    listing = ", ".join(f"{name} [{kind}]" for name, kind in sorted(types.items()))
    if not types:
        raise ConfigurationError(f"{bag.path} holds no messages: nothing was recorded.")
    if wanted:
        if wanted not in types:
            raise ConfigurationError(
                f"{bag.path} has no messages on the {role} topic {wanted}. It holds: {listing}. "
                "Correct the topic file."
            )
        kinds = {c.msgtype for c in bag.connections if c.topic == wanted and c.msgcount}
        if not kinds <= set(allowed) or len(kinds) > 1:
            raise ConfigurationError(
                f"{bag.path}: the {role} topic {wanted} is a {' and '.join(sorted(kinds))}; "
                f"{role} can be read from one of {', '.join(allowed)}. It holds: {listing}."
            )
        return wanted, kinds.pop()
    fitting = [name for name, kind in types.items() if kind in allowed]
    if len(fitting) != 1:
        raise ConfigurationError(
            f"{bag.path} has {len(fitting)} topics of {' or '.join(allowed)}, so the topic file "
            f"must name the {role} topic. It holds: {listing}. "
            "config/topics/template.yaml is a topic file to copy."
        )
    return fitting[0], types[fitting[0]]


def _require_all(path: Path, connection: Connection, count: int) -> None:
    if count != connection.msgcount:
        raise ConfigurationError(
            f"{path} is not whole: its index says {connection.msgcount} messages on "
            f"{connection.topic}, and {count} can be read. If metadata.yaml is what is wrong, "
            "`ros2 bag reindex` writes it anew."
        )


def _require_messages(path: Path, role: str, track: Track) -> None:
    if not len(track) and role != "action_dt":
        raise ConfigurationError(
            f"{path}: no message on {track.topic} [{track.message_type}] says anything about the "
            f"{role}. Look at the settings of {role} in the topic file."
        )


def _require_one_clock(path: Path, tracks: dict[str, Track]) -> None:
    """Stamps of two topics can be compared only where they are of one clock."""
    # How far each topic's stamps are behind the recorder; an answer has the stamp of its image.
    offsets_s = {
        track.topic: float(np.median(track.bag_ns - track.stamps_ns)) / 1e9
        for track in tracks.values()
        if track.has_header and len(track) and track.message_type != ANSWER
    }
    if all(track.has_header for track in tracks.values()):
        _require_same_offset(path, offsets_s)
        return
    for track in tracks.values():
        offset_s = offsets_s.get(track.topic, 0.0)
        if abs(offset_s) > MAX_CLOCK_OFFSET_S:
            others = ", ".join(sorted({t.topic for t in tracks.values() if not t.has_header}))
            raise ConfigurationError(
                f"{path}: the headers of {track.topic} are {abs(offset_s):.1f} s "
                f"{'behind' if offset_s > 0 else 'ahead of'} the time of the recorder, which is "
                f"the only time that {others} has: the two cannot be compared (simulated time, or "
                "a camera with a clock of its own). `stamps: bag` in the topic file uses the time "
                "of the recorder for all topics."
            )


def _require_same_offset(path: Path, offsets_s: dict[str, float]) -> None:
    """Simulated time is as far behind the recorder for all topics; a camera's own clock is not."""
    by_offset = sorted(offsets_s, key=offsets_s.__getitem__)
    early, late = by_offset[0], by_offset[-1]
    apart_s = offsets_s[late] - offsets_s[early]
    if apart_s > MAX_CLOCK_OFFSET_S:
        raise ConfigurationError(
            f"{path}: the headers of {late} are {apart_s:.1f} s behind those of {early} by the "
            "time of the recorder: two clocks, so what was recorded at one time cannot be found. "
            "`stamps: bag` in the topic file uses the time of the recorder for all topics; "
            "`action.offset_s` moves the stamps of the action alone."
        )
