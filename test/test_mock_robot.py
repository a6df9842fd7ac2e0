"""The arm of the mock robot moves as MoveIt Servo would, and stops as it would."""

from __future__ import annotations

import numpy as np
import pytest

from openvla_ros.sim.kinematic_arm import GRIPPER_TRAVEL_S, KinematicArm
from openvla_ros.sim.twist_gate import COMMAND_TIMEOUT_S

FORWARD = np.array([0.1, 0.0, 0.0])  # m/s
STILL = np.zeros(3)


def command(arm: KinematicArm, now_s: float, linear=FORWARD, **changes) -> str:
    given = {"frame_id": "base_link", "stamp_s": now_s} | changes
    return arm.command_twist(linear, STILL, now_s=now_s, **given)


def run(arm: KinematicArm, start_s: float, stop_s: float, rate_hz: float = 50.0) -> None:
    for count in range(round((stop_s - start_s) * rate_hz) + 1):
        arm.step(start_s + count / rate_hz)


def test_a_steady_twist_moves_the_arm_by_its_integral() -> None:
    arm = KinematicArm()
    arm.step(0.0)
    for count in range(100):  # 2 s at 50 Hz
        assert command(arm, count / 50) == ""
        arm.step((count + 1) / 50)
    np.testing.assert_allclose(arm.pose.position, [0.2, 0.0, 0.0], atol=1e-12)
    assert arm.path_length_m == pytest.approx(0.2)
    assert arm.accepted == 100


def test_silence_stops_the_arm_after_the_time_out() -> None:
    arm = KinematicArm()
    arm.step(0.0)
    command(arm, 0.0)
    run(arm, 0.02, 3.0)
    travelled = arm.pose.position[0]
    assert travelled == pytest.approx(0.1 * COMMAND_TIMEOUT_S), f"travelled {travelled} m"


def test_the_time_out_counts_from_the_stamp_not_from_the_arrival() -> None:
    arm = KinematicArm()
    arm.step(0.0)
    command(arm, 0.08, stamp_s=0.0)
    run(arm, 0.08, 1.0)
    assert arm.pose.position[0] == pytest.approx(0.1 * 0.02)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stamp_s": 0.8}, "stale"),
        ({"stamp_s": 1.5}, "future"),
        ({"frame_id": "camera_link"}, "camera_link"),
        ({"frame_id": ""}, "frame"),
        ({"linear": np.array([np.nan, 0, 0])}, "finite"),
        ({"linear": np.array([0, np.inf, 0])}, "finite"),
    ],
)
def test_a_twist_that_servo_would_refuse_is_refused(changes, reason) -> None:
    arm = KinematicArm(base_frame="base_link")
    arm.step(1.0)
    assert reason in command(arm, 1.0, **changes)
    run(arm, 1.0, 2.0)
    np.testing.assert_array_equal(arm.pose.position, np.zeros(3))
    assert sum(arm.refused.values()) == 1
    assert arm.accepted == 0


def test_a_refused_twist_does_not_prolong_the_one_before() -> None:
    arm = KinematicArm()
    arm.step(0.0)
    command(arm, 0.0)
    command(arm, 0.05, linear=np.array([np.nan, 0, 0]))
    run(arm, 0.05, 1.0)
    assert arm.pose.position[0] == pytest.approx(0.1 * COMMAND_TIMEOUT_S)


def test_a_new_twist_replaces_the_old_one_from_its_arrival() -> None:
    """Commands between two steps used to be able to rewrite the past of the step."""
    arm = KinematicArm()
    arm.step(0.0)
    command(arm, 0.0)
    command(arm, 0.05, linear=-FORWARD)
    arm.step(0.1)
    np.testing.assert_allclose(arm.pose.position, np.zeros(3), atol=1e-15)
    assert arm.path_length_m == pytest.approx(0.01)


def test_a_clock_that_jumps_back_moves_nothing() -> None:
    arm = KinematicArm()
    arm.step(100.0)
    command(arm, 100.0)
    arm.step(100.05)
    before = arm.pose.position.copy()
    arm.step(3.0)
    run(arm, 3.02, 4.0)
    np.testing.assert_array_equal(arm.pose.position, before)


def test_the_gripper_takes_its_time_and_stays_in_range() -> None:
    arm = KinematicArm(gripper_opening=1.0)
    arm.step(0.0)
    arm.command_gripper(-3.0)
    arm.step(GRIPPER_TRAVEL_S / 2)
    assert arm.gripper_opening == pytest.approx(0.5)
    arm.step(10.0)
    assert arm.gripper_opening == 0.0
    arm.command_gripper(float("nan"))
    arm.step(11.0)
    assert arm.gripper_opening == 0.0
