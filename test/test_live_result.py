"""Live answers are compared with offline ones frame by frame, and dropped frames are counted."""

from __future__ import annotations

import dataclasses

import numpy as np

from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.replay.live_result import LiveAnswer, LiveResult, live_result

STEPS = 5
PERIOD_NS = 200_000_000


def offline() -> EpisodeRecord:
    random = np.random.default_rng(1)
    predicted = random.normal(size=(STEPS, 7))
    return EpisodeRecord(
        episode="0",
        source="bag",
        instruction="pick up the cup",
        rate_hz=5.0,
        stamps_ns=np.arange(1, STEPS + 1) * PERIOD_NS,
        recorded=predicted,
        predicted=predicted,
        normalized=predicted,
        token_ids=random.integers(31744, 32000, (STEPS, 7)),
        is_valid=np.ones(STEPS, bool),
        latency_ms=np.ones(STEPS),
        passes=np.full(STEPS, 7),
    )


def answers(record: EpisodeRecord) -> list[LiveAnswer]:
    return [
        LiveAnswer(
            stamp_ns=int(record.stamps_ns[t]),
            instruction=record.instruction,
            token_ids=tuple(record.token_ids[t].tolist()),
            action=tuple(record.predicted[t].tolist()),
            age_s=0.1 * (t + 1),
            inference_ms=20.0,
            drop_reason="DRY_RUN",
        )
        for t in range(len(record))
    ]


def result(live: list[LiveAnswer]) -> LiveResult:
    return live_result(
        live, [offline()], images_in_bag=STEPS, images_received=STEPS, states={"RUNNING OK": 3}
    )


def test_the_same_answers_are_equal_and_their_ages_are_counted() -> None:
    found = result(answers(offline()))
    assert (found.answered, found.answered_share, found.compared, found.equal) == (5, 1.0, 5, 5)
    assert found.age_s["p50"] == 0.30000000000000004 and found.age_s["max"] == 0.5
    assert found.drop_reasons == {"DRY_RUN": 5}


def test_dropped_frames_lower_the_share_and_are_not_compared() -> None:
    found = result(answers(offline())[1::2])
    assert (found.answered, found.answered_share, found.compared, found.equal) == (2, 0.4, 2, 2)


def test_another_token_or_another_number_is_not_equal() -> None:
    live = answers(offline())
    live[0] = dataclasses.replace(live[0], token_ids=(1, *live[0].token_ids[1:]))
    live[1] = dataclasses.replace(live[1], action=(9.0, *live[1].action[1:]))
    assert (result(live).compared, result(live).equal) == (5, 3)


def test_an_answer_to_another_instruction_is_not_compared() -> None:
    live = [dataclasses.replace(a, instruction="put it down") for a in answers(offline())]
    assert (result(live).compared, result(live).answered) == (0, 5)


def test_no_answers_give_no_percentiles() -> None:
    found = result([])
    assert found.age_s == {} and found.answered_share == 0.0
    assert found.to_dict()["states"] == {"RUNNING OK": 3}


def test_of_a_chunk_the_first_step_is_compared() -> None:
    """A policy of several steps per answer never equalled its own records."""
    live = [
        dataclasses.replace(a, token_ids=a.token_ids * 2, action=(*a.action, *[0.0] * 7))
        for a in answers(offline())
    ]
    assert (result(live).compared, result(live).equal) == (5, 5)
