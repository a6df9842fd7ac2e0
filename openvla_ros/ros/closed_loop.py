"""Closed loop through real topics: `openvla_node` and `sim_cell` in one process, in lockstep.

Pictures, twists, gripper commands, the instruction and `task_done` go over DDS. Simulated time
waits for both nodes at every tick, so a slow machine changes nothing but how long it takes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import Bool, String

from openvla_ros.control.states import Drop
from openvla_ros.errors import OpenVLAError
from openvla_ros.messages import stamp_ns
from openvla_ros.msg import VLAAction, VLAStatus
from openvla_ros.ros import qos
from openvla_ros.ros.lifecycle_client import LifecycleClient
from openvla_ros.ros.node import OpenVLANode
from openvla_ros.ros.process import EXECUTOR_THREADS
from openvla_ros.ros.sim_cell import STEP_S as TICK_S
from openvla_ros.ros.sim_cell import SimCellNode
from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.closed_loop.drivers import Driver, PictureDriver
from openvla_ros.sim.closed_loop.episode import (
    STEP_LIMITS,
    EpisodeResult,
    Moment,
    Watch,
    answer_of,
    assign,
)
from openvla_ros.sim.closed_loop.evaluation import Trial
from openvla_ros.sim.closed_loop.node_motion import EVALUATION_PARAMETERS
from openvla_ros.sim.expert import STEP_S
from openvla_ros.types import PRIMARY, ActionSpec, Observation, Policy, PolicyInfo, Prediction

NODE = "openvla_node"
PATIENCE_S = 60.0  # longest silence of a node, by the wall clock
RESEND_S = 0.5  # after that a picture may have got lost: its topic is best effort
FASTEST_HZ = 30.0  # of policy_rate
PAUSE_S = 1.0  # steady time between episodes, or the first picture waits for the rate
POLL_S = 0.002
BEGIN_S = 0.0002
_ROUNDING_S = 1e-6
_QUIET = ["--ros-args", "--log-level", "warn"]
_REMAPPED = [
    *_QUIET,
    *("-r", f"twist_cmd:=/{NODE}/twist_cmd", "-r", f"gripper_cmd:=/{NODE}/gripper_cmd"),
]


class LoopError(OpenVLAError):
    """A node of the closed loop fell silent."""


class _PatientExecutor(MultiThreadedExecutor):
    """Gives a thread of its pool the time to begin.

    rclpy yields a callback again, and again at once, until a thread has begun with it; the loop
    holds the interpreter meanwhile, and with a free core each callback waited many milliseconds.
    """

    def _spin_once_impl(self, *args: Any, **kwargs: Any) -> None:
        queued = getattr(self, "_futures", ())
        if any(not (task.done() or task.executing()) for task in queued):
            time.sleep(BEGIN_S)
        super()._spin_once_impl(*args, **kwargs)


class _CellNode(SimCellNode):
    """A cell that says when it has sent its last picture."""

    @property
    def picture_ns(self) -> int:
        """Stamp of the last picture; 0 before the first one after a reset."""
        return self._frame_ns

    def send_picture_again(self) -> None:
        """Send the last picture once more; the node takes no stamp twice."""
        self._topics.publish_picture(self._stamp())


class _DriverPolicy(Policy):
    """A driver as the node's policy; its answers are out `latency_s` later, in simulated time.

    Attributes:
        begun_ns: Stamp of the picture that it began last.
        due_s: Simulated time at which the answer is out; None while it computes, or is free.
        is_free: Whether it works on nothing.
        moments: Where pictures are kept; None = nowhere.
        failure: What the driver raised, or None.
        is_cut: Whether answers come at once: the episode is over, and time stands still.
    """

    def __init__(self, driver: Driver, cell: _CellNode, latency_s: float) -> None:
        self.begun_ns = 0
        self.due_s: float | None = None
        self.is_free = True
        self.moments: list[Moment] | None = None
        self.failure: Exception | None = None
        self.is_cut = False
        self._driver = driver
        self._cell = cell
        self._latency_s = latency_s

    @property
    def info(self) -> PolicyInfo:
        return PolicyInfo(checkpoint="closed loop", unnorm_key=self._driver.spec.unnorm_key)

    @property
    def action_spec(self) -> ActionSpec:
        return self._driver.spec

    def predict(self, observation: Observation) -> Prediction:
        self.is_free = False
        self.begun_ns = observation.stamp_ns
        begun_s = self._cell.now_s
        try:
            answer = self._answer(observation)
        except Exception as error:
            self.failure = error
            raise
        self.due_s = begun_s + self._latency_s
        while self._cell.now_s < self.due_s - _ROUNDING_S and not self.is_cut:
            time.sleep(POLL_S)
        self.due_s, self.is_free = None, True
        return answer

    def view(self, image: np.ndarray) -> np.ndarray:
        return image

    def self_test(self) -> None:
        if isinstance(self._driver, PictureDriver):
            self._driver.self_test()

    def _answer(self, observation: Observation) -> Prediction:
        cell = self._cell.cell
        picture = observation.images[PRIMARY]
        task = replace(cell.task, instruction=observation.instruction)  # as it came over its topic
        answer = answer_of(self._driver, picture, task, cell)
        if self.moments is not None:
            self.moments.append(Moment(picture, cell.state(), answer))
        return answer


class RosLoop:
    """Both nodes and a listener. Use as a context manager, in one thread: that one draws.

    Attributes:
        resent: Pictures that were sent once more, because the node did not begin with them.
    """

    def __init__(self, driver: Driver, trial: Trial, arm: str = "viperx") -> None:
        """Start the nodes and load the policy into its own.

        Args:
            driver: The policy of the node.
            trial: Latency and parameters are fixed with it.
            arm: Name of the simulated arm.

        Raises:
            OpenVLAError: A parameter is not usable, or the node does not start.
        """
        self._driver = driver
        self._trial = trial
        self._context = Context()
        rclpy.init(context=self._context)
        self._cell = _CellNode(
            is_paced=False,
            context=self._context,
            cli_args=_REMAPPED,
            parameter_overrides=_parameters(
                {"arm": arm, "camera_rate": trial.config.timing.policy_rate}
            ),
        )
        self._pauses_s = 0.0
        self._policy = _DriverPolicy(driver, self._cell, trial.latency_ms / 1e3)
        # The camera has the rate of the policy, which then never waits for its own: in lockstep
        # nothing but a picture could end such a wait.
        values = {**EVALUATION_PARAMETERS, **trial.parameters, "policy_rate": FASTEST_HZ}
        values |= {"use_sim_time": True, "warmup_iterations": 0}
        self._node = OpenVLANode(
            steady_clock=lambda: self._cell.now_s + self._pauses_s,
            load=lambda model: self._policy,
            streams_in_ros_time=True,
            context=self._context,
            cli_args=_QUIET,
            parameter_overrides=_parameters(values),
        )
        self._peer = Node("closed_loop", context=self._context)
        self._actions: list[VLAAction] = []
        self._status = VLAStatus()
        self._done: list[bool] = []
        hear = self._peer.create_subscription
        hear(VLAAction, f"/{NODE}/action", self._on_action, qos.ACTION)
        hear(VLAStatus, f"/{NODE}/status", self._on_status, qos.LATCHED)
        hear(Bool, "task_done", lambda message: self._done.append(message.data), 10)
        self._instruction = self._peer.create_publisher(String, "instruction", 1)
        self._lifecycle = LifecycleClient(self._peer, NODE)
        self._here = SingleThreadedExecutor(context=self._context)
        self._here.add_node(self._cell)
        self._here.add_node(self._peer)
        self._there = _PatientExecutor(EXECUTOR_THREADS, context=self._context)
        self._there.add_node(self._node)
        self._is_over = False
        self._thread = threading.Thread(target=self._spin_node, daemon=True)
        self._thread.start()
        self._answered_ns = 0
        self.resent = 0

    def __enter__(self) -> RosLoop:
        self._change("configure")
        self._until(
            lambda: (
                self._instruction.get_subscription_count() >= 1
                and self._cell.count_publishers(f"/{NODE}/twist_cmd") >= 1
            ),
            "the node's topics",
        )
        # Before its first tick the node's clock stands at 0, and pictures seem to come from ahead.
        self._until(self._is_clock_heard, "the node's clock")
        return self

    def __exit__(self, *_: object) -> None:
        self._node.stop_streaming()
        session = self._node._session
        if session is not None:
            session.close()
        self._is_over = True
        self._thread.join(PATIENCE_S)
        self._there.shutdown()
        self._here.shutdown()
        self._cell.cell.close()
        for node in (self._peer, self._node, self._cell):
            node.destroy_node()
        rclpy.shutdown(context=self._context)

    def run(
        self,
        *,
        on_episode: Callable[[EpisodeResult, SimCell], None] = lambda result, cell: None,
        keeps_moments: bool = False,
    ) -> list[EpisodeResult]:
        """Return what comes of every episode of the trial; see `sim.closed_loop.run_trial`.

        Raises:
            LoopError: A node fell silent.
            Exception: What the driver raised.
        """
        results = []
        for seed in self._trial.seeds:
            result = self._episode(seed, keeps_moments=keeps_moments)
            on_episode(result, self._cell.cell)
            result.moments.clear()
            results.append(result)
        return results

    def _episode(self, seed: int, *, keeps_moments: bool) -> EpisodeResult:
        trial = self._trial
        self._pauses_s += PAUSE_S
        assignment = assign(self._cell.cell, trial.kind, seed, is_swapped=trial.is_swapped)
        task = assignment.task
        watch = Watch(assignment)
        self._policy.moments = watch.result.moments if keeps_moments else None
        self._cell.set_parameters(
            _parameters({"seed": seed, "task": trial.kind, "target": task.target})
        )
        self._cell.reset()
        if isinstance(self._driver, PictureDriver):
            self._driver.begin()
        self._instruction.publish(String(data=task.instruction))
        self._until(lambda: self._status.instruction == task.instruction, "the instruction")
        self._actions.clear()
        self._change("activate")
        limit = trial.step_limit or STEP_LIMITS[trial.kind]
        begin_s = self._cell.now_s
        for _ in range(round(limit * STEP_S / TICK_S)):
            self._tick()
            now_s = self._cell.now_s - begin_s
            if watch.look(self._cell.cell.state(), now_s, is_done=self._done[-1]):
                break
        answers, self._policy.is_cut = list(self._actions), True
        self._change("deactivate")
        self._policy.is_cut = False
        watch.result.answers = len(answers)
        for action in answers:
            if not action.executed:
                name = Drop(action.drop_reason).name.lower()
                watch.result.refused[name] = watch.result.refused.get(name, 0) + 1
        return watch.finish(limit)

    def _tick(self) -> None:
        """Let 20 ms pass, and wait for what belongs to them: twist, verdict, answers."""
        self._done.clear()
        self._cell.advance(TICK_S)
        now_s = self._cell.now_s
        self._until(lambda: self._is_commanded(now_s), "a twist")
        self._until(lambda: bool(self._done), "task_done")
        begin_s = sent_s = time.monotonic()
        while not self._is_at_rest(now_s):
            self._spin_here()
            self._require_in_time(begin_s, "an answer")
            is_waiting = self._policy.is_free and self._policy.begun_ns < self._cell.picture_ns
            if is_waiting and time.monotonic() - sent_s > RESEND_S:
                self.resent += 1
                self._cell.send_picture_again()
                sent_s = time.monotonic()

    def _is_commanded(self, now_s: float) -> bool:
        command = self._cell.gate.command
        return command is not None and command.stamp_s >= now_s - _ROUNDING_S

    def _is_at_rest(self, now_s: float) -> bool:
        """Whether nothing more happens before time goes on."""
        policy = self._policy
        if policy.failure is not None:
            raise policy.failure
        if not policy.is_free:
            return policy.due_s is not None and policy.due_s > now_s + _ROUNDING_S
        is_begun = policy.begun_ns >= self._cell.picture_ns
        return is_begun and self._answered_ns >= policy.begun_ns

    def _is_clock_heard(self) -> bool:
        self._cell.advance(TICK_S)
        return self._node.get_clock().now().nanoseconds > 0

    def _change(self, transition: str) -> None:
        self._lifecycle.change(transition, PATIENCE_S, self._spin_here)

    def _until(self, is_true: Callable[[], bool], what: str) -> None:
        begin_s = time.monotonic()
        while not is_true():
            self._spin_here()
            self._require_in_time(begin_s, what)

    def _require_in_time(self, begin_s: float, what: str) -> None:
        if time.monotonic() - begin_s > PATIENCE_S:
            raise LoopError(
                f"waited {PATIENCE_S:.0f} s for {what}, in vain; {NODE} says: "
                f"{self._status.detail or 'nothing'}"
            )

    def _on_action(self, action: VLAAction) -> None:
        self._actions.append(action)
        self._answered_ns = stamp_ns(action.header.stamp)

    def _on_status(self, status: VLAStatus) -> None:
        self._status = status

    def _spin_here(self) -> None:
        self._here.spin_once(timeout_sec=POLL_S)

    def _spin_node(self) -> None:
        while not self._is_over:
            self._there.spin_once(timeout_sec=0.05)


def _parameters(values: dict[str, Any]) -> list[Parameter]:
    return [Parameter(name, value=value) for name, value in values.items()]
