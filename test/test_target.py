"""The pose that an impedance controller is given."""

from __future__ import annotations

import numpy as np
import pytest

from openvla_ros.control.displacement import rotation_vector
from openvla_ros.control.pose import Pose, exponential_map
from openvla_ros.control.target import Leash, TargetPose
from openvla_ros.control.workspace import Workspace

TICK_S = 0.02
FORWARD = np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.0])
YAW = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])


def test_the_first_target_is_the_measured_pose() -> None:
    start = Pose(np.array([0.3, 0.1, 0.2]), exponential_map(np.array([0.1, 0.2, 0.3])))
    target = TargetPose(Leash()).follow(FORWARD, 5.0, start)
    assert target is start


def test_steps_are_added_to_the_target_and_not_to_an_arm_that_lags() -> None:
    """On the measured pose a spring that lags by a step would never move the arm."""
    target = TargetPose(Leash())
    for k in range(11):
        pose = target.follow(FORWARD, k * TICK_S, Pose())
    np.testing.assert_allclose(pose.position, [0.1 * 10 * TICK_S, 0.0, 0.0])


def test_the_leash_pulls_position_and_rotation_towards_the_arm() -> None:
    target = TargetPose(Leash(0.05, 0.2))
    for k in range(100):
        pose = target.follow(FORWARD + YAW, k * TICK_S, Pose())
    np.testing.assert_allclose(pose.position, [0.05, 0.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(rotation_vector(pose.rotation), [0.0, 0.0, 0.2], atol=1e-9)
    assert target.was_pulled


def test_an_arm_that_was_held_back_stores_no_more_than_the_leash() -> None:
    target = TargetPose(Leash(0.05, 0.2))
    for k in range(200):
        target.follow(FORWARD, k * TICK_S, Pose())
    for k in range(200, 202):
        pose = target.follow(-FORWARD, k * TICK_S, Pose())
    assert pose.position[0] < 0.05, "the target turns round at once"


def test_reset_begins_again_at_the_arm() -> None:
    target = TargetPose(Leash())
    for k in range(20):
        target.follow(FORWARD, k * TICK_S, Pose())
    target.reset()
    moved = Pose(np.array([0.2, 0.0, 0.0]))
    np.testing.assert_array_equal(target.follow(FORWARD, 10.0, moved).position, moved.position)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_target_does_not_leave_the_box_and_does_not_leap_into_it(side: float) -> None:
    box = Workspace((-0.1, -0.1, -0.1), (0.1, 0.1, 0.1), 0.02)
    inside, outside = TargetPose(Leash()), TargetPose(Leash())
    beyond = Pose(np.array([0.15 * side, 0.0, 0.0]))
    for k in range(100):
        held = inside.follow(FORWARD * side, k * TICK_S, Pose(beyond.position * 0.5), box)
        stuck = outside.follow(FORWARD * side, k * TICK_S, beyond, box)
    assert held.position[0] == pytest.approx(0.08 * side)
    assert stuck.position[0] == pytest.approx(0.15 * side)
    outside.follow(-FORWARD * side, 2.0, beyond, box)
    back = outside.follow(-FORWARD * side, 2.1, beyond, box)
    assert back.position[0] == pytest.approx(0.14 * side)


def test_a_clock_that_runs_back_does_not_move_the_target() -> None:
    target = TargetPose(Leash())
    for now_s in (5.0, 5.1):
        before = target.follow(FORWARD, now_s, Pose())
    after = target.follow(FORWARD, 4.0, Pose())
    np.testing.assert_array_equal(after.position, before.position)
