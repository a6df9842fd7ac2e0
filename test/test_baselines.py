"""Answers without looking: what each baseline says, and on which steps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from synthetic_records import SPEC, STATS, TOKENIZER, noisy, perfect_records

from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.metrics.baselines import mean_action, previous_action, zero_action
from openvla_ros.evaluation.metrics.stacked_records import Recordings, stack_records
from openvla_ros.evaluation.metrics.summary import VariantMetrics, summarize
from openvla_ros.types import ActionSpec


def recordings(records: list[EpisodeRecord]) -> Recordings:
    return stack_records(records, STATS, TOKENIZER).recordings


def judged(records: list[EpisodeRecord]) -> VariantMetrics:
    return summarize(records, SPEC, STATS, TOKENIZER)


def with_recorded(record: EpisodeRecord, recorded: np.ndarray) -> EpisodeRecord:
    return dataclasses.replace(record, recorded=recorded)


def with_gripper(values: list[float]) -> Recordings:
    record = perfect_records(1, len(values))[0]
    record.recorded[:, 6] = values
    return recordings([record])


def test_zero_does_not_move_and_keeps_the_usual_state_of_the_gripper() -> None:
    for values, usual in (([0.0, 0.2, 0.4, 1.0, 1.0], 0.0), ([0.0, 0.9, 0.8, np.nan], 1.0)):
        made = with_gripper(values)
        answer = zero_action(made, SPEC, STATS, TOKENIZER)
        assert (answer.actions == [0.0] * 6 + [usual]).all()
        assert TOKENIZER.decode(answer.token_ids)[:, 6] == pytest.approx(usual, abs=0.005)
    numbers = zero_action(with_gripper([0.3, 0.3, 1.0]), ActionSpec("mine"), STATS, TOKENIZER)
    assert (numbers.actions[:, 6] == 0.3).all()


def test_the_error_of_zero_is_the_size_of_the_recorded_step() -> None:
    records = noisy(perfect_records(3), 30)
    moved = np.concatenate([r.recorded for r in records])[:, :3]
    found = judged(records).zero
    assert found.translation_error.mean == pytest.approx(
        1000 * np.linalg.norm(moved, axis=1).mean()
    )
    assert found.gripper.matched_events == 0


def test_the_mean_is_the_constant_with_the_least_squared_error() -> None:
    made = recordings(perfect_records(3))
    answer = mean_action(made, STATS)
    assert np.ptp(answer.actions, axis=0).max() == 0.0

    def squared(constant: np.ndarray) -> float:
        return float(((made.actions - constant) ** 2).sum())

    best = squared(answer.actions[0])
    for step in np.vstack([np.eye(7), -np.eye(7)]) * 1e-3:
        assert squared(answer.actions[0] + step) > best


def test_the_ids_of_the_mean_are_the_most_frequent_ones() -> None:
    made = recordings(perfect_records(3))
    answer = mean_action(made, STATS)
    values, counts = np.unique(made.token_ids[:, 6], return_counts=True)
    assert answer.token_ids[0, 6] == values[counts.argmax()]
    found = judged(perfect_records(3)).mean_action.tokens
    assert found.equal_by_dimension[6] == pytest.approx(counts.max() / counts.sum())


def test_the_previous_action_has_no_answer_to_first_steps_and_after_gaps() -> None:
    records = perfect_records(2, 6)
    records[1].recorded[2] = np.nan
    answer, follows = previous_action(recordings(records))
    assert np.flatnonzero(follows).tolist() == [1, 2, 3, 4, 5, 7, 10, 11]
    assert (answer.actions[0] == records[0].recorded[0]).all()
    assert (answer.actions[-1] == records[1].recorded[4]).all()
    assert (answer.token_ids[5] == records[1].token_ids[0]).all()


def test_the_step_before_is_of_the_same_episode_and_not_an_earlier_one() -> None:
    some = recordings(perfect_records(2, 6)).at(np.array([0, 7, 8, 10, 11]))  # steps 0 | 1 2 4 5
    _, follows = previous_action(some)
    assert np.flatnonzero(follows).tolist() == [2, 4]


def test_the_policy_is_judged_on_the_same_steps_beside_the_previous_action() -> None:
    records = perfect_records(3, 8)
    for r in records:
        r.predicted[0, 0] += 0.1  # wrong on first steps alone
    found = judged(records)
    assert found.previous_action is not None
    assert found.previous_action.steps == 21
    assert found.previous_action.policy_on_same_steps.translation_error.mean == 0.0
    assert found.metrics.translation_error.mean == pytest.approx(100 / 8)
    assert found.previous_action.figures.gripper.mean_delay_s in (None, pytest.approx(0.2))
    steady = [with_recorded(r, np.tile(r.recorded[:1], (8, 1))) for r in records]
    assert judged(steady).previous_action.figures.tokens.equal == 1.0


def test_episodes_of_one_step_have_no_previous_action() -> None:
    found = judged(perfect_records(5, 1))
    assert found.previous_action is None
    assert found.to_dict()["baselines"]["previous_action"] is None
