"""Batches of a run, by number: what step s sees depends on the configuration and s alone.

Not on the number of worker processes, nor on where a run was interrupted, nor on how its global
batch is divided among processes and passes.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from openvla_ros.data.atomic_files import remove_abandoned, require_space
from openvla_ros.data.episode import Episode
from openvla_ros.data.frame_store import FrameStore
from openvla_ros.errors import StorageError, TrainingError
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.processing import OpenVLAProcessor
from openvla_ros.training.batch import EvaluationSample, TrainingBatch
from openvla_ros.training.config import DataConfig
from openvla_ros.training.datasets import TrainingSet
from openvla_ros.training.mixture_order import MixtureOrder
from openvla_ros.training.samples import collate, require_token_id
from openvla_ros.training.step_dataset import (
    Place,
    StepDataset,
    StepReader,
    deployed_options,
    open_part,
)

__all__ = ["TrainingData", "deployed_options"]

SLICES = ("training", "held_out")

_PREFETCHED = 2  # batches that each worker makes ahead
_SHARED_MEMORY = Path("/dev/shm")  # through which torch's workers hand tensors over, on Linux

#: Told episodes done and in all, while pictures are prepared.
Prepared = Callable[[int, int], None]


class TrainingData:
    """The steps of several training sets, as samples and batches.

    Args:
        sets: At least one.
        processor: Of the base checkpoint; its own camera path is replaced by `deployed_options`.
        data: How pictures are prepared, and by how many processes.
        seed: Decides order and augmentation.
        action_tokenizer: Of the base checkpoint.

    Raises:
        CheckpointError: The tokenizer has no end of sequence, or no padding.
        InstructionError: An instruction is empty.
    """

    def __init__(
        self,
        sets: Sequence[TrainingSet],
        processor: OpenVLAProcessor,
        data: DataConfig,
        seed: int,
        action_tokenizer: ActionTokenizer,
    ) -> None:
        assert sets
        self.sets = tuple(sets)
        self.steps = sum(one.steps for one in sets)
        self._data = data
        self._seed = seed
        self._pad_token_id = require_token_id(processor, "pad")
        # By all steps of each set, held-out ones too, as the reference counts them.
        weights = np.array([one.weight * one.entry["num_transitions"] for one in sets])
        self._order = MixtureOrder(seed, [s.steps for s in sets], weights / weights.sum())
        reader = StepReader(processor, action_tokenizer, data)
        self._training = StepDataset(reader, [open_part(s, s.episodes, reader) for s in sets], seed)
        self._held_out = StepDataset(reader, [open_part(s, s.held_out, reader) for s in sets], seed)

    def prepare(self, progress: Prepared | None = None) -> None:
        """Decode and resize the pictures of all episodes that are not in the cache yet.

        Without it they are prepared when they are first asked for. What writers that were killed
        have left half done is removed.

        Raises:
            StorageError: The disk has no room for all of them; nothing was written then.
            TrainingError: A worker process was killed.
        """
        missing = [
            (part.store, episode)
            for steps in (self._training, self._held_out)
            for part in steps.parts
            for episode in part.episodes
            if not part.store.has(episode)
        ]
        needed = sum(store.required_bytes(episode) for store, episode in missing)
        if missing:
            folder = missing[0][0].folder
            remove_abandoned(folder)
            require_space(folder, needed, f"Prepared pictures of {len(missing)} episodes")
        for done, _ in enumerate(_in_workers(_prepare, missing, self._data.workers)):
            if progress is not None:
                progress(done + 1, len(missing))

    def batches(
        self,
        batch_size: int,
        accumulation: int,
        first_step: int,
        last_step: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[list[TrainingBatch]]:
        """Yield the batches of each optimiser step from `first_step` up to `last_step`, excluded.

        Args:
            batch_size: Samples per batch.
            accumulation: Batches per step.
            first_step: Steps that were made before.
            last_step: Steps of the whole run.
            rank: Which of the processes this is.
            world_size: Processes that share each step.

        Raises:
            StorageError: Prepared pictures cannot be written, or workers have too little shared
                memory to hand batches over.
            TrainingError: A worker process was killed.
        """
        numbers = _Numbers(batch_size, accumulation, (first_step, last_step), rank, world_size)
        workers = self._data.workers
        if workers:
            ahead = (workers * _PREFETCHED + 1) * batch_size
            _require_shared_memory(ahead * self._training.reader.pixel_bytes)
        loader = DataLoader(
            self._training,
            batch_sampler=_Places(numbers, self._order),
            collate_fn=partial(collate, pad_token_id=self._pad_token_id),
            num_workers=workers,
            prefetch_factor=_PREFETCHED if workers else None,
            worker_init_fn=_start_worker if workers else None,
            multiprocessing_context=_start_method() if workers else None,
            pin_memory=torch.cuda.is_available(),
            # Its own: the default one would take a number from the generator that dropout uses.
            generator=torch.Generator().manual_seed(self._seed),
        )
        step: list[TrainingBatch] = []
        for batch in _while_alive(loader):
            step.append(batch)
            if len(step) == accumulation:
                yield step
                step = []

    def slice(self, name: str, count: int) -> list[EvaluationSample]:
        """Return up to `count` steps, evenly spread, as the deployed policy sees them.

        Args:
            name: "training" or "held_out"; nothing may be held out, then there are none.
            count: Most samples.
        """
        assert name in SLICES, name
        steps = self._training if name == "training" else self._held_out
        total = len(steps)
        count = min(count, total)
        chosen = ((np.arange(count) + 0.5) * total / max(count, 1)).astype(np.int64)
        return [steps.evaluation_sample(number) for number in chosen.tolist()]


@dataclass(frozen=True)
class _Numbers:
    """Sample numbers of each batch of one process, in order.

    The global batch of step s is `batch_size * accumulation * world_size` numbers in a row, and
    each batch of each process a part of it: two processes see in one pass what one process sees in
    two.
    """

    batch_size: int
    accumulation: int
    steps: tuple[int, int]
    rank: int
    world_size: int

    def __len__(self) -> int:
        return max(self.steps[1] - self.steps[0], 0) * self.accumulation

    def __iter__(self) -> Iterator[int]:
        """Yield the first number of each batch."""
        passes = self.accumulation * self.world_size
        for step in range(*self.steps):
            for index in range(self.accumulation):
                place = step * passes + index * self.world_size + self.rank
                yield place * self.batch_size


class _Places:
    """The places of each batch, as a DataLoader asks for them."""

    def __init__(self, numbers: _Numbers, order: MixtureOrder) -> None:
        self._numbers = numbers
        self._order = order

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[list[Place]]:
        for first in self._numbers:
            datasets, positions = self._order.take(first, self._numbers.batch_size)
            numbers = range(first, first + len(datasets))
            yield [
                Place(*place)
                for place in zip(numbers, datasets.tolist(), positions.tolist(), strict=True)
            ]


def _prepare(item: tuple[FrameStore, Episode]) -> None:
    store, episode = item
    store.frames(episode)


def _in_workers(
    function: Callable[[Any], None], items: Sequence[Any], workers: int
) -> Iterator[None]:
    """Call the function with each item, in so many processes; yield as often, in order."""
    if workers < 2 or len(items) < 2:
        yield from map(function, items)
        return
    context = get_context(_start_method())
    count = min(workers, len(items))
    with ProcessPoolExecutor(count, context, _start_worker, (0,)) as pool:
        try:
            yield from pool.map(function, items)
        except BrokenProcessPool as error:
            raise _killed() from error


def _while_alive(loader: Iterable[TrainingBatch]) -> Iterator[TrainingBatch]:
    """Yield its batches; torch says with a RuntimeError alone that a worker is gone."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" in str(error) and "exited unexpectedly" in str(error):
            raise _killed() from error
        raise


def _killed() -> TrainingError:
    return TrainingError(
        "A worker process that prepares images was killed, most likely because memory ran out "
        "(dmesg says so). Lower data.workers, and start the same command again: what is saved or "
        "prepared stays."
    )


def _require_shared_memory(needed_bytes: int) -> None:
    """Return when batches made ahead fit; without room, a worker would die of a bus error."""
    if not _SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if free < needed_bytes:
        raise StorageError(
            f"Batches that workers make ahead take {needed_bytes:,} bytes of shared memory, and "
            f"{_SHARED_MEMORY} has {free:,} free. Start the container with more (docker run "
            "--shm-size=2g, or --ipc=host), lower data.workers, or set it to 0."
        )


def _start_worker(_: int) -> None:
    """An interrupt is the training process's to handle: it stops its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Schedulers send it to all processes, and the run needs its next batch before it can save.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _start_method() -> str:
    """Workers that fork share what is in memory; where there is no fork, everything is sent."""
    methods = get_all_start_methods()
    return "fork" if "fork" in methods else methods[0]
