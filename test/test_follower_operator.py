"""The split process without ROS: its own stop and start, the dead-man switch and teleoperation."""

from __future__ import annotations

import numpy as np
import pytest
from follower_rig import SLOW, Rig, moving

from openvla_ros.control.states import Reason, State


@pytest.mark.parametrize("state", [State.RUNNING, State.HOLD])
def test_a_process_that_comes_up_beside_an_armed_node_stands_until_start(state: State) -> None:
    rig = Rig()
    rig.says(state)
    rig.says()
    rig.acts()
    assert not np.any(rig.tick(10))
    assert "~/start" in rig.follower.verdict().detail
    rig.follower.release()
    rig.acts()
    assert np.any(rig.tick(5))


def test_its_own_stop_cuts_at_the_next_tick_until_its_own_start() -> None:
    rig = moving()
    rig.follower.hold()
    rig.says()
    rig.acts()
    assert not np.any(rig.tick(10))
    rig.follower.release()
    rig.acts()
    assert np.any(rig.tick(5))


def test_stop_and_start_within_one_tick_still_drop_the_action() -> None:
    rig = moving()
    rig.follower.hold()
    rig.follower.release()
    assert not np.any(rig.tick(10))


def test_a_failed_callback_stops_the_arm_until_start() -> None:
    rig = moving()
    rig.follower.fail("boom")
    rig.acts()
    assert not np.any(rig.tick(10))
    assert rig.follower.verdict().state is State.FAULT


def test_a_released_dead_man_switch_cuts_even_when_the_node_hangs() -> None:
    rig = Rig(deadman_required=True, deadman_timeout=0.3, **SLOW)
    rig.says(motion_enabled=False)
    rig.says()
    rig.follower.switch_deadman(True)
    rig.acts()
    assert np.any(rig.tick(10))
    rig.tick(6)
    assert not rig.is_moving, "it was not held for longer than deadman_timeout"
    assert rig.follower.verdict().reason is Reason.DEADMAN
    rig.follower.switch_deadman(True)
    rig.acts()
    rig.tick(5)
    rig.follower.switch_deadman(False)
    assert not np.any(rig.tick(5))


def test_a_person_takes_over_at_once_and_the_policy_waits_for_start() -> None:
    rig = moving()
    wanted = np.array([0.0, 0.004, 0.0, 0.0, 0.0, 0.0])
    for _ in range(5):
        assert rig.follower.steer(wanted, "base", rig.stamp()) == ""
        rig.acts()
        rig.tick()
    assert np.allclose(rig.twists[-1], wanted)
    rig.says()
    rig.tick(20)
    assert not rig.is_moving, "nobody steers any more"
    rig.acts()
    assert not np.any(rig.tick(5))
    rig.follower.release()
    rig.acts()
    assert np.any(rig.tick(5))


def test_start_of_the_node_ends_the_steering_here_too() -> None:
    rig = moving()
    rig.follower.steer(np.zeros(6), "base", rig.stamp())
    rig.says(State.HOLD, Reason.TELEOPERATION)
    rig.says(State.RUNNING)
    rig.acts()
    assert np.any(rig.tick(5))


def test_nobody_steers_an_arm_whose_motion_is_not_enabled() -> None:
    rig = Rig()
    rig.says(motion_enabled=False)
    assert "not enabled" in rig.follower.steer(np.ones(6), "base", rig.stamp())
    assert not np.any(rig.tick(5))


def test_stop_is_stronger_than_steering() -> None:
    rig = moving()
    rig.follower.hold()
    assert "~/start" in rig.follower.steer(np.ones(6), "base", rig.stamp())
    assert not np.any(rig.tick(5))
