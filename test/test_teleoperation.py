"""Which twist of a person is followed, and for how long."""

from __future__ import annotations

import math

import numpy as np
import pytest

from openvla_ros.control.teleoperation import MAX_STAMP_AGE_S, TIMEOUT_S, Teleoperation

UP = np.array([0.0, 0.0, 0.05, 0.0, 0.0, 0.1])


def received(**changes: object) -> tuple[Teleoperation, str]:
    """A fresh twist, with changes, at 10 s."""
    given = {"twist": UP, "frame": "base", "age_s": 0.01, "now_s": 10.0, "base_frame": "base"}
    teleoperation = Teleoperation()
    refusal = teleoperation.receive(**{**given, **changes})
    return teleoperation, refusal


def test_a_fresh_twist_is_followed_until_it_is_too_old() -> None:
    teleoperation, refusal = received()
    assert refusal == ""
    np.testing.assert_array_equal(teleoperation.twist(10.0 + 0.99 * TIMEOUT_S), UP)
    assert teleoperation.twist(10.0 + 1.01 * TIMEOUT_S) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"frame": "tool0"}, "'tool0'"),
        ({"twist": np.full(6, math.nan)}, "not finite"),
        ({"twist": np.full(6, math.inf)}, "not finite"),
        ({"age_s": math.nan}, "no time stamp"),
        ({"age_s": 1.1 * MAX_STAMP_AGE_S}, "0.33 s old"),
        ({"age_s": -1.1 * MAX_STAMP_AGE_S}, "-0.33 s old"),
    ],
)
def test_an_unusable_twist_is_refused_and_not_followed(changes: dict, why: str) -> None:
    teleoperation, refusal = received(**changes)
    assert why in refusal
    assert teleoperation.twist(10.0) is None


def test_a_refused_twist_ends_the_one_before() -> None:
    teleoperation, _ = received()
    assert teleoperation.receive(UP, "tool0", 0.01, 10.02, "base")
    assert teleoperation.twist(10.02) is None


def test_a_twist_is_not_changed_by_who_sent_it() -> None:
    twist = UP.copy()
    teleoperation, _ = received(twist=twist)
    twist[:] = 9.0
    np.testing.assert_array_equal(teleoperation.twist(10.0), UP)
