"""openvla_node drives the simulated cell: pictures, policy, twists, physics, in real time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import sim_cells

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")
import rclpy
from node_cell import MOVING, NAME, Cell
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter

from openvla_ros.mock_policy import MockPolicy
from openvla_ros.ros.sim_cell import SimCellNode
from openvla_ros.sim.expert import expert_action
from openvla_ros.types import PRIMARY, Observation, Prediction

pytestmark = pytest.mark.ros

REMAPPED = [
    "--ros-args",
    *("-r", f"twist_cmd:={NAME}/twist_cmd", "-r", f"gripper_cmd:={NAME}/gripper_cmd"),
]


class RunningCell:
    """A paced simulated cell in a thread of its own."""

    def __init__(self, **parameters: object) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = SimCellNode(
            context=self.context,
            cli_args=REMAPPED,
            parameter_overrides=[Parameter(name, value=v) for name, v in parameters.items()],
        )
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._is_over = False
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_over = True
        self._thread.join(60.0)
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def is_done(self) -> bool:
        return self.node.cell.task.is_done(self.node.cell.state())

    def _spin(self) -> None:
        while not self._is_over:
            self._executor.spin_once(timeout_sec=0.05)
        self.node.cell.close()  # in the thread that drew


class ExpertPolicy(MockPolicy):
    """Answers what the expert does; looks at the cell instead of the picture."""

    def __init__(self, running: RunningCell) -> None:
        super().__init__(np.zeros(7))
        self.seen: list[Observation] = []
        self._running = running

    def predict(self, observation: Observation) -> Prediction:
        self.seen.append(observation)
        cell = self._running.node.cell
        self._action = expert_action(cell.task, cell.state())
        return super().predict(observation)


@pytest.fixture
def running() -> Iterator[RunningCell]:
    sim_cells.require_pictures()
    made = RunningCell(task="reach", seed=12, width=96, height=96, camera_rate=10.0)
    yield made
    made.close()


def test_the_node_makes_the_arm_reach_the_block_it_is_told(running: RunningCell) -> None:
    policy = ExpertPolicy(running)
    instruction = running.node.cell.task.instruction
    assert not running.is_done(), "done before it began"
    with Cell(load=lambda *_: policy, **MOVING) as node:
        node.start(instruction)
        node.wait(running.is_done, f"the arm at the block of '{instruction}'")
    frames = [o for o in policy.seen if o.stamp_ns]
    assert frames, "the policy has seen no picture of the cell"
    assert frames[-1].images[PRIMARY].shape == (96, 96, 3)
    assert frames[-1].instruction == instruction
    assert running.node.gate.accepted > 0 and not running.node.gate.refused
