"""Sizes of actions against the keys of a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openvla_ros.evaluation.audit.scale import (
    FACTORS,
    ROTATION_FACTORS,
    factor_text,
    judge_scale,
    measure_scale,
    nearest_factor,
)
from openvla_ros.model.action_stats import ActionStats

MASK = np.array([True] * 6 + [False])


def stats(size: float, key: str = "mine") -> ActionStats:
    high = np.array([size] * 3 + [5 * size] * 3 + [1.0])
    return ActionStats(key, -high, high, MASK, "test")


def uniform(size: float = 0.02, steps: int = 2000) -> np.ndarray:
    """Actions whose 1 % and 99 % quantiles are those of `stats(size)`."""
    noise = np.random.default_rng(0).uniform(-1, 1, (steps, 7)) / 0.98
    return noise * stats(size).q99


def raised(actions: np.ndarray, *keys: ActionStats) -> dict[str, str]:
    scale = measure_scale(actions, {entry.unnorm_key: entry for entry in keys}, "mine")
    return {f.item: f.level for f in judge_scale(scale, len(actions)) if f.level != "ok"}


def test_data_of_the_key_has_two_per_cent_outside_and_ratio_one() -> None:
    scale = measure_scale(uniform(), {"mine": stats(0.02)}, "mine")
    assert [axis.axis for axis in scale.axes] == "Δx Δy Δz Δroll Δpitch Δyaw".split()
    for axis in scale.axes:
        assert axis.outside_share == pytest.approx(0.02, abs=0.01)
        assert axis.spread_ratio == pytest.approx(1.0, abs=0.02)
    assert raised(uniform(), stats(0.02)) == {}


@pytest.mark.parametrize(("factor", "level"), [(1.8, "ok"), (2.5, "warn"), (5, "problem")])
def test_too_large_actions(factor: float, level: str) -> None:
    found = raised(factor * uniform(), stats(0.02))
    assert found.get("translation scale", "ok") == found.get("rotation scale", "ok") == level


@pytest.mark.parametrize(("factor", "level"), [(0.3, "ok"), (0.2, "warn"), (0.1, "problem")])
def test_too_small_actions(factor: float, level: str) -> None:
    found = raised(factor * uniform(), stats(0.02))
    assert found.get("translation scale", "ok") == found.get("rotation scale", "ok") == level


def test_axis_that_a_task_does_not_use_does_not_count() -> None:
    actions = uniform()
    actions[:, [2, 3, 4]] = 0.0
    assert raised(actions, stats(0.02)) == {}


def test_arm_that_never_moves_has_no_factor() -> None:
    scale = measure_scale(np.zeros((50, 7)), {"mine": stats(0.02)}, "mine")
    assert scale.translation_factor is scale.rotation_factor is None


def test_key_that_fits_far_better_is_named() -> None:
    actions = uniform(0.01)
    assert "statistics key" not in raised(actions, stats(0.012), stats(0.01, "other"))
    assert raised(actions, stats(0.04), stats(0.01, "other"))["statistics key"] == "warn"


def test_keys_of_other_lengths_are_no_candidates() -> None:
    short = ActionStats("short", -np.ones(3), np.ones(3), np.ones(3, bool), "test")
    scale = measure_scale(uniform(), {"mine": stats(0.02), "short": short}, "mine")
    assert set(scale.misfit_by_key) == {"mine"}


def test_other_layouts_have_ratios_but_no_factors() -> None:
    entry = ActionStats("mine", -np.ones(3), np.ones(3), np.ones(3, bool), "test")
    scale = measure_scale(np.random.default_rng(0).uniform(-1, 1, (99, 3)), {"mine": entry}, "mine")
    assert [axis.axis for axis in scale.axes] == ["0", "1", "2"]
    assert scale.translation_factor is None


def test_too_few_steps_are_not_judged() -> None:
    scale = measure_scale(uniform(steps=5), {"mine": stats(0.02)}, "mine")
    (finding,) = judge_scale(scale, 5)
    assert (finding.level, finding.value[:3]) == ("ok", "n/a")


@given(st.sampled_from([*FACTORS, *(1 / factor for factor in FACTORS)]), st.floats(0.8, 1.25))
def test_factors_are_recognised_within_a_quarter(factor: float, error: float) -> None:
    found, _ = nearest_factor(factor * error, FACTORS)
    assert found == pytest.approx(factor)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (990.0, "×990 (about 1000: mm instead of m)"),
        (0.0011, "×0.0011 (about 1/1000: m instead of mm)"),
        (4.4, "×4.4 (about 5)"),
    ],
)
def test_factors_are_named(value: float, text: str) -> None:
    assert factor_text(value, FACTORS) == text


def test_degrees_are_named_for_rotations_only() -> None:
    assert "degrees instead of radians" in factor_text(57.0, ROTATION_FACTORS)
    assert "degrees" not in factor_text(57.0, FACTORS)
