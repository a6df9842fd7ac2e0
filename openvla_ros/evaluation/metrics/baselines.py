"""What a policy must beat: answers that never look at the image.

Each is given for the steps that are judged, so that its figures stand beside those of the policy.
"""

from __future__ import annotations

import numpy as np

from openvla_ros.evaluation.metrics.stacked_records import Answers, Recordings
from openvla_ros.evaluation.metrics.step_errors import is_closed
from openvla_ros.evaluation.metrics.token_metrics import most_frequent_tokens
from openvla_ros.model.action_stats import ActionStats, normalize
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.types import ActionSpec


def zero_action(
    recordings: Recordings, spec: ActionSpec, stats: ActionStats, tokenizer: ActionTokenizer
) -> Answers:
    """Return "do not move" for every step; the gripper in the state it is recorded in most often.

    Without a known polarity the gripper is the number recorded most often. Of actions without a
    known layout every number is 0.
    """
    action = np.zeros(recordings.actions.shape[1])
    if len(action) == 7:
        action[6] = _usual_gripper(recordings.actions[:, 6], spec)
    normalized = normalize(action, stats)
    return _every_step(recordings, action, normalized, tokenizer.encode(normalized))


def mean_action(recordings: Recordings, stats: ActionStats) -> Answers:
    """Return the mean of these recordings for every step: the best constant, known in hindsight.

    Best by squared error. Its ids are the most frequent of each number, the constant that the most
    tokens equal.
    """
    known = ~np.isnan(recordings.actions)
    action = np.full(known.shape[1], np.nan)
    token_ids = np.zeros(known.shape[1], np.int64)
    for column in np.flatnonzero(known.any(axis=0)):
        rows = known[:, column]
        action[column] = recordings.actions[rows, column].mean()
        token_ids[column] = most_frequent_tokens(recordings.token_ids[rows, column, None])[0]
    return _every_step(recordings, action, normalize(action, stats), token_ids)


def previous_action(recordings: Recordings) -> tuple[Answers, np.ndarray]:
    """Return the recorded action of the step before, and (N,) bool: which steps have one.

    The answers are those of these steps alone. The first step of an episode has none; a step that
    was not recorded has none and is none.
    """
    before = np.arange(len(recordings)) - 1
    follows = np.zeros(len(recordings), bool)
    follows[1:] = (np.diff(recordings.episode) == 0) & (np.diff(recordings.step) == 1)
    is_recorded = ~np.isnan(recordings.actions).all(axis=1)
    follows[1:] &= is_recorded[1:] & is_recorded[:-1]
    rows = before[follows]
    return Answers(
        actions=recordings.actions[rows],
        normalized=recordings.normalized[rows],
        token_ids=recordings.token_ids[rows],
        is_valid=np.ones(len(rows), bool),
    ), follows


def _usual_gripper(values: np.ndarray, spec: ActionSpec) -> float:
    """Return the number of the state that is recorded most often; open in a draw."""
    values = values[~np.isnan(values)]
    if not len(values):
        return np.nan
    if spec.gripper_open is None or spec.gripper_closed is None:
        distinct, counts = np.unique(values, return_counts=True)
        return float(distinct[counts.argmax()])
    is_usually_closed = is_closed(values, spec).mean() > 0.5
    return float(spec.gripper_closed if is_usually_closed else spec.gripper_open)


def _every_step(
    recordings: Recordings, action: np.ndarray, normalized: np.ndarray, token_ids: np.ndarray
) -> Answers:
    """The same answer to all steps."""
    steps = len(recordings)
    return Answers(
        actions=np.tile(action, (steps, 1)),
        normalized=np.tile(normalized, (steps, 1)),
        token_ids=np.tile(token_ids, (steps, 1)),
        is_valid=np.ones(steps, bool),
    )
