"""Opening and closing: each event has its own answer, early, late or none."""

from __future__ import annotations

import numpy as np
import pytest

from openvla_ros.evaluation.metrics.gripper_events import match_events


def delays(recorded: str, answered: str, rate_hz: float = 5.0) -> list[tuple[int, str, int | None]]:
    """Step, kind and delay of the events of one episode; c = closed, o = open, . = not known."""
    states = {"c": 1.0, "o": 0.0, ".": np.nan}
    steps = len(recorded)
    events, _ = match_events(
        np.zeros(steps, np.int64),
        np.arange(steps),
        np.full(steps, rate_hz),
        np.array([states[c] for c in recorded]),
        np.array([states[c] for c in answered]),
    )
    return [(e.step, e.kind, e.delay_steps) for e in events]


def test_early_is_negative_and_late_positive() -> None:
    assert delays("oooocccc", "oocccccc") == [(4, "close", -2)]
    assert delays("ccccoooo", "ccccccoo") == [(4, "open", 2)]
    assert delays("oooocccc", "oooocccc") == [(4, "close", 0)]


def test_beyond_a_second_it_is_another_event() -> None:
    assert delays("oocccccccc", "ooooooo" + "ccc") == [(2, "close", 5)]
    assert delays("oocccccccc", "oooooooo" + "cc") == [(2, "close", None)]
    assert delays("oocc", "oooc", rate_hz=1.0) == [(2, "close", 1)]
    assert delays("oocc", "oooc", rate_hz=0.9) == [(2, "close", None)]


def test_only_a_change_of_the_same_kind_matches() -> None:
    assert delays("oooocccc", "ccccoooo") == [(4, "close", None)]
    assert delays("oooocccc", "cccccccc") == [(4, "close", None)]


def test_the_nearest_change_is_taken_and_early_in_a_draw() -> None:
    assert delays("oooooccccc", "ocoooocccc") == [(5, "close", 1)]
    assert delays("oooooccccc", "oooocoo" + "c" * 3)[0] == (5, "close", -1)
    assert delays("oooooccccc", "ooococ" + "c" * 4)[0] == (5, "close", 0)
    assert delays("ooooocccccc", "ooocooo" + "c" * 4)[0] == (5, "close", -2)


def test_one_answer_belongs_to_one_event() -> None:
    assert delays("oococo" + "o" * 4, "ooooc" + "o" * 5) == [
        (2, "close", None),
        (3, "open", None),
        (4, "close", 0),
        (5, "open", 0),
    ]


def test_steps_that_were_not_recorded_are_passed_over() -> None:
    assert delays("oo..cc", "oocccc") == [(4, "close", -2)]
    assert delays("oo..oo", "oooooo") == []


def test_events_do_not_reach_over_episodes() -> None:
    closed = np.array([1.0, 1.0, 0.0, 0.0])
    episode, step = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert match_events(episode, step, np.full(4, 5.0), closed, closed) == ([], 0)


def test_answered_changes_are_counted_and_seconds_follow_the_rate() -> None:
    recorded, answered = np.array([0.0, 0, 0, 1, 1, 1]), np.array([0.0, 1, 0, 0, 1, 0])
    events, changes = match_events(
        np.zeros(6, np.int64), np.arange(6), np.full(6, 10.0), recorded, answered
    )
    assert changes == 4
    assert [e.delay_s for e in events] == [pytest.approx(0.1)]
