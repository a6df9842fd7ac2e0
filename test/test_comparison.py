"""Verdicts between variants: paired, over episodes, and shy where little is known."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from interval_coverage import coverage, simulated
from synthetic_records import SPEC, STATS, TOKENIZER, noisy, perfect_records

from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.metrics.comparison import (
    METRICS,
    SCALED,
    VERDICTS,
    Comparison,
    bootstrap_interval,
    compare_variants,
)
from openvla_ros.model.action_stats import normalize, unnormalize
from openvla_ros.types import ActionSpec

Records = list[EpisodeRecord]


def compared(a: Records, b: Records, spec: ActionSpec = SPEC) -> dict[str, Comparison]:
    rows = compare_variants({"a": a, "b": b}, spec, STATS, TOKENIZER)
    assert [row.metric for row in rows] == list(METRICS)
    assert all((row.reference, row.variant) == ("a", "b") for row in rows)
    assert all(row.verdict in VERDICTS for row in rows)
    json.dumps([row.to_dict() for row in rows], allow_nan=False)
    return {row.metric: row for row in rows}


PERFECT = perfect_records(12)
CLOSE, FAR = noisy(PERFECT, 10), noisy(PERFECT, 60)


def test_identical_answers_are_equal_in_everything() -> None:
    rows = compared(CLOSE, noisy(PERFECT, 10))
    assert {row.verdict for row in rows.values()} == {"equal"}
    assert {(row.difference, row.low, row.high) for row in rows.values()} == {(0.0, 0.0, 0.0)}
    assert rows["action_agreement"].variant_value == 1.0


def test_the_worse_variant_is_called_so_whichever_way_its_metric_runs() -> None:
    worse, better = compared(CLOSE, FAR), compared(FAR, CLOSE)
    for metric in ("translation_error", "rotation_error", "normalized_l1", "direction_cosine"):
        assert (worse[metric].verdict, better[metric].verdict) == ("worse", "better"), metric
        assert better[metric].difference == pytest.approx(-worse[metric].difference)
    assert worse["translation_error"].difference > 0 > worse["direction_cosine"].difference
    assert worse["tokens_equal"].verdict == "worse"
    assert worse["gripper_accuracy"].verdict == "equal"  # the noise is in the motion


def test_the_difference_is_that_of_the_means_on_the_steps_both_answered() -> None:
    row = compared(CLOSE, FAR[3:])["translation_error"]
    errors = [
        1000
        * np.linalg.norm(np.concatenate([r.predicted - r.recorded for r in v[3:]])[:, :3], axis=1)
        for v in (CLOSE, FAR)
    ]
    assert (row.steps, row.episodes, row.unit) == (9 * 12, 9, "mm")
    assert row.reference_value == pytest.approx(errors[0].mean())
    assert row.variant_value == pytest.approx(errors[1].mean())
    assert row.difference == pytest.approx((errors[1] - errors[0]).mean())
    assert row.low < row.difference < row.high


def test_steps_are_paired_by_their_stamps() -> None:
    late = [cut(r, slice(4, None)) for r in CLOSE]
    rows = compared(late, [cut(r, slice(0, 10)) for r in CLOSE])
    assert rows["normalized_l1"].steps == 12 * 6
    assert rows["normalized_l1"].verdict == "equal"


def cut(record: EpisodeRecord, steps: slice) -> EpisodeRecord:
    arrays = "stamps_ns recorded predicted normalized token_ids is_valid latency_ms passes".split()
    return dataclasses.replace(record, **{name: getattr(record, name)[steps] for name in arrays})


def test_the_order_of_episodes_and_more_variants_change_nothing() -> None:
    rows = compared(CLOSE, FAR)
    assert compared(CLOSE[::-1], FAR[5:] + FAR[:5]) == rows
    three = compare_variants({"a": CLOSE, "x": PERFECT, "b": FAR}, SPEC, STATS, TOKENIZER)
    assert [row.variant for row in three] == ["x"] * len(METRICS) + ["b"] * len(METRICS)
    assert three[len(METRICS) :] == list(rows.values())


def test_few_episodes_give_no_verdict_and_one_draws_its_steps() -> None:
    four, one = compared(CLOSE[:4], FAR[:4]), compared(CLOSE[:1], FAR[:1])
    assert (
        four["translation_error"].verdict == one["translation_error"].verdict == "too few episodes"
    )
    assert four["translation_error"].note == ""
    assert one["translation_error"].note.startswith("one episode")
    assert one["translation_error"].low < one["translation_error"].high
    assert compared(CLOSE[:1], CLOSE[:1])["translation_error"].verdict == "equal"
    assert compared(CLOSE[:5], FAR[:5])["translation_error"].verdict == "worse"


def test_agreement_with_the_reference_counts_ids_and_whole_actions() -> None:
    other = [dataclasses.replace(r, token_ids=r.token_ids.copy()) for r in PERFECT]
    for r in other:
        r.token_ids[:3, 2] -= 1
    rows = compared(PERFECT, other)
    assert rows["token_agreement"].variant_value == pytest.approx(1 - 3 / 12 / 7)
    assert rows["action_agreement"].variant_value == pytest.approx(1 - 3 / 12)
    assert rows["action_agreement"].difference == pytest.approx(-3 / 12)
    assert rows["action_agreement"].verdict == "n/a"


def test_without_recordings_agreement_and_time_are_all_that_is_compared() -> None:
    nothing = [dataclasses.replace(r, recorded=np.full((12, 7), np.nan)) for r in CLOSE]
    rows = compared(nothing, nothing)
    assert rows["translation_error"].difference is None
    assert rows["translation_error"].verdict == "n/a"
    assert rows["translation_error"].note == "no step that both answered has this metric"
    assert rows["token_agreement"].variant_value == 1.0
    assert rows["latency"].unit == "ms"


def test_variants_without_a_common_episode_are_not_compared() -> None:
    assert {row.verdict for row in compared(CLOSE[:6], FAR[6:]).values()} == {"n/a"}


def test_slower_is_worse_and_says_that_this_is_no_quality() -> None:
    slow = [dataclasses.replace(r, latency_ms=r.latency_ms + 5.0) for r in CLOSE]
    row = compared(CLOSE, slow)["latency"]
    assert (row.verdict, row.difference) == ("worse", pytest.approx(5.0))
    assert "nothing about quality" in row.note


def test_unknown_units_are_named() -> None:
    rows = compared(CLOSE, FAR, ActionSpec("mine"))
    assert rows["translation_error"].unit == rows["rotation_error"].unit == "dataset units"
    assert rows["latency"].unit == "ms" and rows["tokens_equal"].unit == ""
    assert rows["gripper_accuracy"].verdict == "n/a"


def test_one_episode_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="replayed twice"):
        compared(CLOSE, [*FAR, FAR[0]])


def test_one_variant_is_compared_with_nothing() -> None:
    assert compare_variants({"a": CLOSE}, SPEC, STATS, TOKENIZER) == []


def test_the_interval_covers_the_true_difference_as_often_as_it_should() -> None:
    """Drawing steps instead of episodes covers it less than half of the time."""
    assert 0.89 <= coverage(30, 150) <= 0.99
    assert coverage(30, 30, by_steps=True) < 0.7


def test_the_interval_equals_a_bootstrap_written_out() -> None:
    differences, episode = simulated(np.random.default_rng(3), 12)
    random, means = np.random.default_rng(4), []
    for _ in range(4000):
        drawn = random.integers(0, 12, 12)
        means.append(np.concatenate([differences[episode == e] for e in drawn]).mean())
    expected = np.percentile(means, [2.5, 97.5])
    assert bootstrap_interval(differences, episode) == pytest.approx(expected, abs=0.2)
    assert bootstrap_interval(differences, episode) == bootstrap_interval(differences, episode)
    assert bootstrap_interval(differences, episode, seed=1) != bootstrap_interval(
        differences, episode
    )


def test_of_variants_with_other_statistics_only_motion_gets_a_verdict() -> None:
    """A variant with statistics of its own was called worse in ids and normalised error, however
    much closer its motion was: its ids were read on the scale of the reference.
    """
    wide = dataclasses.replace(STATS, unnorm_key="mine", q01=3 * STATS.q01, q99=3 * STATS.q99)
    tuned = []
    for r in CLOSE:
        normalized = TOKENIZER.decode(ids := TOKENIZER.encode(normalize(r.recorded, wide)))
        predicted = unnormalize(normalized, wide)
        tuned.append(
            dataclasses.replace(r, token_ids=ids, normalized=normalized, predicted=predicted)
        )
    own_stats = {"a": STATS, "b": wide}
    rows = {
        row.metric: row
        for row in compare_variants(
            {"a": FAR, "b": tuned}, SPEC, STATS, TOKENIZER, own_stats=own_stats
        )
    }
    assert rows["translation_error"].verdict == "better"
    assert {metric for metric, row in rows.items() if row.difference is None} == set(SCALED)
    for metric in SCALED:
        assert rows[metric].verdict == "n/a" and "statistics of their own" in rows[metric].note
