"""What one training step is fed with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch


@dataclass(frozen=True)
class Origin:
    """Where a sample was recorded.

    Attributes:
        dataset: Statistics key of its source.
        episode: Name of the episode in its source.
        step: Step in the episode, as it is trained on.
    """

    dataset: str
    episode: str
    step: int


@dataclass(frozen=True)
class TrainingSample:
    """One image, instruction and action, as the model is shown them.

    Attributes:
        input_ids: (T,) int64: prompt, empty token, action ids, EOS.
        labels: (T,) int64: -100 but for the action ids and, if it is trained, EOS.
        pixel_values: (3 or 6, h, w) float32.
        origin: Where it was recorded.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    pixel_values: torch.Tensor
    origin: Origin


@dataclass(frozen=True)
class TrainingBatch:
    """B samples, padded on the right.

    Attributes:
        input_ids: (B, T) int64, padded with the pad token.
        labels: (B, T) int64, padded with -100.
        attention_mask: (B, T) bool, False where padded.
        pixel_values: (B, 3 or 6, h, w) float32.
        origins: B of them.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor
    pixel_values: torch.Tensor
    origins: Sequence[Origin] = ()

    def pin_memory(self) -> TrainingBatch:
        """Return the batch where a GPU copies it from by itself; a DataLoader calls this."""
        return replace(
            self,
            input_ids=self.input_ids.pin_memory(),
            labels=self.labels.pin_memory(),
            attention_mask=self.attention_mask.pin_memory(),
            pixel_values=self.pixel_values.pin_memory(),
        )

    def to(self, device: torch.device) -> TrainingBatch:
        """Return the batch with its tensors on a device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            pixel_values=self.pixel_values.to(device, non_blocking=True),
        )

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class EvaluationSample:
    """A step that the model is asked about, as it is when deployed.

    Attributes:
        sample: As it is trained on, but never augmented.
        token_ids: (n,) int64 ids of the recorded action.
        previous_token_ids: Those of the step before; None at the first step of an episode.
    """

    sample: TrainingSample
    token_ids: np.ndarray
    previous_token_ids: np.ndarray | None
