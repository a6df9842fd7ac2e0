"""The last look at a twist: finite, bounded, in its box, able to stop, every reason counted.

What holds for random motion is in motion_properties.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openvla_ros.control.pose import EndEffectorPose, pose_problem
from openvla_ros.control.safety import Intervention, SafetyFilter, SafetySettings
from openvla_ros.control.slew import AccelerationLimits, SlewLimiter, SpeedLimits
from openvla_ros.control.workspace import Workspace
from openvla_ros.errors import MotionError

TICK_S = 0.02
LIMITS = SpeedLimits(linear_m_s=0.25, angular_rad_s=1.0)
#: Accelerations that any twist within the speed limits reaches in one tick.
INSTANT = AccelerationLimits(1000.0, 1000.0)
BOX = Workspace((-0.5, -0.5, 0.0), (0.5, 0.5, 0.5), 0.02)
MIDDLE = EndEffectorPose(np.array([0.0, 0.0, 0.25]), np.array([0.0, 0.0, 0.0, 1.0]), 0.0)
FORWARD = np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.0])
twists = st.lists(st.floats(-50, 50), min_size=6, max_size=6).map(np.array)


def a_filter(**changes: object) -> SafetyFilter:
    return SafetyFilter(SafetySettings(**{"acceleration": INSTANT, **changes}))


def at(x: float, age_s: float = 0.0) -> EndEffectorPose:
    return dataclasses.replace(MIDDLE, position=np.array([x, 0.0, 0.25]), age_s=age_s)


# Speed -----------------------------------------------------------------------------------------


@given(twists)
def test_a_twist_keeps_its_direction_and_stays_within_the_limits(twist: np.ndarray) -> None:
    passed = a_filter().apply(twist, 0.0)
    assert np.linalg.norm(passed[0:3]) <= 0.25 + 1e-12
    assert np.linalg.norm(passed[3:6]) <= 1.0 + 1e-12
    assert np.linalg.norm(passed) <= np.linalg.norm(twist) + 1e-9
    parallel = np.outer(passed, twist) - np.outer(twist, passed)
    assert np.abs(parallel).max() <= 1e-9 * (1.0 + np.abs(twist).max() ** 2)
    assert passed @ twist >= 0.0


def test_a_slow_twist_passes_unchanged_and_uncounted() -> None:
    safety = a_filter()
    twist = np.array([0.1, 0.1, 0.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(safety.apply(twist, 0.0), twist, rtol=1e-12)
    assert not any(safety.report(0.0).counts.values())


def test_translation_and_rotation_are_slowed_by_the_same_factor() -> None:
    safety = a_filter()
    passed = safety.apply(np.array([0.5, 0.0, 0.0, 0.0, 0.0, 0.4]), 0.0)
    np.testing.assert_allclose(passed, [0.25, 0.0, 0.0, 0.0, 0.0, 0.2])
    report = safety.report(0.0)
    assert report.counts[Intervention.SPEED] == 1
    assert report.current == (Intervention.SPEED,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", range(6))
def test_a_twist_that_is_not_finite_becomes_zero_at_once(bad: float, axis: int) -> None:
    safety = a_filter()
    safety.apply(FORWARD, 0.0)
    twist = np.full(6, 0.1)
    twist[axis] = bad
    np.testing.assert_array_equal(safety.apply(twist, TICK_S), np.zeros(6))
    counts = safety.report(TICK_S).counts
    assert (counts[Intervention.NON_FINITE], counts[Intervention.CUT]) == (1, 1)


def test_the_shortest_time_of_a_step_is_that_of_its_slower_half() -> None:
    assert LIMITS.shortest_time_s(np.array([0.03, 0.04, 0, 0, 0, 0.1])) == pytest.approx(0.2)
    assert LIMITS.shortest_time_s(np.array([0.03, 0.04, 0, 0, 0, 0.5])) == pytest.approx(0.5)


# Acceleration ----------------------------------------------------------------------------------


def test_the_default_acceleration_reaches_full_speed_in_three_ticks() -> None:
    """5 m/s² is 0.1 m/s per tick of 20 ms."""
    safety = SafetyFilter(SafetySettings())
    speeds = [safety.apply(FORWARD * 2.5, k * TICK_S)[0] for k in range(4)]
    np.testing.assert_allclose(speeds, [0.1, 0.2, 0.25, 0.25], atol=1e-12)
    # 0.1 and 0.05 m/s were missing for a tick each: 3 mm, exactly what braking will need.
    assert safety.report(0.0).counts[Intervention.ACCELERATION] == 2


def test_what_acceleration_holds_back_is_made_good_while_braking() -> None:
    slew = SlewLimiter(AccelerationLimits(5.0, 10.0), LIMITS, TICK_S)
    wanted = [0.25] * 10 + [0.0] * 10
    twists = [slew.follow(FORWARD * (v / 0.1), k * TICK_S)[0][0] for k, v in enumerate(wanted)]
    np.testing.assert_allclose(sum(twists), sum(wanted), rtol=1e-12)
    assert np.abs(np.diff([0.0, *twists])).max() <= 0.1 + 1e-12
    assert twists[-5:] == [0.0] * 5
    assert max(twists) <= 0.25 + 1e-12 and min(twists) == 0.0, "no overshoot, no way back"


def test_a_reversal_takes_time_and_loses_nothing() -> None:
    slew = SlewLimiter(AccelerationLimits(5.0, 10.0), LIMITS, TICK_S)
    wanted = [0.2] * 10 + [-0.2] * 5 + [0.0] * 20
    twists = [slew.follow(FORWARD * (v / 0.1), k * TICK_S)[0][0] for k, v in enumerate(wanted)]
    np.testing.assert_allclose(sum(twists), sum(wanted), atol=1e-12)
    assert np.abs(np.diff([0.0, *twists])).max() <= 0.1 + 1e-12


def test_what_is_owed_makes_the_arm_slow_down_later_and_not_hurry() -> None:
    """Ticks that came late used to be made good by a twist faster than the stream."""
    slew = SlewLimiter(AccelerationLimits(5.0, 10.0), SpeedLimits(1.0, 1.0), TICK_S)
    now_s, speeds, moved, wanted = 0.0, [], 0.0, 0.0
    for k, interval_s in enumerate([0.02, 0.035, 0.03] + [TICK_S] * 30):
        speed = 0.35 if k < 15 else 0.0
        speeds.append(slew.follow(FORWARD * speed * 10.0, now_s)[0][0])
        now_s += interval_s
        moved, wanted = moved + speeds[-1] * interval_s, wanted + speed * interval_s
    assert max(speeds) <= 0.35 + 1e-12
    assert moved == pytest.approx(wanted) and speeds[-1] == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_the_arm_is_never_further_behind_than_four_braking_ramps(seed: int) -> None:
    """At full speed in a new direction every 60 ms, half of the time back: 4 v²/a is 50 mm."""
    rng = np.random.default_rng(seed)
    slew, way = SlewLimiter(AccelerationLimits(5.0, 10.0), LIMITS, TICK_S), np.ones(6)
    for k in range(300):
        if k % 3 == 0:
            way = -way if rng.random() < 0.5 else rng.normal(size=6)
            halves = np.repeat([np.linalg.norm(way[0:3]) / 0.25, np.linalg.norm(way[3:6])], 3)
        slew.follow(way / halves, k * TICK_S)
        assert np.linalg.norm(slew.owed[0:3]) <= 4.0 * 0.25**2 / 5.0
        assert np.linalg.norm(slew.owed[3:6]) <= 4.0 * 1.0**2 / 10.0


def test_a_late_tick_does_not_buy_a_larger_step() -> None:
    slew = SlewLimiter(AccelerationLimits(5.0, 10.0), LIMITS, TICK_S)
    slew.follow(np.zeros(6), 0.0)
    assert slew.follow(FORWARD * 2.5, 1.0)[0][0] == pytest.approx(0.1)


# Stops -----------------------------------------------------------------------------------------


def test_fade_is_a_straight_ramp_and_counts_once() -> None:
    safety = a_filter(decay_s=0.1)
    safety.apply(FORWARD, 0.0)
    safety.fade(0.02)
    speeds = [safety.apply(FORWARD, 0.02 + k * TICK_S)[0] for k in range(6)]
    np.testing.assert_allclose(speeds, [0.1, 0.08, 0.06, 0.04, 0.02, 0.0], atol=1e-12)
    safety.fade(0.2)
    assert safety.report(0.2).counts[Intervention.RAMP] == 1


def test_a_faded_filter_stays_at_zero_until_it_is_resumed() -> None:
    safety = a_filter()
    safety.apply(FORWARD, 0.0)
    safety.fade(0.02)
    for k in range(2, 20):
        last = safety.apply(FORWARD, k * TICK_S)
    np.testing.assert_array_equal(last, np.zeros(6))
    safety.resume()
    np.testing.assert_allclose(safety.apply(FORWARD, 0.4), FORWARD)


def test_a_ramp_of_no_time_is_a_cut() -> None:
    safety = a_filter(decay_s=0.0)
    safety.apply(FORWARD, 0.0)
    safety.fade(TICK_S)
    np.testing.assert_array_equal(safety.apply(FORWARD, TICK_S), np.zeros(6))


def test_the_report_says_how_long_the_arm_has_been_still() -> None:
    """Policies freeze before the grasp; somebody has to notice."""
    safety = a_filter()
    safety.apply(FORWARD, 0.0)
    assert safety.report(0.0).still_s == 0.0
    safety.cut()
    safety.apply(np.zeros(6), 1.0)
    safety.apply(np.zeros(6), 4.0)
    assert safety.report(4.5).still_s == pytest.approx(3.5)
    safety.apply(FORWARD, 5.0)
    assert safety.report(5.0).still_s == 0.0


def test_reset_counts_from_zero() -> None:
    safety = a_filter()
    safety.apply(FORWARD * 100.0, 0.0)
    safety.reset()
    report = safety.report(0.0)
    assert set(report.counts) == set(Intervention) and not any(report.counts.values())
    assert not safety.is_moving


# Workspace -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "expected"), [(0.0, 0.1), (0.47, 0.1), (0.481, 0.0), (0.6, 0.0), (-0.6, 0.1)]
)
def test_what_points_out_of_the_box_is_removed_from_the_margin_on(
    x: float, expected: float
) -> None:
    safety = a_filter(workspace=BOX)
    twist = np.array([0.1, 0.1, 0.0, 0.0, 0.0, 0.5])
    passed = safety.apply(twist, 0.0, at(x))
    np.testing.assert_allclose(passed, [expected, 0.1, 0.0, 0.0, 0.0, 0.5])
    assert safety.report(0.0).counts[Intervention.WORKSPACE] == (expected == 0.0)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_an_arm_outside_the_box_may_come_back_and_go_no_further(side: float) -> None:
    safety, out = a_filter(workspace=BOX), FORWARD * side
    np.testing.assert_allclose(safety.apply(-out, 0.0, at(0.7 * side)), -out)
    np.testing.assert_array_equal(safety.apply(out, TICK_S, at(0.7 * side)), np.zeros(6))


def test_an_old_pose_is_taken_where_the_arm_has_moved_since() -> None:
    """At 0.1 m/s an arm seen 0.2 s ago is 20 mm further, inside the margin."""
    safety = a_filter(workspace=BOX)
    safety.apply(FORWARD, 0.0, at(0.4))
    assert safety.apply(FORWARD, TICK_S, at(0.465, age_s=0.0))[0] == pytest.approx(0.1)
    assert safety.apply(FORWARD, 2 * TICK_S, at(0.465, age_s=0.2))[0] == 0.0


@pytest.mark.parametrize("pose", [None, at(0.0, age_s=0.31), at(float("nan"))])
def test_without_a_fresh_pose_a_box_stops_the_arm(pose: EndEffectorPose | None) -> None:
    safety = a_filter(workspace=BOX)
    safety.apply(FORWARD, 0.0, MIDDLE)
    speeds = [safety.apply(FORWARD, k * TICK_S, pose)[0] for k in range(1, 8)]
    assert speeds[-1] == 0.0 and speeds == sorted(speeds, reverse=True)
    assert Intervention.NO_POSE in safety.report(0.0).counts
    assert safety.report(0.0).counts[Intervention.NO_POSE] >= 5


def test_a_box_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(MotionError, match="empty"):
        Workspace((0.0, 0.0, 0.0), (0.5, 0.5, 0.04), 0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"age_s": 0.31}, "0.31 s old"),
        ({"age_s": -0.31}, "old"),
        ({"quaternion": np.zeros(4)}, "quaternion"),
        ({"quaternion": np.full(4, np.nan)}, "not usable"),
        ({"position": np.zeros(2)}, "not usable"),
    ],
)
def test_a_pose_that_must_not_be_used_says_why(changes: dict[str, object], words: str) -> None:
    assert words in pose_problem(dataclasses.replace(MIDDLE, **changes))
    assert pose_problem(MIDDLE) == ""
    assert "not known" in pose_problem(None)


# What random motion hardly ever meets -------------------------------------------------------------


def test_at_the_face_of_the_box_the_twist_ends_at_once() -> None:
    """The acceleration limits hold in the margin; beyond it the box comes first."""
    safety = SafetyFilter(SafetySettings(workspace=BOX))
    for k in range(4):
        safety.apply(FORWARD * 2.5, k * TICK_S, MIDDLE)
    assert safety.apply(FORWARD * 2.5, 4 * TICK_S, at(0.481))[0] == pytest.approx(0.15)
    assert safety.apply(FORWARD * 2.5, 5 * TICK_S, at(0.5))[0] == 0.0


def test_what_is_owed_does_not_lead_out_of_the_box() -> None:
    """The arm turns round in the middle; a moment later it is seen at the edge."""
    safety = SafetyFilter(SafetySettings(workspace=BOX))
    for k in range(4):
        safety.apply(-FORWARD * 2.5, k * TICK_S, MIDDLE)
    for k in range(4, 6):
        safety.apply(FORWARD * 2.5, k * TICK_S, MIDDLE)
    speeds = [safety.apply(np.zeros(6), k * TICK_S, at(0.49))[0] for k in range(6, 20)]
    assert max(speeds) <= 0.0 and speeds[-1] == 0.0


def test_a_ramp_never_becomes_faster_again() -> None:
    safety = a_filter(decay_s=0.1)
    safety.apply(FORWARD, 0.0)
    safety.fade(0.0)
    slow = safety.apply(FORWARD * 0.1, TICK_S)
    np.testing.assert_allclose(safety.apply(FORWARD, 2 * TICK_S), slow)


def test_an_arm_that_is_let_go_within_a_ramp_accelerates_from_where_it_is() -> None:
    safety = SafetyFilter(SafetySettings(decay_s=0.1))
    for k in range(4):
        safety.apply(FORWARD * 2.5, k * TICK_S)
    safety.fade(3 * TICK_S)
    slowed = [safety.apply(FORWARD * 2.5, k * TICK_S)[0] for k in range(4, 8)][-1]
    assert slowed == pytest.approx(0.05)
    safety.resume()
    assert safety.apply(FORWARD * 2.5, 8 * TICK_S)[0] <= slowed + 0.1 + 1e-12


def test_an_arm_that_still_brakes_needs_its_pose_too() -> None:
    safety = SafetyFilter(SafetySettings(workspace=BOX))
    for k in range(4):
        safety.apply(FORWARD * 2.5, k * TICK_S, MIDDLE)
    safety.apply(np.zeros(6), 4 * TICK_S, None)
    counts = safety.report(4 * TICK_S).counts
    assert (counts[Intervention.NO_POSE], counts[Intervention.RAMP]) == (1, 1)


def test_an_arm_that_turns_round_is_moving_while_its_twist_is_zero() -> None:
    """A late tick carried it past the end of its way: it brakes, rests for a tick, comes back."""
    safety = SafetyFilter(SafetySettings())
    safety.apply(FORWARD * 2.0, 0.0)
    for now_s, speed, is_moving in [
        (0.02, 0.1, True),
        (0.06, 0.0, True),
        (0.08, -0.1, True),
        (0.10, 0.0, False),
    ]:
        assert safety.apply(np.zeros(6), now_s)[0] == pytest.approx(speed, abs=1e-12)
        assert safety.is_moving == is_moving, now_s


def test_a_shorter_tick_allows_a_smaller_step() -> None:
    safety = SafetyFilter(SafetySettings())
    safety.settings = SafetySettings(tick_s=0.01)
    assert safety.apply(FORWARD * 2.0, 0.0)[0] == pytest.approx(0.05)


def test_the_report_in_words_names_what_happened() -> None:
    safety = a_filter()
    assert safety.report(0.0).counted_words == safety.report(0.0).current_words == ""
    for k in range(2):
        safety.apply(FORWARD * 100.0, k * TICK_S)
    report = safety.report(TICK_S)
    assert (report.counted_words, report.current_words) == ("speed 2", "speed")
