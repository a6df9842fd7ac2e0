"""What a live replay says: how old answers were, which frames got none, and whether they are those
of the offline replay. Numbers only: the node and the player are in ros/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from openvla_ros.evaluation.episode_record import EpisodeRecord

PERCENTILES = (50, 90, 99)
LIVE_FILE = "live.json"  # beside the offline results


@dataclass(frozen=True)
class LiveAnswer:
    """One answer of the node to one frame of the bag.

    Attributes:
        stamp_ns: When the image was taken, time of the bag.
        instruction: The text that the node answered to.
        token_ids: (n,) generated ids.
        action: (n,) dataset units.
        age_s: From the image's stamp to the complete answer, time of the bag.
        inference_ms: What the policy took, milliseconds of the steady clock.
        drop_reason: Why it would not have moved the arm; "DRY_RUN" when nothing else is wrong.
    """

    stamp_ns: int
    instruction: str
    token_ids: tuple[int, ...]
    action: tuple[float, ...]
    age_s: float
    inference_ms: float
    drop_reason: str


@dataclass(frozen=True)
class LiveResult:
    """Figures of one live replay.

    Attributes:
        images_in_bag: Messages of the image topic.
        images_received: Of those, what reached the node.
        answered: Frames that got an answer.
        answered_share: Of the images in the bag.
        drop_reasons: Reason to number of answers; DRY_RUN would have moved the arm.
        age_s: Percentile to seconds, image stamp to answer; empty without answers.
        inference_ms: Percentile to milliseconds.
        compared: Answers to frames and instructions that the offline replay answered too.
        equal: Of those, how many have the same ids and the same numbers.
        states: States and reasons of the node that were seen, in words, with their number.
    """

    images_in_bag: int
    images_received: int
    answered: int
    answered_share: float
    drop_reasons: Mapping[str, int]
    age_s: Mapping[str, float]
    inference_ms: Mapping[str, float]
    compared: int
    equal: int
    states: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for live.json."""
        return asdict(self)


def live_result(
    answers: Sequence[LiveAnswer],
    records: Sequence[EpisodeRecord],
    *,
    images_in_bag: int,
    images_received: int,
    states: Mapping[str, int],
) -> LiveResult:
    """Return the figures of a live replay beside the offline one.

    Args:
        answers: What the node answered; of several to one frame the first counts.
        records: The offline answers of the same policy to the same bag; may be empty.
        images_in_bag: Messages of the image topic.
        images_received: What the node counted.
        states: What the node said about itself, and how often.
    """
    first: dict[int, LiveAnswer] = {}
    for answer in answers:
        first.setdefault(answer.stamp_ns, answer)
    compared = equal = 0
    for record in records:
        for stamp_ns, ids, action in zip(
            record.stamps_ns.tolist(), record.token_ids, record.predicted, strict=True
        ):
            live = first.get(stamp_ns)
            if live is None or live.instruction != record.instruction:
                continue
            compared += 1
            equal += _is_same(live, ids, action)
    return LiveResult(
        images_in_bag=images_in_bag,
        images_received=images_received,
        answered=len(first),
        answered_share=len(first) / images_in_bag if images_in_bag else 0.0,
        drop_reasons=dict(Counter(answer.drop_reason for answer in first.values())),
        age_s=_percentiles([answer.age_s for answer in first.values()]),
        inference_ms=_percentiles([answer.inference_ms for answer in first.values()]),
        compared=compared,
        equal=equal,
        states=dict(states),
    )


def _is_same(live: LiveAnswer, ids: np.ndarray, action: np.ndarray) -> bool:
    """Return whether the first step of an answer is the offline one: a record has no other."""
    return (
        tuple(ids.tolist()) == live.token_ids[: len(ids)]
        and tuple(action.tolist()) == live.action[: len(action)]
    )


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    named = {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}
    return {**named, "max": float(max(values))}
