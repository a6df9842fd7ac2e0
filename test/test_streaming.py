"""What leaves at every tick, over DDS, when ticks come late."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

import numpy as np
from node_cell import MOVING, Cell

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
