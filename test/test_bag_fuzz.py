"""Damaged bags, many of them: each gives episodes or a clear error, soon, and nothing else."""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import traceback
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags need the extra `bags`")
from bag_samples import (
    ACTION,
    answer,
    number,
    picture,
    plain_recording,
    png_image,
    text,
    time_of,
    twist,
    write_bag,
)

from openvla_ros.data.bag_episodes import bag_episodes
from openvla_ros.data.topics import ActionSource, GripperSource, TopicConfig
from openvla_ros.errors import OpenVLAError

COPIES = 1500
DEADLINE_S = 20.0  # one copy takes 0.05 s; a busy machine takes longer, an endless loop for ever
MEMORY_BYTES = 6 * 2**30  # of addresses: a length from a damaged file must not take the machine's

ARRAYS = TopicConfig(rate_hz=5.0, action=ActionSource(topic=ACTION))
TWISTS = TopicConfig(
    rate_hz=5.0,
    action=ActionSource(topic=ACTION, rotation="rotvec_rate"),
    gripper=GripperSource(topic="/gripper"),
)


def sample_bags(folder: Path) -> list[tuple[Path, TopicConfig]]:
    """Small bags of every storage and compression, with raw and compressed images."""
    made = [
        (write_bag(folder / f"{storage}_{mode}", plain_recording(), **settings), ARRAYS)
        for storage, mode in (
            ("mcap", ""),
            ("mcap", "storage"),
            ("mcap", "message"),
            ("mcap", "file"),
            ("sqlite3", ""),
            ("sqlite3", "file"),
        )
        for settings in ({"storage": storage, "compression": mode},)
    ]
    moving = [text(time_of(0), "push the block")]
    answered = []
    for step in range(8):
        image = png_image(time_of(step), picture(step))
        moving += [image, number(time_of(step), 1.0, "/gripper")]
        moving += [twist(time_of(step + k / 4), [0.01 * step] * 6) for k in range(4)]
        answered += [image, answer(time_of(step), [0.01 * step] * 7)]
    made.append((write_bag(folder / "moving", moving), TWISTS))
    made.append((write_bag(folder / "answered", answered), TopicConfig()))
    return made


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """Return the bytes with flipped bits, a part cut, moved, repeated, or overwritten."""
    size = len(data)
    begin, end = sorted(random.integers(0, size + 1, 2).tolist())
    end = min(end, begin + int(random.integers(1, 64)))  # long parts leave nothing to read
    place = int(random.integers(0, size))
    match int(random.integers(0, 6)):
        case 0 | 1:
            array = np.frombuffer(data, np.uint8).copy()
            where = random.integers(0, size, int(random.integers(1, 9)))
            # Half of them at the end, where MCAP has its index.
            if random.integers(0, 2):
                where = size - 1 - where % min(size, 1500)
            array[where] ^= (1 << random.integers(0, 8, len(where))).astype(np.uint8)
            return array.tobytes()
        case 2:
            return data[:place]
        case 3:
            return data[:place] + data[begin:end] + data[place:]
        case 4:
            return data[:begin] + data[end:]
        case _:
            filler = bytes([int(random.choice([0, 255]))]) * (end - begin)
            return data[:begin] + filler + data[end:]


def damaged_copy(bag: Path, copy: Path, random: np.random.Generator) -> Path:
    """Damage one file of a copy of the bag; sometimes the storage is read without its folder."""
    shutil.copytree(bag, copy)
    [storage] = [file for file in copy.iterdir() if file.name != "metadata.yaml"]
    is_metadata = random.integers(0, 8) == 0
    victim = copy / "metadata.yaml" if is_metadata else storage
    victim.write_bytes(damaged(victim.read_bytes(), random))
    is_alone = storage.suffix in (".mcap", ".db3") and random.integers(0, 2)
    return storage if is_alone else copy


def read_everything(path: Path, config: TopicConfig) -> str:
    """Return "episodes", or the name of the error; raises whatever is no OpenVLAError."""
    try:
        for episode in bag_episodes(path, config):
            shapes = [image.shape for image in episode.open_images()]
            assert len(shapes) == len(episode) and len(set(shapes)) == 1
            nan = np.isnan(episode.actions)
            assert (nan.any(axis=1) == nan.all(axis=1)).all(), "a row is known or it is not"
            assert np.isfinite(episode.actions[~nan]).all()
            assert (np.diff(episode.stamps_ns) > 0).all()
    except OpenVLAError as error:
        assert str(path) in str(error), f"the error does not name the bag: {error}"
        return type(error).__name__
    return "episodes"


def answer_jobs(pipe: Connection) -> None:
    """Read bags until the other side closes the pipe."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    while True:
        try:
            path, config = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((read_everything(path, config), ""))
        except Exception:  # whatever it is, it is what this test looks for
            pipe.send(("crash", traceback.format_exc()))


class Reader:
    """A process that reads bags, and is replaced when one of them does not let it go."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = multiprocessing.get_context("spawn").Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=answer_jobs, args=(theirs,), daemon=True
        )
        self._process.start()
        theirs.close()

    def read(self, path: Path, config: TopicConfig) -> tuple[str, str]:
        self._pipe.send((path, config))
        try:
            if self._pipe.poll(DEADLINE_S if self._warm else 120.0):
                self._warm = True
                return self._pipe.recv()
            outcome = "hang", ""
        except EOFError:
            outcome = "killed", f"exit code {self._process.exitcode}"
        self.close()
        self._start()
        return outcome

    _warm = False

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._warm = False


@pytest.fixture
def reader() -> Iterator[Reader]:
    process = Reader()
    yield process
    process.close()


@pytest.mark.slow
def test_damaged_bags_give_episodes_or_a_clear_error(tmp_path, reader) -> None:
    bags = sample_bags(tmp_path)
    for bag, config in bags:
        assert reader.read(bag, config) == ("episodes", "")
    outcomes: Counter[str] = Counter()
    for seed in range(COPIES):
        bag, config = bags[seed % len(bags)]
        copy = tmp_path / "copy"
        path = damaged_copy(bag, copy, np.random.default_rng(seed))
        outcome, detail = reader.read(path, config)
        outcomes[outcome] += 1
        assert outcome in ("episodes", "ConfigurationError", "ImageError", "InstructionError"), (
            f"seed {seed}, {bag.name}, {path.name}: {outcome}\n{detail}"
        )
        shutil.rmtree(copy)
    print(dict(outcomes))
    assert outcomes["ConfigurationError"] > COPIES / 5, outcomes
    assert outcomes["episodes"] > COPIES / 20, outcomes
