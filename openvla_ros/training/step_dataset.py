"""Steps of recordings as samples, one at a time and from any process.

This file knows where a step's picture, instruction and action are, not in which order steps come.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from openvla_ros.data.episode import Episode
from openvla_ros.data.frame_store import FrameStore
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.action_stats import normalize
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.image_options import MODEL_IMAGE_SIZE, ImageOptions, center_crop
from openvla_ros.model.processing import ImageProcessor, OpenVLAProcessor
from openvla_ros.training.augmentation import augment
from openvla_ros.training.batch import EvaluationSample, Origin, TrainingSample
from openvla_ros.training.config import DataConfig
from openvla_ros.training.datasets import TrainingSet, prepared_folder
from openvla_ros.training.samples import encode_instruction, label_sample, require_token_id

_AUGMENTATION = 2  # tells these draws from those of `mixture_order`


def deployed_options(data: DataConfig) -> ImageOptions:
    """Return the camera path of the policy that training on this data gives."""
    return ImageOptions(
        rotate_180=data.rotate_180,
        lanczos3=data.lanczos3,
        center_crop=data.image_augmentation,
    )


class StepReader:
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

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the `pixel_values` of one sample."""
        return sum(3 * math.prod(tower.crop) * 4 for tower in self._towers.towers)

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
class StepPart:
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
class Place:
    """Which step is the sample of a number."""

    number: int
    dataset: int
    position: int


class StepDataset(Dataset[TrainingSample]):
    """Steps as samples, from any process."""

    def __init__(self, reader: StepReader, parts: Sequence[StepPart], seed: int) -> None:
        self.reader = reader
        self.parts = tuple(parts)
        self._seed = seed

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, place: Place) -> TrainingSample:
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
        self, part: StepPart, position: int, generator: np.random.Generator | None
    ) -> TrainingSample:
        number, step = part.find(position)
        episode = part.episodes[number]
        pixels = self.reader.pixel_values(part.store.frames(episode)[step], generator)
        origin = Origin(part.name, episode.name, step)
        ids = part.token_ids[number][step]
        return self.reader.label(episode.instruction, ids, pixels, origin)


def open_part(one: TrainingSet, episodes: Sequence[Episode], reader: StepReader) -> StepPart:
    """Return the steps of some episodes of a set, with encoded instructions and actions.

    Raises:
        ConfigurationError: The set has nothing to train on.
        InstructionError: An instruction is empty.
    """
    if not one.steps:
        raise ConfigurationError(f"data.sources, {one.name}: no step is left to train on.")
    options = deployed_options(reader.data)
    fixed = ImageOptions(rotate_180=options.rotate_180, lanczos3=options.lanczos3)
    folder = prepared_folder(reader.data) / "frames"
    for episode in episodes:
        reader.encode(episode.instruction)
    encode = reader.action_tokenizer.encode
    return StepPart(
        name=one.name,
        episodes=episodes,
        token_ids=[encode(normalize(episode.actions, one.stats)) for episode in episodes],
        ends=np.cumsum([len(episode) for episode in episodes], dtype=np.int64),
        store=FrameStore(folder, one.identity, fixed),
    )
