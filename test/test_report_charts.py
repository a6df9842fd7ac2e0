from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openvla_ros.evaluation.report.charts import (
    bars_svg,
    histogram_svg,
    latency_edge,
    legend_html,
    series_svg,
    styles_of,
    thinned,
)

pytest.importorskip("matplotlib", reason="a report needs matplotlib: the extra `plots`")

VALUES = st.one_of(st.floats(-1e3, 1e3), st.just(float("nan")))


@settings(max_examples=50, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=300), st.integers(4, 60))
def test_thinning_keeps_ends_extremes_and_gaps(values: list[float], most: int):
    array = np.array(values)
    kept = thinned(array, most)
    assert len(kept) <= max(len(array) if len(array) <= most else 0, 3 * (most // 2) + 2)
    assert kept[0] == 0 and kept[-1] == len(array) - 1 and (np.diff(kept) > 0).all()
    if np.isfinite(array).any():
        assert np.nanmax(array[kept]) == np.nanmax(array)
        assert np.nanmin(array[kept]) == np.nanmin(array)
    assert np.isnan(array[kept]).any() == np.isnan(array).any()


def test_every_variant_has_a_style_of_its_own():
    styles = styles_of([f"v{i}" for i in range(30)])
    assert len(set(styles.values())) == 30
    assert len({style.colour for style in list(styles.values())[:6]}) == 6


def test_the_legend_names_the_variants_and_escapes_them():
    legend = legend_html(styles_of(["<b>"]))
    assert "recorded" in legend and "&lt;b&gt;" in legend


def test_a_series_names_its_unit_and_marks_invalid_answers():
    styles = styles_of(["base"])
    recorded, predicted = np.array([0.0, np.nan, 2.0]), {"base": np.array([0.5, 1.0, 1.5])}
    wrong = {"base": np.array([False, True, False])}
    none = {"base": np.zeros(3, bool)}
    marked = series_svg("s", "roll", "deg", recorded, predicted, styles, wrong)
    plain = series_svg("s", "roll", "deg", recorded, predicted, styles, none)
    assert "roll [°]" in marked and len(marked) > len(plain)


def test_a_long_noisy_series_is_small():
    noise = np.random.default_rng(0).normal(size=20_000)
    svg = series_svg(
        "s", "x", "mm", noise, {"b": -noise}, styles_of(["b"]), {"b": np.ones(20_000, bool)}
    )
    assert len(svg) < 120_000


def test_bars_say_their_numbers_and_cut_long_names():
    svg = bars_svg(
        "b", "Error [mm]", [("x" * 60, 3.0, "3.00 mm", "#0072b2"), ("Zero", -1.0, "−1", "")]
    )
    assert "3.00 mm" in svg and "x" * 17 + "…" in svg and "x" * 19 not in svg
    assert "0" in bars_svg("b", "Error", [("Zero", 0.0, "0", "")])


def test_one_slow_answer_does_not_squeeze_the_histogram():
    values = np.append(np.full(999, 100.0), 60_000.0)
    assert latency_edge(values) == 150.0
    assert latency_edge(np.array([5.0])) == 5.0
    style = styles_of(["base"])["base"]
    assert "ms per answer" in histogram_svg("h", "base", values, style, [100.0, 200.0])
    assert histogram_svg("h", "base", np.zeros(3), style, [])
