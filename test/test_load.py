"""The load run: a short one against real processes, and a judge that finds what is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

from load_run import Load, judge, memory_trend, report, run_load
from process_usage import Usage

pytestmark = pytest.mark.ros

GOOD = Load(
    mode="single",
    duration_s=600.0,
    cpu={"node": 0.5},
    memory={"node": (80.0, 3.0)},
    ages_s=[0.2] * 100,
    periods_s=[0.02] * 1000,
    stream_period_s=0.02,
    frames_sent=18000,
    frames_received=17990,
    frames_replaced=15000,
)


def test_a_good_run_has_no_problem() -> None:
    judge(GOOD)
    assert GOOD.problems == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"periods_s": [0.02, 0.11]}, "between two twists"),
        ({"frames_received": 17000}, "lost"),
        ({"memory": {"node": (80.0, 500.0)}}, "grows"),
        ({"ages_s": []}, "answered"),
    ],
)
def test_what_a_robot_would_not_forgive_is_a_problem(change: dict, word: str) -> None:
    load = dataclasses.replace(GOOD, problems=[], **change)
    judge(load)
    (problem,) = load.problems
    assert word in problem and problem in report([load])


@pytest.mark.parametrize("leak_kib_s", [0.0, 5.0])
def test_the_slope_of_the_memory_sees_a_leak_and_no_images_in_flight(leak_kib_s: float) -> None:
    start = [1000.0 * t for t in range(150)]  # before the first quarter is over
    flight = [900.0 * (t * 7 % 4) for t in range(450)]
    sizes = start + [150e3 + leak_kib_s * t + f for t, f in enumerate(flight)]
    seen = [(float(t), Usage(1, 1, round(size), 0.0)) for t, size in enumerate(sizes)]
    size_mib, slope = memory_trend(seen)
    assert size_mib == pytest.approx(sizes[-1] / 1024, abs=0.01)
    assert slope == pytest.approx(60.0 * leak_kib_s, abs=5.0)


def test_a_short_run_names_no_slope() -> None:
    short = dataclasses.replace(GOOD, duration_s=10.0, memory={"node": (80.0, float("nan"))})
    assert "nan" not in report([short])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["single", "split"])
def test_a_short_run_measures_everything(mode: str, tmp_path: Path) -> None:
    load = run_load(mode, 10.0, tmp_path / mode)
    text = report([load])
    assert "nan" not in text, text
    assert len(load.ages_s) > 10 and len(load.periods_s) > 100
    assert load.frames_received > 0
    assert all(share > 0.0 for share in load.cpu.values())
    assert not [p for p in load.problems if "lives" in p]
