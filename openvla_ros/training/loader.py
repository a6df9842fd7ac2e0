"""Batches of a run, by number: what step s sees depends on the configuration and s alone.

Not on the number of worker processes, nor on where a run was interrupted, nor on how its global
batch is divided among processes and passes.
"""

from __future__ import annotations

import copy
import hashlib
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_all_start_methods

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from openvla_ros.data.atomic_files import require_space
from openvla_ros.data.episode import Episode
from openvla_ros.data.frame_store import FrameStore
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.action_stats import normalize
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.image_options import MODEL_IMAGE_SIZE, ImageOptions, center_crop
from openvla_ros.model.processing import ImageProcessor, OpenVLAProcessor
from openvla_ros.training.augmentation import augment
from openvla_ros.training.batch import EvaluationSample, Origin, TrainingBatch, TrainingSample
from openvla_ros.training.config import DataConfig
from openvla_ros.training.datasets import TrainingSet, prepared_folder
from openvla_ros.training.mixture_order import MixtureOrder
from openvla_ros.training.samples import (
    collate,
    encode_instruction,
    label_sample,
    require_token_id,
)

SLICES = ("training", "held_out")
_AUGMENTATION = 2  # tells these draws from those of `mixture_order`

#: Told episodes done and in all, while pictures are prepared.
Prepared = Callable[[int, int], None]


def deployed_options(data: DataConfig) -> ImageOptions:
    """Return the camera path of the policy that training on this data gives."""
    return ImageOptions(
        rotate_180=data.rotate_180,
        lanczos3=data.lanczos3,
        center_crop=data.image_augmentation,
    )


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
        weights = np.array([one.weight * one.steps for one in sets])
        self._order = MixtureOrder(seed, [s.steps for s in sets], weights / weights.sum())
        reader = _Reader(processor, action_tokenizer, data)
        self._training = _Steps(reader, [_open(s, s.episodes, reader) for s in sets], seed)
        self._held_out = _Steps(reader, [_open(s, s.held_out, reader) for s in sets], seed)

    @property
    def identity(self) -> str:
        """A hash of what is trained on: content and settings of every set."""
        parts = [(one.name, one.weight, one.identity, one.steps) for one in self.sets]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def prepare(self, progress: Prepared | None = None) -> None:
        """Decode and resize the pictures of all episodes that are not in the cache yet.

        Without it they are prepared when they are first asked for.

        Raises:
            StorageError: The disk has no room for all of them; nothing was written then.
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
            require_space(folder, needed, f"Prepared pictures of {len(missing)} episodes")
        for done, (store, episode) in enumerate(missing):
            store.frames(episode)
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
            StorageError: Prepared pictures cannot be written.
        """
        numbers = _Numbers(batch_size, accumulation, (first_step, last_step), rank, world_size)
        workers = self._data.workers
        loader = DataLoader(
            self._training,
            batch_sampler=_Places(numbers, self._order),
            collate_fn=partial(collate, pad_token_id=self._pad_token_id),
            num_workers=workers,
            worker_init_fn=_start_worker if workers else None,
            multiprocessing_context=_start_method() if workers else None,
            pin_memory=torch.cuda.is_available(),
            # Its own: the default one would take a number from the generator that dropout uses.
            generator=torch.Generator().manual_seed(self._seed),
        )
        step: list[TrainingBatch] = []
        for batch in loader:
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


class _Reader:
    """What makes tensors of pictures, instructions and actions."""

    def __init__(
        self, processor: OpenVLAProcessor, action_tokenizer: ActionTokenizer, data: DataConfig
    ) -> None:
        self.data = data
        self.action_tokenizer = action_tokenizer
        self.stop_token_id = require_token_id(processor, "eos")
        self._processor = processor
        self._prompts: dict[str, torch.Tensor] = {}
        # The steps of the camera path are taken here: what is always the same, once per picture.
        self._towers: ImageProcessor = copy.copy(processor.image_processor)
        self._towers.options = ImageOptions()

    def __getstate__(self) -> dict[str, object]:
        """Workers get the encoded prompts, and no tokenizer."""
        return self.__dict__ | {"_processor": None}

    def encode(self, instruction: str) -> torch.Tensor:
        """Return (T,) int64 ids of an instruction, encoded once."""
        if instruction not in self._prompts:
            self._prompts[instruction] = encode_instruction(self._processor, instruction)
        return self._prompts[instruction]

    def pixel_values(
        self, frame: np.ndarray, generator: np.random.Generator | None
    ) -> torch.Tensor:
        """Return a prepared picture as the towers take it; augmented with a generator."""
        frame = np.asarray(frame)
        if self.data.image_augmentation:
            if generator is not None:
                frame = augment(frame, generator)
            else:
                frame = center_crop(frame, MODEL_IMAGE_SIZE)
        return self._towers(frame)

    def label(
        self, instruction: str, token_ids: np.ndarray, pixel_values: torch.Tensor, origin: Origin
    ) -> TrainingSample:
        """Return a sample."""
        return label_sample(
            self.encode(instruction),
            token_ids,
            pixel_values,
            self.stop_token_id,
            self.data.predict_stop_token,
            origin,
        )


@dataclass(frozen=True)
class _Part:
    """The episodes of one set on one side of the split.

    Attributes:
        name: Of the set.
        episodes: In order.
        token_ids: Per episode (T, n) int64.
        ends: (E,) steps up to the end of each episode.
        store: Of their pictures.
    """

    name: str
    episodes: Sequence[Episode]
    token_ids: Sequence[np.ndarray]
    ends: np.ndarray
    store: FrameStore

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def find(self, position: int) -> tuple[int, int]:
        """Return episode and step of a position."""
        episode = int(np.searchsorted(self.ends, position, side="right"))
        return episode, position - int(self.ends[episode]) + len(self.episodes[episode])


@dataclass(frozen=True)
class _Place:
    """Which step is the sample of a number."""

    number: int
    dataset: int
    position: int


class _Steps(Dataset[TrainingSample]):
    """Steps as samples, from any process."""

    def __init__(self, reader: _Reader, parts: Sequence[_Part], seed: int) -> None:
        self.reader = reader
        self.parts = tuple(parts)
        self._seed = seed

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, place: _Place) -> TrainingSample:
        generator = np.random.default_rng([self._seed, _AUGMENTATION, place.number])
        return self._sample(self.parts[place.dataset], place.position, generator)

    def evaluation_sample(self, number: int) -> EvaluationSample:
        """Return a step by its number among all parts, as the deployed policy sees it."""
        dataset = 0
        while number >= len(self.parts[dataset]):
            number -= len(self.parts[dataset])
            dataset += 1
        part = self.parts[dataset]
        episode, step = part.find(number)
        ids = part.token_ids[episode]
        return EvaluationSample(
            self._sample(part, number, None), ids[step], ids[step - 1] if step else None
        )

    def _sample(
        self, part: _Part, position: int, generator: np.random.Generator | None
    ) -> TrainingSample:
        number, step = part.find(position)
        episode = part.episodes[number]
        pixels = self.reader.pixel_values(part.store.frames(episode)[step], generator)
        origin = Origin(part.name, episode.name, step)
        ids = part.token_ids[number][step]
        return self.reader.label(episode.instruction, ids, pixels, origin)


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

    def __iter__(self) -> Iterator[list[_Place]]:
        for first in self._numbers:
            datasets, positions = self._order.take(first, self._numbers.batch_size)
            numbers = range(first, first + len(datasets))
            yield [
                _Place(*place)
                for place in zip(numbers, datasets.tolist(), positions.tolist(), strict=True)
            ]


def _open(one: TrainingSet, episodes: Sequence[Episode], reader: _Reader) -> _Part:
    if not one.steps:
        raise ConfigurationError(f"data.sources, {one.name}: no step is left to train on.")
    options = deployed_options(reader.data)
    fixed = ImageOptions(rotate_180=options.rotate_180, lanczos3=options.lanczos3)
    folder = prepared_folder(reader.data) / "frames"
    for episode in episodes:
        reader.encode(episode.instruction)
    encode = reader.action_tokenizer.encode
    return _Part(
        name=one.name,
        episodes=episodes,
        token_ids=[encode(normalize(episode.actions, one.stats)) for episode in episodes],
        ends=np.cumsum([len(episode) for episode in episodes], dtype=np.int64),
        store=FrameStore(folder, one.identity, fixed),
    )


def _start_worker(_: int) -> None:
    """An interrupt is the training process's to handle: it stops its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _start_method() -> str:
    """Workers that fork share what is in memory; where there is no fork, everything is sent."""
    methods = get_all_start_methods()
    return "fork" if "fork" in methods else methods[0]
