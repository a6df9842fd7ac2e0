"""Sanity probes: what a policy answers when picture or instruction is made wrong on purpose.

Every chosen frame is predicted as it is and under each probe. `diagnosis` judges the answers: a
policy that answers black frames like real ones is blind; one that fits the recordings better with
mirrored frames gets a mirrored picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openvla_ros.data.episode import Episode
from openvla_ros.errors import ConfigurationError
from openvla_ros.types import PRIMARY, Observation, Policy, Prediction

AS_IS = "as_is"
BLACK = "black"
NOISE = "noise"
SWAPPED = "swapped_instruction"
BGR = "bgr"
MIRRORED = "horizontal_flip"
UPSIDE_DOWN = "rotated_180"

#: What is done to the picture; (H, W, 3) uint8 in and out.
PICTURES: Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    BLACK: lambda image, random: np.zeros_like(image),
    NOISE: lambda image, random: random.integers(0, 256, image.shape, dtype=np.uint8),
    BGR: lambda image, random: np.ascontiguousarray(image[:, :, ::-1]),
    MIRRORED: lambda image, random: np.ascontiguousarray(image[:, ::-1]),
    UPSIDE_DOWN: lambda image, random: np.ascontiguousarray(image[::-1, ::-1]),
}
#: In the order of prediction.
PROBES = (AS_IS, *PICTURES, SWAPPED)

UNRELATED_INSTRUCTION = "close the lid of the laptop on the desk"
_SWAPPED_BY_OTHERS = "another instruction of these episodes"
_SWAPPED_BY_UNRELATED = f"the unrelated sentence {UNRELATED_INSTRUCTION!r}"


@dataclass(frozen=True)
class ProbeResult:
    """F frames, each answered as it is and under every probe; n numbers and m ids per action.

    Attributes:
        episodes: F names of episodes.
        sources: F: what each episode was read from.
        steps: (F,) int64: step of the frame within its episode.
        instructions: F, as recorded.
        swapped_instructions: F, what the policy was told in their place.
        swapped_by: Where those come from, in words.
        recorded: (F, n) float64, dataset units; NaN where nothing was recorded.
        token_ids: Probe -> (F, m) int64.
        predicted: Probe -> (F, n) float64, dataset units.
        normalized: Probe -> (F, n) float64 in [-1, 1]: `predicted` before un-normalisation.
        is_valid: Probe -> (F,) bool: every id is an action token.
    """

    episodes: tuple[str, ...]
    sources: tuple[str, ...]
    steps: np.ndarray
    instructions: tuple[str, ...]
    swapped_instructions: tuple[str, ...]
    swapped_by: str
    recorded: np.ndarray
    token_ids: Mapping[str, np.ndarray]
    predicted: Mapping[str, np.ndarray]
    normalized: Mapping[str, np.ndarray]
    is_valid: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON holds; a number that is not there is null."""
        return {
            "episodes": list(self.episodes),
            "sources": list(self.sources),
            "steps": self.steps.tolist(),
            "instructions": list(self.instructions),
            "swapped_instructions": list(self.swapped_instructions),
            "swapped_by": self.swapped_by,
            "recorded": _with_nulls(self.recorded),
            "token_ids": {name: ids.tolist() for name, ids in self.token_ids.items()},
            "predicted": {name: _with_nulls(a) for name, a in self.predicted.items()},
            "normalized": {name: _with_nulls(a) for name, a in self.normalized.items()},
            "is_valid": {name: flags.tolist() for name, flags in self.is_valid.items()},
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> ProbeResult:
        """Return what `to_dict` was made from.

        Raises:
            ConfigurationError: `stored` is something else.
        """
        try:
            return cls(
                episodes=tuple(stored["episodes"]),
                sources=tuple(stored["sources"]),
                steps=np.array(stored["steps"], np.int64),
                instructions=tuple(stored["instructions"]),
                swapped_instructions=tuple(stored["swapped_instructions"]),
                swapped_by=str(stored["swapped_by"]),
                recorded=np.array(stored["recorded"], np.float64),
                token_ids={p: np.array(stored["token_ids"][p], np.int64) for p in PROBES},
                predicted={p: np.array(stored["predicted"][p], np.float64) for p in PROBES},
                normalized={p: np.array(stored["normalized"][p], np.float64) for p in PROBES},
                is_valid={p: np.array(stored["is_valid"][p], bool) for p in PROBES},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"These are no answers to sanity probes ({type(error).__name__}: {error}). "
                "Remove the file, and the probes are run again."
            ) from error


def run_probes(
    policy: Policy,
    episodes: Sequence[Episode],
    *,
    seed: int = 0,
    most_frames: int = 64,
    on_frame: Callable[[int, int], None] | None = None,
) -> ProbeResult:
    """Return the answers to a few frames of every episode, as they are and under each probe.

    The same frames and answers for the same seed. Every observation is a trial (no stamp): it is
    decoded without a draft and not counted. One image is in memory at a time.

    Args:
        policy: What is probed.
        episodes: At least one; each is read up to its last chosen frame.
        seed: Of noise and of the swapped instructions.
        most_frames: Chosen at most, evenly over the episodes and over the steps of each.
        on_frame: Told how many frames are done, and how many there are.

    Raises:
        ImageError, InstructionError: What the policy says of a frame.
        OpenVLAError: What the reader of an episode says.
    """
    assert episodes and most_frames > 0, (len(episodes), most_frames)
    chosen = chosen_steps([len(episode) for episode in episodes], most_frames)
    count = sum(len(steps) for steps in chosen)
    random = np.random.default_rng(seed)
    others = _Swap(episodes, random)
    places: list[tuple[Episode, int, str]] = []
    answers: dict[str, list[Prediction]] = {name: [] for name in PROBES}
    for episode, steps in zip(episodes, chosen, strict=True):
        for step, image in _images(episode, steps):
            swapped = others.of(episode.instruction)
            for name, prediction in _answers(policy, image, episode, swapped, random):
                answers[name].append(prediction)
            places.append((episode, step, swapped))
            if on_frame:
                on_frame(len(places), count)
    return _result(places, answers, others.words)


def chosen_steps(lengths: Sequence[int], most_frames: int) -> list[np.ndarray]:
    """Return the steps to probe of each episode, given their lengths: evenly over both.

    With more episodes than frames, some episodes have none.
    """
    quota = np.diff(np.arange(len(lengths) + 1) * most_frames // len(lengths))
    counts = np.minimum(quota, lengths)
    return [
        ((np.arange(count) + 0.5) * length / count).astype(np.int64) if count else np.zeros(0, int)
        for count, length in zip(counts, lengths, strict=True)
    ]


class _Swap:
    """Chooses an instruction that means something else."""

    def __init__(self, episodes: Sequence[Episode], random: np.random.Generator) -> None:
        by_text = {_plain(episode.instruction): episode.instruction for episode in episodes}
        self._texts = [by_text[key] for key in sorted(by_text)]
        self._random = random
        self.words = _SWAPPED_BY_OTHERS if len(self._texts) > 1 else _SWAPPED_BY_UNRELATED

    def of(self, instruction: str) -> str:
        others = [text for text in self._texts if _plain(text) != _plain(instruction)]
        return str(self._random.choice(others)) if others else UNRELATED_INSTRUCTION


def _plain(instruction: str) -> str:
    return " ".join(instruction.lower().split()).rstrip(".")


def _images(episode: Episode, steps: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the chosen steps with their images, reading no further than the last."""
    if not len(steps):
        return
    wanted = set(steps.tolist())
    for step, image in enumerate(episode.open_images()):
        if step in wanted:
            yield step, image
        if step == steps[-1]:
            return


def _answers(
    policy: Policy, image: np.ndarray, episode: Episode, swapped: str, random: np.random.Generator
) -> Iterator[tuple[str, Prediction]]:
    for name in PROBES:
        picture = PICTURES[name](image, random) if name in PICTURES else image
        instruction = swapped if name == SWAPPED else episode.instruction
        yield name, policy.predict(Observation({PRIMARY: picture}, instruction))


def _result(
    places: Sequence[tuple[Episode, int, str]],
    answers: Mapping[str, Sequence[Prediction]],
    swapped_by: str,
) -> ProbeResult:
    return ProbeResult(
        episodes=tuple(episode.name for episode, _, _ in places),
        sources=tuple(episode.source for episode, _, _ in places),
        steps=np.array([step for _, step, _ in places], np.int64),
        instructions=tuple(episode.instruction for episode, _, _ in places),
        swapped_instructions=tuple(swapped for _, _, swapped in places),
        swapped_by=swapped_by,
        recorded=np.array([episode.actions[step] for episode, step, _ in places], np.float64),
        token_ids={n: np.array([p.token_ids for p in a], np.int64) for n, a in answers.items()},
        predicted={n: np.array([p.action for p in a], np.float64) for n, a in answers.items()},
        normalized={n: np.array([p.normalized for p in a], np.float64) for n, a in answers.items()},
        is_valid={n: np.array([p.is_valid for p in a], bool) for n, a in answers.items()},
    )


def _with_nulls(values: np.ndarray) -> list[list[float | None]]:
    """Return rows of numbers as JSON knows them."""
    return [[x if np.isfinite(x) else None for x in row] for row in values.tolist()]
