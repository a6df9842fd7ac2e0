"""A whole recording: pictures from several processes, bags in one order, and a note of how."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from openvla_ros.data.atomic_files import write_whole_file
from openvla_ros.errors import ConfigurationError, StorageError
from openvla_ros.sim.arms import arm_model
from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.recording.bags import EpisodeWriter, RecordedStep
from openvla_ros.sim.recording.moments import moment_answers, scattered_episodes
from openvla_ros.sim.recording.options import DATASET, RecordingOptions
from openvla_ros.sim.recording.policy_rounds import policy_trajectory
from openvla_ros.sim.recording.trajectories import expert_trajectory

NOTE_FILE = "recording.json"
_CHUNK = 8  # pictures that a process makes before it hands them over
_VERSIONS = ("mujoco", "rosbags", "numpy", "opencv-python-headless")

Made = TypeVar("Made")
Make = Callable[[SimCell, RecordingOptions, int], Made]


@dataclass(frozen=True)
class Recorded:
    """What a recording has become.

    Attributes:
        episodes: Bags.
        steps: In all of them.
        pushed_steps: Of these, in how many the arm was pushed off its way.
        left_out: Trajectories that did not end within their time.
        seconds: By the wall clock.
        bytes: On disk.
    """

    episodes: int
    steps: int
    pushed_steps: int
    left_out: int
    seconds: float
    bytes: int


def record_moments(
    folder: Path,
    pictures: int,
    options: RecordingOptions,
    *,
    workers: int = 1,
    on_made: Callable[[], None] = lambda: None,
) -> Recorded:
    """Record scattered moments: up to three steps for each picture, one bag per full episode.

    Args:
        folder: Created; it may exist when it is empty.
        pictures: How many are rendered.
        options: The same ones, with the same number, give the same bags.
        workers: Processes that render; they do not change the bags.
        on_made: Called after each picture.

    Raises:
        ConfigurationError: `folder` holds something, or a number is below 1.
        DependencyError: MuJoCo, the arm's meshes, OpenGL or `rosbags` is not installed.
        StorageError: The disk is full.
    """
    with _recording(folder, "moments", pictures, options, workers) as run:
        made = _made(moment_answers, pictures, options, workers)
        answers = _counted(made, on_made)
        for (kind, instruction), steps in scattered_episodes(answers, options.steps_per_episode):
            run.write(kind, instruction, steps)
    return run.recorded()


def record_trajectories(
    folder: Path,
    episodes: int,
    options: RecordingOptions,
    *,
    workers: int = 1,
    on_made: Callable[[], None] = lambda: None,
) -> Recorded:
    """Record the expert doing tasks, one bag per episode; those not done in time are left out.

    With `options.policy` that one drives, and all episodes are kept: what is recorded is how the
    expert would go on.

    Args:
        folder: Created; it may exist when it is empty.
        episodes: How many are begun.
        options: The same ones, with the same number, give the same bags.
        workers: Processes that simulate and render; they do not change the bags.
        on_made: Called after each episode.

    Raises:
        ConfigurationError: As `record_moments`.
        DependencyError: As `record_moments`.
        StorageError: The disk is full.
    """
    with _recording(folder, "episodes", episodes, options, workers) as run:
        make = policy_trajectory if options.policy else expert_trajectory
        made = _made(make, episodes, options, workers, chunk=1)
        for trajectory in _counted(made, on_made):
            if trajectory.is_done or options.policy:
                task = trajectory.task
                run.write(task.kind, task.instruction, trajectory.steps)
            else:
                run.left_out += 1
    return run.recorded()


class _Run:
    """Writes bags, counts, and says at the end what was done."""

    def __init__(self, folder: Path, what: str, count: int, options: RecordingOptions) -> None:
        self.left_out = self._pushed = 0
        self._folder, self._what, self._count, self._options = folder, what, count, options
        self._writer = EpisodeWriter(
            folder, [name.rpartition("/")[2] for name in arm_model(options.arm).joints]
        )
        self._begin_s = time.monotonic()

    def write(self, kind: str, instruction: str, steps: list[RecordedStep]) -> None:
        """Write one episode."""
        self._writer.write(kind, instruction, steps)
        self._pushed += sum(step.is_pushed for step in steps)

    def recorded(self) -> Recorded:
        """Return the summary."""
        return Recorded(
            episodes=self._writer.episodes,
            steps=self._writer.steps,
            pushed_steps=self._pushed,
            left_out=self.left_out,
            seconds=time.monotonic() - self._begin_s,
            bytes=sum(file.stat().st_size for file in self._folder.rglob("*") if file.is_file()),
        )

    def write_note(self) -> None:
        """Say beside the bags how they were made."""
        note: dict[str, Any] = {
            "dataset": DATASET,
            self._what: self._count,
            "options": asdict(self._options),
            "recorded": asdict(self.recorded()),
            "versions": {name: _version(name) for name in ("openvla_ros", *_VERSIONS)},
            "python": platform.python_version(),
        }
        text = json.dumps(note, indent=2) + "\n"
        write_whole_file(self._folder / NOTE_FILE, [text.encode()])


@contextmanager
def _recording(
    folder: Path, what: str, count: int, options: RecordingOptions, workers: int
) -> Iterator[_Run]:
    """A run that writes into an empty folder; the note is written when all went well."""
    for name, number in ((what, count), ("workers", workers)):
        if number < 1:
            raise ConfigurationError(f"{name} is {number}; it must be 1 or more.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise StorageError(f"{folder} cannot be used as a folder: {error}.") from error
    if not is_empty:
        raise ConfigurationError(
            f"{folder} is not empty. Choose another folder, or remove what is in it: recordings "
            "are not added to one another."
        )
    run = _Run(folder, what, count, options)
    try:
        yield run
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}.") from error
    run.write_note()


def _made(
    make: Make[Made], count: int, options: RecordingOptions, workers: int, chunk: int = _CHUNK
) -> Iterator[Made]:
    """What `make` gives for 0 ... count - 1, in this order, from one cell in each process."""
    if workers == 1:
        cell = SimCell(options.arm)
        try:
            yield from map(partial(make, cell, options), range(count))
        finally:
            cell.close()
        return
    # Not forked: an OpenGL context does not survive that, and neither do the threads of libraries.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(partial(_make, make, options), range(count), chunk)


def _make(make: Make[Made], options: RecordingOptions, number: int) -> Made:
    return make(_own_cell(options.arm), options, number)


@cache
def _own_cell(arm: str) -> SimCell:
    """The cell of this process, with one thread for OpenGL: the processes share the cores."""
    os.environ.setdefault("LP_NUM_THREADS", "0")
    return SimCell(arm)


def _counted(made: Iterable[Made], on_made: Callable[[], None]) -> Iterator[Made]:
    for one in made:
        yield one
        on_made()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
