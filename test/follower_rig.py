"""A follower under a fake clock: what the node says goes in, twists come out. No ROS."""

from __future__ import annotations

from typing import Any

import numpy as np

from openvla_ros.config import NodeConfig
from openvla_ros.control.states import Drop, Reason, State
from openvla_ros.ros.follower import Follower, NodeReport, Order
from openvla_ros.ros.frames import Clocks, Tick

TICK_S = 0.02
STEP = np.array([0.01, -0.004, 0.0, 0.0, 0.0, 0.02])
# 10 mm at 5 mm/s last 2 s: what stops such an action is not that it is over.
SLOW = {"limits.linear_speed": 0.005}


class Rig:
    """A follower, its clock, and the twists it has published."""

    def __init__(self, **values: Any) -> None:
        self.now_s = 1000.0
        config = NodeConfig.from_values({"base_frame": "base", **values})
        clocks = Clocks(lambda: round(self.now_s * 1e9), lambda: self.now_s)
        self.follower = Follower(config, clocks)
        self.twists: list[np.ndarray] = []

    def stamp(self, age_s: float = 0.0) -> int:
        return round((self.now_s - age_s) * 1e9)

    def says(self, state: State = State.RUNNING, reason: Reason = Reason.OK, **rest: Any) -> None:
        """The node publishes its status."""
        values = {"motion_enabled": True, "instruction": "pick", "age_s": 0.0, **rest}
        stamp = self.stamp(values.pop("age_s"))
        self.follower.report(NodeReport(stamp, state, reason, **values))

    def acts(self, steps: np.ndarray = STEP, drop: Drop = Drop.NONE, **changes: Any) -> None:
        """The node publishes an action."""
        order = {
            "image_ns": self.stamp(0.15),
            "decided_ns": self.stamp(),
            "frame_id": "base",
            "steps": np.atleast_2d(steps),
            "step_s": 0.2,
            "drop": drop,
        }
        self.follower.order(Order(**{**order, **changes}))

    def tick(self, count: int = 1, period_s: float = TICK_S) -> list[np.ndarray]:
        """Run the stream timer; returns the twists of these ticks."""
        begin = len(self.twists)
        for _ in range(count):
            self.now_s += period_s
            self.follower.tick(self._publish)
        return self.twists[begin:]

    def _publish(self, tick: Tick) -> None:
        self.twists.append(tick.twist)

    @property
    def moved(self) -> np.ndarray:
        """(6,) integral of all twists."""
        return np.sum(self.twists, axis=0) * TICK_S

    @property
    def is_moving(self) -> bool:
        return bool(self.twists[-1].any())


def moving(**values: Any) -> Rig:
    """A rig in the middle of a long action, with the status fresh."""
    rig = Rig(**{**SLOW, **values})
    rig.says(motion_enabled=False)
    rig.says()
    rig.acts()
    rig.tick(10)
    assert rig.is_moving
    return rig


def armed(**values: Any) -> Rig:
    rig = Rig(**values)
    rig.says(State.READY)
    rig.says()
    return rig
