"""action_to_twist over DDS, beside the node whose actions it streams; see also test_follower.py."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

from follower_rig import SLOW
from geometry_msgs.msg import PoseStamped, TwistStamped
from node_cell import MOVING, PATIENCE_S, Cell, is_zero
from openvla_ros.msg import VLAStatus
from rcl_interfaces.msg import ParameterType
from rclpy.executors import MultiThreadedExecutor
from rclpy.parameter import Parameter
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from openvla_ros.config import PARAMETERS
from openvla_ros.control.states import Reason, State
from openvla_ros.errors import ConfigurationError
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.ros import follower, qos
from openvla_ros.ros.action_to_twist import USED, ActionToTwistNode
from openvla_ros.ros.process import EXECUTOR_THREADS
from openvla_ros.types import Observation, Prediction

pytestmark = pytest.mark.ros

ROOT = Path(__file__).resolve().parents[1]
PATIENT = {"base_frame": "base_link", "node_timeout": 10.0, "max_action_age": 30.0}


class Streamer:
    """An action_to_twist in the context of a cell, and what it has published."""

    def __init__(self, cell: Cell, **parameters: Any) -> None:
        self.cell = cell
        values = {**PATIENT, **parameters}
        self.node = ActionToTwistNode(
            steady_clock=cell.steady,
            context=cell.context,
            parameter_overrides=[Parameter(k, value=v) for k, v in values.items()],
        )
        self.twists: list[TwistStamped] = []
        self.statuses: list[VLAStatus] = []
        cell.hear(TwistStamped, "/action_to_twist/twist_cmd", self.twists, 100)
        cell.hear(VLAStatus, "/action_to_twist/status", self.statuses, qos.LATCHED)
        self._executor = MultiThreadedExecutor(EXECUTOR_THREADS, context=cell.context)
        self._executor.add_node(self.node)
        self._is_over = False
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._is_over:
            self._executor.spin_once(timeout_sec=0.05)

    def wait_twists(self, count: int) -> list[TwistStamped]:
        begin = len(self.twists)
        self.cell.wait(lambda: len(self.twists) >= begin + count, "twists")
        return self.twists[begin : begin + count]

    def wait_moving(self) -> None:
        begin = len(self.twists)
        self.cell.wait(lambda: any(not is_zero(t) for t in self.twists[begin:]), "a moving twist")

    def wait_zero(self) -> None:
        self.cell.wait(lambda: self.twists and is_zero(self.twists[-1]), "a zero twist")
        assert all(is_zero(t) for t in self.wait_twists(10))

    def wait_status(self, state: State, reason: Reason) -> VLAStatus:
        def found() -> VLAStatus | None:
            last = self.statuses[-1] if self.statuses else None
            return last if last and (last.state, last.reason) == (state, reason) else None

        return self.cell.wait(found, f"{state.name} {reason.name}")

    def trigger(self, name: str) -> None:
        client = self.cell.peer.create_client(Trigger, f"/action_to_twist/{name}")
        self.cell.wait(client.service_is_ready, name)
        future = client.call_async(Trigger.Request())
        self.cell.wait(future.done, name)
        assert future.result().success

    def close(self) -> None:
        self.node.stop_streaming()
        self._is_over = True
        self._thread.join()
        self._executor.shutdown()
        self._executor._executor.shutdown(wait=True)
        self.node.destroy_node()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine delivers ticks late; test_follower.py asks what happens then."""
    monkeypatch.setattr(follower, "LATE_TICK_S", PATIENCE_S)


@pytest.fixture
def cell() -> Iterator[Cell]:
    with Cell(**{**MOVING, **SLOW, "output": "none", "motion_enabled": False}) as a_cell:
        yield a_cell


@pytest.fixture
def streamer(cell: Cell) -> Iterator[Streamer]:
    a_streamer = Streamer(cell, **SLOW)
    yield a_streamer
    a_streamer.close()


def arm(cell: Cell, streamer: Streamer) -> None:
    cell.start()
    cell.answer()
    # A dry run: the streamer has seen it.
    cell.wait(lambda: streamer.node._follower._is_armed, "the streamer to see the node disarmed")
    assert cell.enable_motion(True).success


def start_moving(cell: Cell, streamer: Streamer) -> None:
    arm(cell, streamer)
    cell.answer()
    streamer.wait_moving()


def test_zeros_are_streamed_without_any_node(cell: Cell, streamer: Streamer) -> None:
    twists = streamer.wait_twists(5)
    assert all(is_zero(t) and t.header.frame_id == "base_link" for t in twists)
    assert all(t.header.stamp.sec > 0 for t in twists)


def test_an_action_that_the_node_executes_is_streamed_and_the_node_streams_none(
    cell: Cell, streamer: Streamer
) -> None:
    start_moving(cell, streamer)
    moving = next(t for t in reversed(streamer.twists) if not is_zero(t))
    assert moving.twist.linear.x == pytest.approx(0.005)
    assert cell.twists == []


class ChunkPolicy(MockPolicy):
    """Answers three steps at once."""

    def predict(self, observation: Observation) -> Prediction:
        one = super().predict(observation)
        steps = np.array([[1.0], [2.0], [-1.0]])
        actions = np.repeat(one.actions, 3, axis=0)
        actions[:, :6] *= steps
        return dataclasses.replace(one, actions=actions)


def test_the_message_holds_every_step_of_a_chunk_and_they_are_streamed() -> None:
    parameters = {**MOVING, "output": "none", "motion_enabled": False}
    with Cell(load=lambda _: ChunkPolicy([0.01, 0, 0, 0, 0, 0, 1]), **parameters) as cell:
        streamer = Streamer(cell)
        try:
            start_moving(cell, streamer)
            action = cell.answer()
            steps = np.reshape(action.steps, (-1, 6))
            assert np.allclose(steps[:, 0], [0.01, 0.02, -0.01])
            assert action.chunk_steps == 3 and action.delta_position.x == steps[0, 0]
            cell.wait(
                lambda: any(t.twist.linear.x < 0.0 for t in streamer.twists), "the third step"
            )
        finally:
            streamer.close()


@pytest.mark.parametrize("stop", ["stop", "dry run", "instruction", "deactivate"])
def test_what_stops_the_node_stops_the_stream(cell: Cell, streamer: Streamer, stop: str) -> None:
    start_moving(cell, streamer)
    if stop == "stop":
        cell.trigger("stop")
    elif stop == "dry run":
        cell.enable_motion(False)
    elif stop == "instruction":
        cell.instruct("")
    else:
        assert cell.change("deactivate")
    streamer.wait_zero()


def test_a_silent_node_stops_the_stream_and_zeros_go_on(cell: Cell, streamer: Streamer) -> None:
    assert streamer.node.set_parameters([Parameter("node_timeout", value=1.5)])[0].successful
    start_moving(cell, streamer)
    # No word is heard any more; the clocks go on.
    streamer.node._follower.report = streamer.node._follower.order = lambda _: None
    for _ in range(40):
        cell.steady.jump(0.05)  # less than a late tick: only the silence counts
        streamer.wait_twists(1)
    status = streamer.wait_status(State.HOLD, Reason.MODEL_HANG)
    assert "node_timeout" in status.detail
    streamer.wait_zero()


def test_its_own_stop_holds_until_its_own_start(cell: Cell, streamer: Streamer) -> None:
    start_moving(cell, streamer)
    streamer.trigger("stop")
    streamer.wait_zero()
    cell.answer()
    assert all(is_zero(t) for t in streamer.wait_twists(10))
    streamer.trigger("start")
    cell.answer()
    streamer.wait_moving()


def test_one_that_comes_up_beside_an_armed_node_waits_for_start(
    cell: Cell, streamer: Streamer
) -> None:
    start_moving(cell, streamer)
    streamer.close()
    respawned = Streamer(cell, **SLOW)
    try:
        respawned.wait_status(State.HOLD, Reason.OPERATOR)
        cell.answer()
        assert all(is_zero(t) for t in respawned.wait_twists(10))
        respawned.trigger("start")
        cell.answer()
        respawned.wait_moving()
    finally:
        respawned.close()


def test_nothing_follows_the_last_zeros(cell: Cell, streamer: Streamer) -> None:
    start_moving(cell, streamer)
    streamer.node.stop_streaming()
    cell.answer()
    count = -1
    while count != len(streamer.twists):
        count = len(streamer.twists)
        cell.answer()
    assert all(is_zero(t) for t in streamer.twists[-5:])


def test_the_dead_man_switch_and_the_teleoperation_of_the_node_work_here(cell: Cell) -> None:
    streamer = Streamer(cell, deadman_required=True, deadman_timeout=2.0, **SLOW)
    switch = cell.peer.create_publisher(Bool, "/openvla_node/enable", qos.ENABLE)
    stick = cell.peer.create_publisher(TwistStamped, "/openvla_node/teleop_twist", 1)
    try:
        arm(cell, streamer)

        def is_moving() -> bool:
            switch.publish(Bool(data=True))
            cell.answer()
            return not is_zero(streamer.twists[-1])

        cell.wait(is_moving, "motion while the switch is held")
        switch.publish(Bool(data=False))
        streamer.wait_status(State.HOLD, Reason.DEADMAN)
        streamer.wait_zero()

        def is_steered() -> bool:
            switch.publish(Bool(data=True))
            wish = TwistStamped()
            wish.header.frame_id = "base_link"
            wish.header.stamp = cell.peer.get_clock().now().to_msg()
            wish.twist.linear.y = 0.004
            stick.publish(wish)
            return streamer.twists[-1].twist.linear.y == pytest.approx(0.004)

        cell.wait(is_steered, "the twist of the stick")
    finally:
        streamer.close()


def test_a_workspace_needs_the_pose_of_the_end_effector_and_takes_it_from_the_topic(
    cell: Cell,
) -> None:
    box = {"limits.workspace_min": [-1.0] * 3, "limits.workspace_max": [1.0] * 3}
    streamer = Streamer(cell, **box, **SLOW)
    poses = cell.peer.create_publisher(PoseStamped, "ee_pose", 1)

    def tell(x: float) -> None:
        pose = PoseStamped()
        pose.header.frame_id = "base_link"
        pose.header.stamp = cell.peer.get_clock().now().to_msg()
        pose.pose.position.x = x
        pose.pose.orientation.w = 1.0
        poses.publish(pose)

    try:
        arm(cell, streamer)
        cell.answer()
        assert "ee_pose" in streamer.wait_status(State.HOLD, Reason.TF_UNAVAILABLE).detail

        def is_moving_at(x: float) -> bool:
            tell(x)
            cell.answer()
            return not is_zero(streamer.twists[-1])

        cell.wait(lambda: is_moving_at(0.0), "motion inside the box")
        cell.wait(lambda: not is_moving_at(0.999), "the edge of the box")
    finally:
        streamer.close()


def test_a_failed_callback_stops_the_stream(cell: Cell, streamer: Streamer) -> None:
    start_moving(cell, streamer)

    def boom(_: Any) -> None:
        raise RuntimeError("boom")

    streamer.node._follower.order = boom
    cell.answer()
    streamer.wait_status(State.FAULT, Reason.MODEL_ERROR)
    streamer.wait_zero()


# Parameters ---------------------------------------------------------------------------------------


def make(context: Any, **parameters: Any) -> ActionToTwistNode:
    overrides = [Parameter(k, value=v) for k, v in parameters.items()]
    return ActionToTwistNode(context=context, parameter_overrides=overrides)


def test_it_takes_the_parameter_file_of_the_node_and_declares_what_it_uses(cell: Cell) -> None:
    values = {
        name: list(p.default) if isinstance(p.default, tuple) else p.default
        for name, p in PARAMETERS.items()
    }
    node = make(cell.context, **{**values, "base_frame": "base_link"})
    try:
        declared = {n for n in PARAMETERS if node.has_parameter(n)}
        assert declared == set(USED)
        kinds = node.describe_parameter("node_timeout").type
        assert kinds == ParameterType.PARAMETER_DOUBLE
    finally:
        node.stop_streaming()
        node.destroy_node()


def test_a_misspelt_parameter_is_an_error_that_names_it(cell: Cell) -> None:
    with pytest.raises(ConfigurationError, match=r"node_timeot.*node_timeout"):
        make(cell.context, base_frame="base_link", node_timeot=2.0)


def test_without_a_base_frame_it_does_not_start(cell: Cell) -> None:
    with pytest.raises(ConfigurationError, match="base_frame"):
        make(cell.context)


def test_limits_change_while_it_runs(cell: Cell, streamer: Streamer) -> None:
    start_moving(cell, streamer)
    result = streamer.node.set_parameters([Parameter("limits.linear_speed", value=0.002)])[0]
    assert result.successful, result.reason
    cell.answer()
    cell.wait(lambda: streamer.twists[-1].twist.linear.x == pytest.approx(0.002), "a slower twist")


def test_a_limit_out_of_range_is_refused(streamer: Streamer) -> None:
    result = streamer.node.set_parameters([Parameter("node_timeout", value=0.1)])[0]
    assert not result.successful


# The process --------------------------------------------------------------------------------------


def test_it_imports_neither_torch_nor_transformers_until_it_streams() -> None:
    code = """
import sys, rclpy
from openvla_ros.ros.action_to_twist import ActionToTwistNode
from rclpy.parameter import Parameter
rclpy.init()
node = ActionToTwistNode(parameter_overrides=[Parameter("base_frame", value="b")])
for _ in range(20):
    rclpy.spin_once(node, timeout_sec=0.05)
node.stop_streaming()
print("heavy:", [m for m in ("torch", "transformers") if m in sys.modules])
node.destroy_node()
rclpy.shutdown()
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert "heavy: []" in result.stdout, result.stdout + result.stderr


def test_unusable_parameters_end_the_process_with_a_message_and_no_traceback() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "openvla_ros.ros.action_to_twist"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert result.returncode == 1
    assert "action_to_twist: base_frame is empty" in result.stderr
    assert "Traceback" not in result.stderr
