"""One episode through one policy: every frame once, in order, without a robot or a clock.

The next frame is read and prepared while the policy answers the current one. That changes when
things happen, never what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext

import numpy as np

from openvla_ros.data.episode import Episode
from openvla_ros.errors import ConfigurationError, ImageError, InstructionError
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.messages import check_instruction
from openvla_ros.model.action_stats import ActionStats, normalize
from openvla_ros.types import PRIMARY, Observation, Policy, Prediction

WORST_FRAMES = 3
WORST_FRAME_WIDTH = 320  # px: enough to see what went wrong, some 15 kB


def answer_episode(
    policy: Policy,
    episode: Episode,
    stats: ActionStats,
    on_step: Callable[[], None] = lambda: None,
) -> EpisodeRecord:
    """Return what a policy answers to every step of an episode.

    The record depends on policy and episode alone, but for `latency_ms`: the first step has no
    draft, whatever was evaluated before.

    Args:
        policy: Loaded; used by this call alone.
        episode: Its images are read once.
        stats: The policy's statistics: how far off a step is, is measured on their scale.
        on_step: Called after each step.

    Raises:
        InstructionError: The episode has no instruction, or one that no prompt can hold.
        ImageError: A frame that is no RGB image of 8 bits.
        ConfigurationError: Frames cannot be read, or are more or fewer than steps; or the policy's
            actions have another length than the recorded ones.
    """
    instruction = _instruction_of(episode)
    policy.begin_episode()
    answers: list[Prediction] = []
    worst = WorstFrames(WORST_FRAMES)
    with closing(_prepared_frames(policy, episode, instruction)) as observations:
        for step, observation in enumerate(observations):
            prediction = policy.predict(observation)
            recorded = episode.actions[step]
            _require_same_length(prediction, recorded, episode)
            distance = normalized_distance(prediction.normalized, recorded, stats)
            worst.offer(step, distance, observation.images[PRIMARY])
            answers.append(prediction)
            on_step()
    return _record_of(episode, answers, worst)


def normalized_distance(normalized: np.ndarray, recorded: np.ndarray, stats: ActionStats) -> float:
    """Return the mean absolute difference of two actions as training sees them; NaN = unknown.

    Args:
        normalized: (n,) what the policy answered, before un-normalisation.
        recorded: (n,) dataset units; numbers that are NaN do not count.
        stats: Of the policy.
    """
    difference = np.abs(normalized - normalize(recorded, stats))
    known = np.isfinite(difference)
    return float(difference[known].mean()) if known.any() else float("nan")


class WorstFrames:
    """The frames of the steps that are furthest off, as small JPEG; nothing else is kept."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: list[tuple[float, int, np.ndarray]] = []  # (-distance, step, JPEG)

    def offer(self, step: int, distance: float, image: np.ndarray) -> None:
        """Keep a step's frame if it is among the worst so far; of equal ones the first stays.

        Args:
            step: Index.
            distance: How far off it is; NaN is never kept.
            image: (H, W, 3) uint8 RGB.
        """
        if not np.isfinite(distance):
            return
        key = (-distance, step)
        if len(self._kept) == self._count and key > self._kept[-1][:2]:
            return
        self._kept.append((*key, small_jpeg(image)))
        self._kept.sort(key=lambda kept: kept[:2])
        del self._kept[self._count :]

    @property
    def steps(self) -> np.ndarray:
        """(k,) int64, worst first."""
        return np.array([step for _, step, _ in self._kept], np.int64)

    @property
    def frames(self) -> tuple[np.ndarray, ...]:
        """(k,) JPEG as uint8 arrays, in the order of `steps`."""
        return tuple(jpeg for _, _, jpeg in self._kept)


def small_jpeg(image: np.ndarray) -> np.ndarray:
    """Return an (H, W, 3) uint8 RGB image, at most 320 px wide, as JPEG in a uint8 array."""
    from PIL import Image

    from openvla_ros.model.image_options import encode_jpeg

    height, width, _ = image.shape
    if width > WORST_FRAME_WIDTH:
        size = (WORST_FRAME_WIDTH, max(1, round(height * WORST_FRAME_WIDTH / width)))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    return np.frombuffer(encode_jpeg(image), np.uint8)


def _instruction_of(episode: Episode) -> str:
    """Return the task, checked as the node checks what an operator sends."""
    try:
        instruction = check_instruction(episode.instruction)
    except InstructionError as error:
        raise InstructionError(f"{_place(episode)}: {error}") from error
    if not instruction:
        raise InstructionError(
            f"{_place(episode)} has no instruction, and a policy needs one. Name the topic that "
            "holds it, or the task itself, in the --topics file."
        )
    return instruction


def _prepared_frames(
    policy: Policy, episode: Episode, instruction: str
) -> Generator[Observation, None, None]:
    """Yield one observation per step; the next one is made meanwhile, in a thread of its own."""
    images = episode.open_images()
    stamps: Sequence[int] = episode.stamps_ns.tolist()

    def observe(step: int) -> Observation:
        image = _next_image(images, episode, step)
        # A stamp of 0 would be a trial, which is decoded otherwise.
        observation = Observation({PRIMARY: image}, instruction, stamp_ns=stamps[step] or 1)
        return policy.prepare(observation)

    with _closing(images), ThreadPoolExecutor(1, "next frame") as ahead:
        coming = ahead.submit(observe, 0)
        for step in range(1, len(episode)):
            current = coming.result()
            coming = ahead.submit(observe, step)
            yield current
        yield coming.result()
        ahead.submit(_require_end, images, episode).result()


def _closing(images: Iterator[np.ndarray]) -> AbstractContextManager[object]:
    """Return what closes the images' file in the end, where they are read by a generator."""
    return closing(images) if isinstance(images, Generator) else nullcontext()


def _next_image(images: Iterator[np.ndarray], episode: Episode, step: int) -> np.ndarray:
    try:
        image = next(images, None)
    except OSError as error:
        raise ConfigurationError(
            f"{_place(episode)}: the image of step {step} cannot be read ({error}). Copy the "
            "recording again, or leave it out with --skip-broken."
        ) from error
    if image is None:
        raise ConfigurationError(
            f"{_place(episode)} has {step} images for {len(episode)} steps. The recording is cut "
            "short; leave it out with --skip-broken, or record it again."
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(
            f"{_place(episode)}: the image of step {step} is {image.shape} {image.dtype}; it must "
            "be (H, W, 3) uint8."
        )
    return image


def _require_end(images: Iterator[np.ndarray], episode: Episode) -> None:
    if next(images, None) is not None:
        raise ConfigurationError(
            f"{_place(episode)} has more images than its {len(episode)} steps; images and actions "
            "cannot be told apart any more."
        )


def _require_same_length(prediction: Prediction, recorded: np.ndarray, episode: Episode) -> None:
    if prediction.action.shape != recorded.shape:
        raise ConfigurationError(
            f"{_place(episode)} has actions of {len(recorded)} numbers and the policy answers "
            f"{len(prediction.action)} (statistics key {prediction.unnorm_key!r}). Choose the key "
            "that was recorded with this robot: --unnorm-key."
        )


def _record_of(
    episode: Episode, answers: Sequence[Prediction], worst: WorstFrames
) -> EpisodeRecord:
    length = episode.actions.shape[1]
    return EpisodeRecord(
        episode=episode.name,
        source=episode.source,
        instruction=episode.instruction,
        rate_hz=float(episode.rate_hz),
        stamps_ns=np.asarray(episode.stamps_ns, np.int64),
        recorded=np.asarray(episode.actions, np.float64),
        predicted=np.stack([answer.action for answer in answers]),
        normalized=np.stack([answer.normalized for answer in answers]),
        # Of a chunk the first action counts: the others were not what followed this image.
        token_ids=np.array([answer.token_ids[:length] for answer in answers], np.int64),
        is_valid=np.array([answer.is_valid for answer in answers], bool),
        latency_ms=np.array([answer.timings["total_ms"] for answer in answers], np.float64),
        passes=np.array([answer.passes for answer in answers], np.int64),
        worst_steps=worst.steps,
        worst_frames=worst.frames,
    )


def _place(episode: Episode) -> str:
    return f"{episode.source}, {episode.name}"
