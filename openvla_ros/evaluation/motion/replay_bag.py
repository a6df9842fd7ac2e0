"""A bag to look at: what was recorded, what the policy answered, and what the arm would be told.

One MCAP file for rviz, Foxglove and `ros2 bag play`; the recorded topics of a bag are copied as
they are. One image is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, takewhile, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from openvla_ros.config.motion import GripperConfig, MotionConfig
from openvla_ros.control.motion import ACTION_DIM, MotionPlan, MotionStage
from openvla_ros.control.pose import Pose
from openvla_ros.data.bag_file import IMAGE_TYPES, BagReader, open_bag
from openvla_ros.data.bag_numbers import TEXT, TWIST
from openvla_ros.data.episode import Episode
from openvla_ros.errors import ConfigurationError, MotionError
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.motion.motion_replay import (
    as_prediction,
    commanded_steps,
    pose_of_state,
    stream_actions,
    without_unknown_box,
)
from openvla_ros.evaluation.motion.replay_messages import (
    ACTION,
    ReplayedAnswer,
    ReplayMessages,
)
from openvla_ros.evaluation.motion.replay_writer import ReplayWriter
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.types import ActionSpec

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

PREFIX = "/openvla_replay/"
ACTION_TOPIC = f"{PREFIX}action"
RECORDED_TOPIC = f"{PREFIX}recorded_action"
TWIST_TOPIC = f"{PREFIX}twist_cmd"
#: Of sources that are no bag and have no topics of their own.
RAW_IMAGE_TOPIC, COMPRESSED_IMAGE_TOPIC = "/image", "/image/compressed"
INSTRUCTION_TOPIC = "/instruction"

BETWEEN_EPISODES_NS = 1_000_000_000  # at least, where the stamps of two episodes overlap
_SEARCHED_IMAGES = 1000

Row: TypeAlias = "tuple[int, Connection, bytes]"
Pair: TypeAlias = tuple[Episode, EpisodeRecord]
_STAMP = itemgetter(0)


@dataclass(frozen=True)
class _Planned:
    """The answers of one episode as the motion stage takes them; N = 0 twists where it cannot."""

    plans: tuple[MotionPlan, ...]
    gripper_is_open: tuple[bool | None, ...]
    times_s: np.ndarray  # (N,) since the first image
    twists: np.ndarray  # (N, 6)


def write_replay_bags(
    path: Path,
    episodes: Sequence[Episode],
    records: Iterable[EpisodeRecord],
    spec: ActionSpec,
    motion: MotionConfig,
    gripper: GripperConfig,
    **options: Any,
) -> list[Path]:
    """Write one bag at `path` for episodes of one source, else a folder with a bag for each.

    Recordings of several days, or of one synthetic clock, do not fit into one bag: the stamps in
    their messages would have to be changed. All are written, or none.

    Args:
        path: Folder to create.
        episodes: Of one source after the other.
        records: The answers to them, in the same order.
        spec: See `write_replay_bag`; the others and the errors too.
        motion: See there.
        gripper: See there.
        **options: Its keyword arguments.

    Returns:
        The bags: `path`, or "0000_<name of the source>" ... in it.
    """
    groups = [list(group) for _, group in groupby(episodes, lambda episode: episode.source)]
    if len(groups) == 1:
        write_replay_bag(path, episodes, records, spec, motion, gripper, **options)
        return [path]
    if path.exists():
        raise ConfigurationError(f"{path} exists already. Choose another folder for the bags.")
    names = [f"{i:04d}_{Path(group[0].source).stem}" for i, group in enumerate(groups)]
    following = iter(records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as partial:
        whole = Path(partial) / path.name
        whole.mkdir()
        for name, group in zip(names, groups, strict=True):
            own = islice(following, len(group))
            write_replay_bag(whole / name, group, own, spec, motion, gripper, **options)
        whole.rename(path)
    return [path / name for name in names]


def write_replay_bag(
    path: Path,
    episodes: Iterable[Episode],
    records: Iterable[EpisodeRecord],
    spec: ActionSpec,
    motion: MotionConfig,
    gripper: GripperConfig,
    *,
    copy_recorded: bool = True,
    image_format: str = "png",
    speed_scale: float = 1.0,
    tokenizer: ActionTokenizer | None = None,
) -> None:
    """Write a bag of recorded data, predicted `VLAAction` and twist; whole or not at all.

    Topics: those of the source when it is a rosbag2, otherwise the image and `/instruction`;
    `/openvla_replay/action` (VLAAction, stamped as its image), `/openvla_replay/recorded_action`
    (TwistStamped: the recorded step, m/s and rad/s over its own time) and
    `/openvla_replay/twist_cmd` (TwistStamped at `stream_rate`: what the node would send if every
    answer came at once). The last two are left out where the spec does not say what they need.

    Stamps are those of the recording. An episode that is not from a bag and would begin before the
    one before it has ended is moved to 1 s after it. Twists end where the next episode begins.

    Args:
        path: Folder to create.
        episodes: Read one at a time; those of one bag must follow one another, in order of time.
        records: The answers to them, in the same order.
        spec: What the numbers mean.
        motion: Limits and scales; a workspace counts where a recorded state says where the arm is.
        gripper: Threshold, hysteresis, votes.
        copy_recorded: False leaves images, instruction and the source's topics out: a small bag, to
            be looked at beside the source.
        image_format: "png", "raw" or "jpeg" (not exact), for images that are not from a bag.
        speed_scale: Replaces that of `motion`, so that paths can be compared with the recorded one.
        tokenizer: Of the checkpoint; without it `invalid_dims` stays empty.

    Raises:
        ConfigurationError: `path` exists; records are not those of the episodes; a bag is damaged,
            or begins before the source before it has ended.
        DependencyError: `rosbags` is not installed.
        OSError: The disk is full; nothing is left behind.
    """
    motion = dataclasses.replace(motion, speed_scale=speed_scale)
    messages = ReplayMessages(image_format)
    with ReplayWriter(path, messages.typestore) as writer:
        bag = _ReplayBag(writer, messages, spec, motion, gripper, tokenizer, copy_recorded)
        for source, pairs in groupby(_paired(episodes, records), lambda pair: pair[0].source):
            if is_bag(Path(source)):
                bag.add_bag(Path(source), pairs)
            else:
                bag.add_episodes(pairs)


def is_bag(path: Path) -> bool:
    """True for a rosbag2 folder, or one of its files."""
    return (path / "metadata.yaml").is_file() or (path.suffix in (".mcap", ".db3"))


class _ReplayBag:
    """Turns episodes into rows of the bag, source by source."""

    def __init__(
        self,
        writer: ReplayWriter,
        messages: ReplayMessages,
        spec: ActionSpec,
        motion: MotionConfig,
        gripper: GripperConfig,
        tokenizer: ActionTokenizer | None,
        copy_recorded: bool,
    ) -> None:
        self._writer, self._messages = writer, messages
        self._spec, self._motion, self._gripper = spec, motion, gripper
        self._tokenizer = tokenizer
        self._copy_recorded = copy_recorded
        self._action = writer.topic(ACTION_TOPIC, ACTION)
        self._recorded = writer.topic(RECORDED_TOPIC, TWIST)
        self._twist = writer.topic(TWIST_TOPIC, TWIST)

    def add_bag(self, path: Path, pairs: Iterator[Pair]) -> None:
        """Append one bag with the answers to its episodes."""
        with open_bag(path) as reader:
            self._writer.write(self._bag_rows(reader, pairs))

    def add_episodes(self, pairs: Iterator[Pair]) -> None:
        """Append episodes that are not from a bag, with their images."""
        for episode, record in pairs:
            first_ns = self._writer.last_ns + BETWEEN_EPISODES_NS
            stamps_ns = episode.stamps_ns + max(0, first_ns - int(episode.stamps_ns[0]))
            rows = [self._answer_rows(episode, record, stamps_ns)]
            if self._copy_recorded:
                rows.insert(0, self._recorded_rows(episode, stamps_ns))
            self._writer.write(heapq.merge(*rows, key=_STAMP))

    def _bag_rows(self, reader: BagReader, pairs: Iterator[Pair]) -> Iterator[Row]:
        first = next(pairs)
        delay_ns = _bag_delay_ns(reader, int(first[0].stamps_ns[0]))
        answers = self._bag_answers(first, pairs, delay_ns)
        rows = heapq.merge(self._copied(reader), answers, key=_STAMP)
        for count, row in enumerate(rows):
            if count == 0 and row[0] < self._writer.last_ns:
                raise ConfigurationError(
                    f"{reader.path} begins before the source before it has ended, so both do not "
                    "fit into one bag. Write a bag for each of them (`write_replay_bags`)."
                )
            yield row

    def _bag_answers(
        self, pair: Pair | None, following: Iterator[Pair], delay_ns: int
    ) -> Iterator[Row]:
        """Rows of all episodes of one bag, each up to the beginning of the next."""
        while pair is not None:
            (episode, record), pair = pair, next(following, None)
            rows = self._answer_rows(episode, record, episode.stamps_ns)
            if pair is not None:
                end_ns = int(pair[0].stamps_ns[0])
                rows = takewhile(lambda row, end_ns=end_ns: row[0] < end_ns, rows)  # type: ignore[misc]
            yield from ((stamp + delay_ns, topic, raw) for stamp, topic, raw in rows)

    def _copied(self, reader: BagReader) -> Iterator[Row]:
        """The recorded messages, but those of an earlier replay."""
        recorded = [c for c in reader.connections if not c.topic.startswith(PREFIX)]
        if not self._copy_recorded or not recorded:
            return
        topics = {c.id: self._writer.copied_topic(c, reader.typestore) for c in recorded}
        for connection, stamp_ns, raw in reader.messages(recorded):
            yield stamp_ns, topics[connection.id], raw

    def _recorded_rows(self, episode: Episode, stamps_ns: np.ndarray) -> Iterator[Row]:
        """Instruction and images of an episode that is not from a bag."""
        is_raw = self._messages.image_type == IMAGE_TYPES[0]
        name = RAW_IMAGE_TOPIC if is_raw else COMPRESSED_IMAGE_TOPIC
        images = self._writer.topic(name, self._messages.image_type)
        instruction = self._writer.topic(INSTRUCTION_TOPIC, TEXT, is_latched=True)
        yield int(stamps_ns[0]), instruction, self._messages.text(episode.instruction)
        for stamp_ns, image in zip(stamps_ns.tolist(), episode.open_images(), strict=True):
            yield stamp_ns, images, self._messages.image(stamp_ns, image)

    def _answer_rows(
        self, episode: Episode, record: EpisodeRecord, stamps_ns: np.ndarray
    ) -> Iterator[Row]:
        """Recorded actions, answers and twists of one episode, in order of time."""
        planned = self._planned(episode, record)
        streams = (
            self._recorded_actions(episode, stamps_ns),
            self._actions(record, planned, stamps_ns),
            self._twists(planned, int(stamps_ns[0])),
        )
        return heapq.merge(*streams, key=_STAMP)

    def _planned(self, episode: Episode, record: EpisodeRecord) -> _Planned:
        start = self._start_of(episode)
        motion = without_unknown_box(self._motion, start)
        stage = MotionStage(self._spec, motion, self._gripper)
        if not stage.obstacle() and record.predicted.shape[1] == ACTION_DIM:
            streamed = stream_actions(
                record.predicted,
                self._spec,
                motion,
                self._gripper,
                rate_hz=episode.rate_hz,
                due_s=(episode.stamps_ns - episode.stamps_ns[0]) * 1e-9,
                is_valid=record.is_valid,
                start=start,
            )
            return _Planned(
                streamed.plans, streamed.gripper_is_open, streamed.times_s, streamed.twists
            )
        plans, decisions = [], []
        for action, is_valid in zip(record.predicted, record.is_valid, strict=True):
            prediction = as_prediction(action, self._spec.unnorm_key, is_valid=bool(is_valid))
            plans.append(stage.plan(prediction))
            stage.observe(plans[-1])
            decisions.append(stage.gripper_is_open)
        return _Planned(tuple(plans), tuple(decisions), np.zeros(0), np.zeros((0, 6)))

    def _start_of(self, episode: Episode) -> Pose | None:
        """Where the end effector is at the first image; None when no state says it."""
        states = episode.states
        return None if states is None else pose_of_state(states[0], self._motion)

    def _recorded_actions(self, episode: Episode, stamps_ns: np.ndarray) -> Iterator[Row]:
        start = self._start_of(episode)
        try:
            steps = commanded_steps(episode.actions, self._spec, self._motion, start)
        except MotionError:
            return  # ~/action says which field is unknown; here is nothing to plot
        rate_hz = self._spec.action_hz or episode.rate_hz
        for stamp_ns, step in zip(stamps_ns.tolist(), steps, strict=True):
            if np.isfinite(step).all():
                raw = self._messages.twist(stamp_ns, step * rate_hz, self._motion.base_frame)
                yield stamp_ns, self._recorded, raw

    def _actions(
        self, record: EpisodeRecord, planned: _Planned, stamps_ns: np.ndarray
    ) -> Iterator[Row]:
        rate_hz = self._spec.action_hz
        for step, stamp_ns in enumerate(stamps_ns.tolist()):
            answer = ReplayedAnswer(
                record,
                step,
                stamp_ns,
                planned.plans[step],
                planned.gripper_is_open[step],
                unnorm_key=self._spec.unnorm_key,
                action_dt_s=1.0 / rate_hz if rate_hz else math.nan,
                base_frame=self._motion.base_frame,
                invalid_dims=self._invalid_dims(record.token_ids[step]),
            )
            yield stamp_ns, self._action, self._messages.action(answer)

    def _invalid_dims(self, token_ids: np.ndarray) -> tuple[int, ...]:
        if self._tokenizer is None:
            return ()
        is_action = self._tokenizer.is_action_token(token_ids)
        return tuple(np.flatnonzero(~is_action).tolist())

    def _twists(self, planned: _Planned, first_ns: int) -> Iterator[Row]:
        for time_s, twist in zip(planned.times_s.tolist(), planned.twists, strict=True):
            stamp_ns = first_ns + round(time_s * 1e9)
            raw = self._messages.twist(stamp_ns, twist, self._motion.base_frame)
            yield stamp_ns, self._twist, raw


def _bag_delay_ns(reader: BagReader, stamp_ns: int) -> int:
    """How long after its stamp the image of a step is in the bag; 0 where that is not known.

    Answers are put as far behind their stamps as images are: a player then shows them together,
    also when the clock of the camera is another one than that of the recorder.
    """
    cameras = [c for c in reader.connections if c.msgtype in IMAGE_TYPES]
    if not cameras:
        return 0
    for connection, time_ns, raw in islice(reader.messages(cameras), _SEARCHED_IMAGES):
        stamp = reader.deserialize(raw, connection.msgtype).header.stamp
        if stamp.sec * 1_000_000_000 + stamp.nanosec == stamp_ns:
            return time_ns - stamp_ns
    return 0


def _paired(episodes: Iterable[Episode], records: Iterable[EpisodeRecord]) -> Iterator[Pair]:
    """Yield each episode with its record.

    Raises:
        ConfigurationError: One is missing, or they do not belong together.
    """
    for episode, record in zip_longest(episodes, records):
        found = None if record is None else (record.source, record.episode, len(record))
        wanted = None if episode is None else (episode.source, episode.name, len(episode))
        if found != wanted:
            raise ConfigurationError(
                f"the record {found} does not belong to the episode {wanted} (source, name, "
                "steps). Give both in the same order."
            )
        yield episode, record
