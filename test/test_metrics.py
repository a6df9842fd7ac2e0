"""Figures of a policy: known answers give known numbers, and nothing is ever 0 for want of data."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_records import (
    SPEC,
    STATS,
    TOKENIZER,
    noisy,
    perfect_records,
    record,
    with_predictions,
)

from openvla_ros.action_specs import load_action_spec
from openvla_ros.errors import ActionStatsError, ConfigurationError
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.metrics.comparison import METRICS, VERDICTS, compare_variants
from openvla_ros.evaluation.metrics.summary import VariantMetrics, summarize
from openvla_ros.model.action_stats import ActionStats, parse_action_stats
from openvla_ros.types import ActionSpec

UNKNOWN_SPEC = ActionSpec("my_robot")


def judged(
    records: list[EpisodeRecord], spec: ActionSpec = SPEC, stats: ActionStats = STATS
) -> VariantMetrics:
    return summarize(records, spec, stats, TOKENIZER)


def straight(steps: int = 6) -> EpisodeRecord:
    """10 mm along x and a turn of 0.1 rad about z per step; the gripper closes at step 3."""
    recorded = np.zeros((steps, 7))
    recorded[:, 0], recorded[:, 5] = 0.01, 0.1
    recorded[:3, 6] = 1.0
    made = record("straight", recorded, np.full((steps, 7), 31872))
    return with_predictions(made, recorded.copy())


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**16), steps=st.integers(2, 30), episodes=st.integers(1, 5))
def test_perfect_answers_have_no_error(seed: int, steps: int, episodes: int) -> None:
    found = judged(perfect_records(episodes, steps, seed=seed)).metrics
    assert found.translation_error.mean == 0.0 and found.translation_error.by_axis == [0.0] * 3
    assert found.rotation_error.mean == pytest.approx(0.0, abs=1e-9)
    assert found.direction_cosine.mean in (None, pytest.approx(1.0, abs=1e-12))
    assert found.normalized_l1 == pytest.approx(0.0, abs=3e-7)
    assert found.gripper.accuracy == 1.0 and found.gripper.f1 in (None, 1.0)
    assert found.gripper.mean_delay_s in (None, 0.0)
    assert found.gripper.matched_events in (None, found.gripper.recorded_events)
    assert found.tokens.equal == found.tokens.actions_equal == 1.0
    assert found.tokens.mean_bins == 0.0 and found.tokens.equal_by_dimension == [1.0] * 7
    assert found.invalid_rate == 0.0


@settings(deadline=None, max_examples=6)
@given(order=st.permutations(range(4)))
def test_the_order_of_episodes_changes_nothing(order: list[int]) -> None:
    records = noisy(perfect_records(4), 40)
    expected = judged(records).to_dict()
    assert judged([records[i] for i in order]).to_dict() == expected


def test_the_units_of_the_dataset_change_nothing_in_millimetres_and_degrees() -> None:
    records = noisy(perfect_records(), 40)
    factor = np.array([1000.0] * 3 + [180 / math.pi] * 3 + [1.0])
    scaled = [
        dataclasses.replace(r, recorded=r.recorded * factor, predicted=r.predicted * factor)
        for r in records
    ]
    entry = {"q01": STATS.q01 * factor, "q99": STATS.q99 * factor, "mask": STATS.mask}
    stats = parse_action_stats("mm", {"action": entry}, "f")
    spec = dataclasses.replace(SPEC, translation_unit_m=0.001, rotation_unit_rad=math.radians(1.0))
    expected, found = judged(records).to_dict(), judged(scaled, spec, stats).to_dict()
    assert flat(found) == pytest.approx(flat(expected), rel=1e-5)
    assert flat(expected)["metrics.translation_error.mean"] > 1.0


def flat(content: object, name: str = "") -> dict[str, float]:
    """Numbers of nested dicts and lists by path, without words and None."""
    if isinstance(content, dict):
        content = content.items()
    elif isinstance(content, list):
        content = enumerate(content)
    else:
        return {} if content is None or isinstance(content, str) else {name: content}
    found: dict[str, float] = {}
    for key, value in content:
        found |= flat(value, f"{name}.{key}".lstrip("."))
    return found


def test_errors_are_in_millimetres_and_degrees_on_their_own_axis() -> None:
    made = straight()
    predicted = made.predicted + np.array([0, 0.003, 0.004, 0, 0, math.radians(2.0), 0])
    found = judged([with_predictions(made, predicted)]).metrics
    assert found.translation_error.mean == pytest.approx(5.0)
    assert found.translation_error.by_axis == pytest.approx([0.0, 3.0, 4.0])
    assert found.rotation_error.p90 == pytest.approx(2.0)
    assert found.rotation_error.by_axis == pytest.approx([0.0, 0.0, 2.0])
    assert found.direction_cosine.mean == pytest.approx(10 / math.hypot(10, 5))


def test_mixed_axes_and_flipped_signs_show_in_the_direction() -> None:
    made = straight()
    for axes, cosine in (([1, 0, 2], 0.0), ([0, 1, 2], -1.0)):
        predicted = made.predicted.copy()
        predicted[:, :3] = predicted[:, axes] * (1.0 if cosine == 0.0 else -1.0)
        found = judged([with_predictions(made, predicted)]).metrics
        assert found.direction_cosine.mean == pytest.approx(cosine)


def test_degrees_taken_for_radians_are_a_large_rotation_error() -> None:
    made = straight()
    predicted = made.predicted.copy()
    predicted[:, 3:6] = np.degrees(predicted[:, 3:6])
    found = judged([with_predictions(made, predicted)]).metrics.rotation_error
    # 5.73 rad instead of 0.1: 5.63 rad apart, which is 0.654 rad the other way round.
    assert found.mean == pytest.approx(math.degrees(2 * math.pi - (math.degrees(0.1) - 0.1)))


def test_an_inverted_gripper_is_always_wrong_and_never_changes_the_same_way() -> None:
    made = straight()
    predicted = made.predicted.copy()
    predicted[:, 6] = 1.0 - predicted[:, 6]
    gripper = judged([with_predictions(made, predicted)]).metrics.gripper
    assert (gripper.accuracy, gripper.precision, gripper.recall, gripper.f1) == (0, 0, 0, 0)
    assert (gripper.recorded_events, gripper.matched_events) == (1, 0)
    assert gripper.mean_delay_s is None
    other = dataclasses.replace(SPEC, gripper_open=0.0, gripper_closed=1.0)
    assert judged([made], other).metrics.gripper.accuracy == 1.0  # the spec decides for both


def test_precision_and_recall_are_those_of_closed() -> None:
    made = straight(8)  # closed from step 3: five steps
    predicted = made.predicted.copy()
    predicted[:, 6] = [1, 0, 1, 0, 0, 1, 1, 1]
    gripper = judged([with_predictions(made, predicted)]).metrics.gripper
    assert gripper.accuracy == 4 / 8
    assert (gripper.precision, gripper.recall) == (2 / 3, 2 / 5)
    assert gripper.f1 == pytest.approx(2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5))


def test_a_lag_of_one_step_is_the_delay_of_every_event() -> None:
    made = straight()
    lagging = with_predictions(made, np.roll(made.predicted, 1, axis=0))
    lagging.predicted[0] = made.predicted[0]
    gripper = judged([lagging]).metrics.gripper
    assert gripper.mean_delay_s == pytest.approx(0.2)
    assert gripper.events == [
        {
            "episode": "straight",
            "source": "a bag",
            "step": 3,
            "kind": "close",
            "delay_steps": 1,
            "delay_s": pytest.approx(0.2),
        }
    ]


def test_without_events_there_is_no_delay() -> None:
    found = judged([dataclasses.replace(straight(), recorded=np.tile([0.01] * 6 + [1], (6, 1)))])
    gripper = found.metrics.gripper
    assert (gripper.recorded_events, gripper.matched_events, gripper.mean_delay_s) == (
        0,
        None,
        None,
    )
    assert (gripper.recall, gripper.f1) == (None, 0.0)
    assert gripper.predicted_events == 1


def test_pauses_have_no_direction_and_standing_still_points_nowhere() -> None:
    made = straight()
    recorded = made.recorded.copy()
    recorded[:2, 0], recorded[2, 0] = 0.0019, 0.002  # at 5 Hz 1 cm/s is 2 mm per step
    found = judged([dataclasses.replace(made, recorded=recorded)])
    assert found.metrics.direction_cosine.steps == 4
    assert found.zero.direction_cosine.mean == 0.0
    slow = judged([dataclasses.replace(made, recorded=recorded, rate_hz=10.0)])
    assert slow.metrics.direction_cosine.steps == 6  # the same step in half the time
    none = judged([dataclasses.replace(made, recorded=recorded * [0, 0, 0, 1, 1, 1, 1])])
    assert (none.metrics.direction_cosine.mean, none.metrics.direction_cosine.steps) == (None, 0)


def test_the_clip_rate_is_the_share_of_answers_beyond_the_limit_per_step() -> None:
    made = straight(8)
    predicted = made.predicted.copy()
    predicted[0, 1], predicted[1, 4], predicted[2, 0] = -0.06, 0.26, 0.05
    assert judged([with_predictions(made, predicted)]).metrics.clip_rate == 2 / 8
    unknown = dataclasses.replace(SPEC, translation_unit_m=None)
    assert judged([with_predictions(made, predicted)], unknown).metrics.clip_rate is None


def test_invalid_answers_are_counted_and_judged_all_the_same() -> None:
    made = straight(8)
    is_valid = np.arange(8) > 1
    found = judged([dataclasses.replace(made, is_valid=is_valid)]).metrics
    assert found.invalid_rate == 2 / 8
    predicted = made.predicted.copy()
    predicted[0] = np.nan
    found = judged([with_predictions(made, predicted)]).metrics
    assert (found.invalid_rate, found.translation_error.mean) == (1 / 8, 0.0)


def test_steps_without_recording_are_left_out_and_counted() -> None:
    records = noisy(perfect_records(2), 40)
    holes = [r.recorded.copy() for r in records]
    holes[0][[0, 5]] = np.nan
    found = judged(
        [dataclasses.replace(r, recorded=h) for r, h in zip(records, holes, strict=True)]
    )
    kept = np.setdiff1d(np.arange(24), [0, 5])
    error = np.concatenate([r.predicted - r.recorded for r in records])[kept, :3]
    assert (found.steps, found.steps_without_recording, found.metrics.tokens.steps) == (24, 2, 22)
    expected = 1000 * np.linalg.norm(error, axis=1)
    assert found.metrics.translation_error.mean == pytest.approx(expected.mean())
    assert found.metrics.translation_error.p90 == pytest.approx(np.percentile(expected, 90))


def test_a_recording_without_gripper_is_judged_by_its_motion() -> None:
    """A twist topic has six numbers; the seventh is NaN at every step."""
    records = perfect_records(2)
    for r in records:
        r.recorded[:, 6] = np.nan
    found = judged(records)
    assert found.steps_without_recording == 0
    assert found.metrics.gripper.accuracy is None and found.metrics.gripper.recorded_events is None
    assert found.metrics.tokens.actions_equal == 1.0
    assert found.metrics.tokens.equal_by_dimension == [1.0] * 6 + [None]
    assert found.metrics.normalized_l1 == pytest.approx(0.0, abs=3e-7)
    assert found.mean_action.tokens.equal_by_dimension[6] is None


def test_nothing_recorded_gives_no_figure_but_the_rates_and_times() -> None:
    made = straight()
    found = judged([dataclasses.replace(made, recorded=np.full((6, 7), np.nan))])
    content = found.to_dict()
    json.dumps(content, allow_nan=False)
    assert set(flat(content["metrics"])) == {
        "clip_rate",
        "direction_cosine.steps",
        "invalid_rate",
        "latency_ms.max",
        "latency_ms.p50",
        "latency_ms.p90",
        "latency_ms.p99",
        "tokens.steps",
    }
    assert found.previous_action is None


def test_unknown_units_stay_those_of_the_dataset() -> None:
    made = straight()
    predicted = made.predicted + np.array([0, 0.003, 0.004, 0, 0, 0.02, 0])
    found = judged([with_predictions(made, predicted)], UNKNOWN_SPEC).metrics
    assert found.translation_error.mean == pytest.approx(0.005)
    assert found.rotation_error.mean == pytest.approx(0.02)
    assert (found.clip_rate, found.gripper.accuracy) == (None, None)
    assert found.direction_cosine.steps == 6


def test_ten_numbers_have_tokens_and_no_layout() -> None:
    entry = {"action": {"q01": [-1.0] * 10, "q99": [1.0] * 10}}
    stats = parse_action_stats("droid_r6", entry, "f")
    found = judged(perfect_records(2, stats=stats), SPEC, stats)
    assert found.metrics.tokens.equal == 1.0 and found.metrics.normalized_l1 < 1e-6
    assert found.metrics.translation_error.mean is None
    assert found.metrics.rotation_error.by_axis == [None] * 3
    assert found.zero.tokens.equal is not None


def test_actions_of_another_length_are_refused() -> None:
    ten = parse_action_stats("ten", {"action": {"q01": [0.0] * 10, "q99": [1.0] * 10}}, "f")
    with pytest.raises(ActionStatsError, match=r"'straight'.*recorded has shape \(6, 7\).*'ten'"):
        judged([straight()], SPEC, ten)


def test_without_records_there_is_nothing_to_judge() -> None:
    with pytest.raises(ConfigurationError, match="no replayed episode"):
        judged([])


def test_the_page_about_the_figures_names_every_one_of_them() -> None:
    page = (Path(__file__).parents[1] / "docs" / "replay_metrics.md").read_text(encoding="utf-8")
    row = compare_variants({"a": perfect_records(), "b": perfect_records()}, SPEC, STATS, TOKENIZER)
    content = {"variant": judged(perfect_records()).to_dict(), "row": row[0].to_dict()}
    for path in [*names(content), *METRICS, *VERDICTS]:
        assert f"`{path}`" in page or f".{path}`" in page, path


def names(content: object) -> set[str]:
    """Every key in nested dicts and lists."""
    if isinstance(content, list):
        return set().union(*map(names, content))
    if not isinstance(content, dict):
        return set()
    return set(content).union(*map(names, content.values())) - {"variant", "row"}


def test_latency_percentiles_are_of_all_answers() -> None:
    found = judged(perfect_records(1, 101)).latency_ms
    assert (found.p50, found.p90, found.p99, found.max) == (51.0, 91.0, 100.0, 101.0)


def test_rows_per_episode_add_up_to_the_whole() -> None:
    records = noisy(perfect_records(5), 40)
    found = judged(records)
    rows = found.per_episode
    assert [row["episode"] for row in rows] == sorted(r.episode for r in records)
    means = [row["translation_error"] for row in rows]
    assert np.mean(means) == pytest.approx(found.metrics.translation_error.mean)
    assert np.mean([r["tokens_equal"] for r in rows]) == pytest.approx(found.metrics.tokens.equal)
    assert rows[0]["steps"] == 12 and rows[0]["instruction"] == "do what episode_000 says"


def test_the_dictionary_is_json_with_the_documented_keys() -> None:
    content = judged(noisy(perfect_records(), 40)).to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert set(content["baselines"]) == {"zero", "mean_action", "previous_action"}
    keys = set(content["metrics"])
    assert keys == {
        "translation_error",
        "rotation_error",
        "direction_cosine",
        "normalized_l1",
        "gripper",
        "clip_rate",
        "invalid_rate",
        "tokens",
        "latency_ms",
    }
    assert set(content["baselines"]["zero"]) == keys - {"latency_ms"}
    assert load_action_spec("bridge_orig") == SPEC
