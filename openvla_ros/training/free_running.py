"""How well a model under training acts by itself, beside answers that need no model.

Teacher forcing shows each token after the recorded ones before it, so it looks converged while the
robot still fails; free running feeds back the model's own tokens, as the robot does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.modeling import IGNORE_INDEX
from openvla_ros.training.batch import EvaluationSample
from openvla_ros.training.samples import collate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openvla_ros.training.objective import Objective


@dataclass(frozen=True)
class TokenScore:
    """How near some answers are to the recorded actions.

    Attributes:
        samples: Steps that were compared.
        accuracy: Share of ids that are the recorded ones.
        l1: Mean distance in normalised units, in which an action reaches from -1 to 1.
        accuracy_per_dimension: n of them.
        l1_per_dimension: n of them.
    """

    samples: int
    accuracy: float
    l1: float
    accuracy_per_dimension: tuple[float, ...]
    l1_per_dimension: tuple[float, ...]


@dataclass(frozen=True)
class SliceMetrics:
    """What is known about a model on some steps.

    Attributes:
        loss: Mean cross-entropy over the labels, teacher-forced.
        teacher_forced: Each id chosen after the recorded ones before it.
        free_running: Each id chosen after the model's own: what a robot gets.
        constant: The baseline that always gives the most frequent ids of this very slice.
        previous: The baseline that repeats the recorded action of the step before; None when no
            step has one.
        swapped_images: Free running with each image taken from another episode (or another step,
            where there is one episode): as good as `free_running` when images do not matter.
    """

    loss: float
    teacher_forced: TokenScore
    free_running: TokenScore
    constant: TokenScore
    previous: TokenScore | None
    swapped_images: TokenScore

    @property
    def swapped_images_accuracy(self) -> float:
        """Free-running token accuracy with images of other episodes."""
        return self.swapped_images.accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dictionaries, lists and numbers."""
        return asdict(self)


def evaluate_slice(
    objective: Objective,
    samples: Sequence[EvaluationSample],
    tokenizer: ActionTokenizer,
    pad_token_id: int,
    batch_size: int = 16,
) -> SliceMetrics:
    """Return how well the model answers these steps.

    With a model in shards every process must be given the same samples.

    Args:
        objective: Bare, or sharded by FSDP2; of DDP, what it wraps.
        samples: At least one, all with the same number n of ids.
        tokenizer: Of the actions.
        pad_token_id: Id after the end of shorter samples.
        batch_size: Samples that are computed together.
    """
    recorded = np.stack([sample.token_ids for sample in samples])  # (N, n)
    pairs = [(s.previous_token_ids, s.token_ids) for s in samples]
    repeated = [(before, ids) for before, ids in pairs if before is not None]
    with _evaluation_mode(objective):
        loss, forced = _teacher_forced(objective, samples, pad_token_id, batch_size)
        free = generate_tokens(objective, samples, batch_size)
        images = [samples[index].sample.pixel_values for index in _other_images(samples)]
        swapped = generate_tokens(objective, samples, batch_size, images)
    score = _Scorer(tokenizer)
    return SliceMetrics(
        loss=loss,
        teacher_forced=score(forced, recorded),
        free_running=score(free, recorded),
        constant=score(np.broadcast_to(_most_frequent(recorded), recorded.shape), recorded),
        previous=score(*map(np.stack, zip(*repeated, strict=True))) if repeated else None,
        swapped_images=score(swapped, recorded),
    )


def generate_tokens(
    objective: Objective,
    samples: Sequence[EvaluationSample],
    batch_size: int,
    images: Sequence[torch.Tensor] | None = None,
) -> np.ndarray:
    """Return (N, n) int64 ids by greedy decoding, prompts of equal length at a time.

    Args:
        objective: Of the model that answers.
        samples: N of them.
        batch_size: Samples that are computed together.
        images: N pixel values (3 or 6, h, w) to show instead of the samples' own.
    """
    device = objective.bin_centers.device
    shown = images or [sample.sample.pixel_values for sample in samples]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        by_length[len(_prompt_ids(sample))].append(index)
    answers = np.empty((len(samples), len(samples[0].token_ids)), dtype=np.int64)
    for indices in by_length.values():
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            ids = torch.stack([_prompt_ids(samples[index]) for index in chosen]).to(device)
            pixels = torch.stack([shown[index] for index in chosen]).to(device)
            answers[chosen] = objective.generate(ids, pixels, answers.shape[1]).cpu().numpy()
    return answers


class _Scorer:
    """Compares answered with recorded ids, both (N, n)."""

    def __init__(self, tokenizer: ActionTokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, answered: np.ndarray, recorded: np.ndarray) -> TokenScore:
        hits = answered == recorded
        distance = np.abs(self._tokenizer.decode(answered) - self._tokenizer.decode(recorded))
        return TokenScore(
            samples=len(recorded),
            accuracy=float(hits.mean()),
            l1=float(distance.mean()),
            accuracy_per_dimension=tuple(hits.mean(axis=0).tolist()),
            l1_per_dimension=tuple(distance.mean(axis=0).tolist()),
        )


def _teacher_forced(
    objective: Objective, samples: Sequence[EvaluationSample], pad_token_id: int, batch_size: int
) -> tuple[float, np.ndarray]:
    """Return the mean loss over all labels, and (N, n) ids chosen after the recorded ones."""
    device, losses = objective.bin_centers.device, []
    answers = np.empty((len(samples), len(samples[0].token_ids)), dtype=np.int64)
    for start in range(0, len(samples), batch_size):
        chosen = samples[start : start + batch_size]
        batch = collate([sample.sample for sample in chosen], pad_token_id)
        ids, loss = objective.predict(batch.to(device))  # each (L,), row by row
        losses.append(loss.double().cpu())
        labels = ids.view(len(chosen), -1).cpu().numpy()  # (B, n), or n + 1 with the stop token
        answers[start : start + len(chosen)] = labels[:, : answers.shape[1]]
    return float(torch.cat(losses).mean()), answers


def _prompt_ids(sample: EvaluationSample) -> torch.Tensor:
    """Return (T,) int64: what stands before the first label."""
    first = int((sample.sample.labels != IGNORE_INDEX).nonzero()[0])
    return sample.sample.input_ids[:first]


def _most_frequent(token_ids: np.ndarray) -> np.ndarray:
    """Return (n,) the id that occurs most in each of n columns; the smallest of equal ones."""
    return np.array([np.bincount(column).argmax() for column in token_ids.T])


def _other_images(samples: Sequence[EvaluationSample]) -> list[int]:
    """Return for each sample the index of one from another episode, about half the slice away.

    Where all samples are of one episode it is another step of it.
    """
    episodes = [(s.sample.origin.dataset, s.sample.origin.episode) for s in samples]
    count, half = len(samples), max(1, len(samples) // 2)
    return [
        next(
            (
                (index + half + offset) % count
                for offset in range(count)
                if episodes[(index + half + offset) % count] != episode
            ),
            (index + half) % count,
        )
        for index, episode in enumerate(episodes)
    ]


@contextmanager
def _evaluation_mode(objective: Objective) -> Iterator[None]:
    was_training = objective.training
    objective.eval()
    try:
        # Every length of the cache would be compiled, up to the limit at which training is not.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        objective.train(was_training)
