"""What leaves at every tick: how the arm stops, and what happens when ticks come late."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

import numpy as np
from node_cell import MOVING, Cell

from openvla_ros.config import NodeConfig
from openvla_ros.control.motion import MotionStage
from openvla_ros.control.pose import EndEffectorPose
from openvla_ros.control.states import Reason, State
from openvla_ros.control.supervisor import CUTTING, Supervisor, Verdict
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.ros.frames import Clocks, Tick
from openvla_ros.ros.shared_state import SharedState
from openvla_ros.ros.streaming import Streaming
from openvla_ros.types import PRIMARY, Observation

pytestmark = pytest.mark.ros


def test_a_node_that_was_frozen_does_not_go_on_with_its_old_action() -> None:
    """It did, when a fresh image came in before its first tick: up to the rest of a long step."""
    # 10 mm at 5 mm/s last 2 s, and images may be 5 s old: nothing else stops this action.
    # Late means a second here: other tests keep this machine busy.
    with Cell(**MOVING, **{"limits.linear_speed": 0.005}, late_tick_s=1.0).start() as cell:
        cell.answer()
        cell.wait_moving()
        cell.steady.jump(1.1)
        cell.wait_zero()
        assert np.isfinite(cell.statuses[-1].image_age)
        cell.answer()
        cell.wait_moving()


TICK_S = 0.02
RUNNING = Verdict(State.RUNNING)


class Stream:
    """A stream whose arm moves along x, and a hand on the clock."""

    def __init__(self, **values: object) -> None:
        policy = MockPolicy((0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0))
        config = NodeConfig.from_values(
            {**MOVING, "limits.linear_speed": 0.01, "decay_time": 0.5, **values}
        )
        stage = MotionStage(policy.action_spec, config.motion, config.gripper)
        clocks = Clocks(lambda: 0, lambda: 0.0)
        self.streaming = Streaming(SharedState(config, clocks, Supervisor(config), stage, None))
        self.now_s = 10.0
        image = np.zeros((2, 2, 3), np.uint8)
        prediction = policy.predict(Observation({PRIMARY: image}, "pick", 1))
        stage.execute(stage.plan(prediction), self.now_s)

    def tick(self, verdict: Verdict, count: int = 1, x: float = 0.0) -> Tick:
        """The last of so many ticks, with the arm measured at x."""
        pose = EndEffectorPose(np.array([x, 0.0, 0.0]), np.array([0.0, 0.0, 0.0, 1.0]), 0.0)
        for _ in range(count):
            self.now_s += TICK_S
            tick = self.streaming.tick(verdict, pose, self.now_s)
        return tick


@pytest.mark.parametrize("reason", CUTTING)
def test_what_stops_at_once_also_ends_a_ramp(reason: Reason) -> None:
    """The ramp of a stale camera went on under a released dead-man switch."""
    stream = Stream()
    assert stream.tick(RUNNING, 10).twist[0] == pytest.approx(0.01)
    assert stream.tick(Verdict(State.HOLD, Reason.STALE_IMAGE), 3).twist[0] > 0.005
    assert not stream.tick(Verdict(State.HOLD, reason)).twist.any()


def test_a_cut_after_a_ramp_takes_back_what_the_target_leads_by() -> None:
    stream = Stream(output="pose")
    stream.tick(RUNNING, 50)
    held = stream.tick(Verdict(State.HOLD, Reason.STALE_IMAGE), 50).target
    assert held.position[0] > 0.005, "a ramp holds the target where it is"
    cut = stream.tick(Verdict(State.HOLD, Reason.DEADMAN), x=0.001).target
    assert cut.position[0] == 0.001, "the arm is here"
    later = stream.tick(Verdict(State.HOLD, Reason.DEADMAN), 50, x=-0.001).target
    assert later.position[0] == 0.001, "a held target does not follow an arm that sags"
