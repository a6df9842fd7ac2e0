"""What action_to_twist decides: stream the actions that openvla_node executes, stop when it does.

It hears what the node says and asks nobody. One lock guards it; no rclpy and no torch in here.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from openvla_ros.config import NodeConfig
from openvla_ros.control.motion import MotionPlan, MotionStage
from openvla_ros.control.states import Drop, Reason, State
from openvla_ros.control.supervisor import Verdict
from openvla_ros.control.teleoperation import Teleoperation
from openvla_ros.ros.frames import Clocks, PoseSource, Tick, UnknownPose, age_s
from openvla_ros.ros.streaming import LATE_TICK_S
from openvla_ros.types import ActionSpec

# The node says so in these states, and nothing of its last action shall be left.
_RESTING = (State.UNCONFIGURED, State.LOADING, State.READY)
_NODE_STANDS = (Drop.DRY_RUN, Drop.HOLD, Drop.FAULT)

#: The node has done every conversion: metres and radians along base axes, clipped and scaled.
_AS_PUBLISHED = ActionSpec(
    unnorm_key="as published by openvla_node",
    kind="eef_delta",
    translation_frame="base",
    rotation_frame="base",
    rotation_form="rotvec",
    translation_unit_m=1.0,
    rotation_unit_rad=1.0,
)


@dataclass(frozen=True)
class NodeReport:
    """What the node says about itself; stamped in ROS nanoseconds."""

    stamp_ns: int
    state: State
    reason: Reason
    motion_enabled: bool
    instruction: str = ""

    @property
    def moves(self) -> bool:
        """True when actions of the node are meant to move the arm."""
        return self.state is State.RUNNING and self.motion_enabled

    @property
    def is_disarmed(self) -> bool:
        """True when somebody has to enable motion before the arm moves."""
        return not self.motion_enabled or self.state in _RESTING


@dataclass(frozen=True)
class Order:
    """One answer of the node, as published.

    Attributes:
        image_ns: Stamp of the image.
        decided_ns: When the node had the answer.
        frame_id: Axes of the displacements.
        steps: (K, 6) m and rad.
        step_s: Duration of one step.
        drop: Drop.NONE when the node executed it, else why not.
    """

    image_ns: int
    decided_ns: int
    frame_id: str
    steps: np.ndarray
    step_s: float
    drop: Drop


class Follower:
    """Owns the motion stage of the split process.

    It moves only while the node says RUNNING with motion enabled, is heard, and was seen disarmed
    since this process began: a process that is started again in the middle of a motion stands still
    until `release`.
    """

    def __init__(
        self,
        config: NodeConfig,
        clocks: Clocks,
        ee_pose: PoseSource | None = None,
    ) -> None:
        """Stand still.

        Args:
            config: Checked parameters.
            clocks: Time, from outside.
            ee_pose: Where the end effector is.
        """
        self.config = config
        self._clocks = clocks
        self._ee_pose = ee_pose or UnknownPose()
        self._stage = MotionStage(_AS_PUBLISHED, config.motion, config.gripper)
        self._lock = threading.RLock()
        self._is_armed = False
        self._held: Verdict | None = None
        self._teleoperation = Teleoperation()
        self._pressed_s: float | None = None  # when the dead-man switch said last that it is held
        self._node: NodeReport | None = None
        self._heard_s: float | None = None
        self._clock_problem = ""
        self._refused: Verdict | None = None  # the last action, and why it was not streamed
        self._was_moving = False
        self._last_tick_s: float | None = None
        self._last_order_ns: int | None = None
        self._is_over = False

    # Commands -----------------------------------------------------------------------------------

    def hold(self) -> None:
        """The operator stops the arm: zero from the next tick on."""
        with self._lock:
            self._held = Verdict(State.HOLD, Reason.OPERATOR, "stopped; call ~/start to go on.")
            self._stage.stop()

    def fail(self, detail: str) -> None:
        """Stop until `release`: something broke in this process."""
        with self._lock:
            self._held = Verdict(State.FAULT, Reason.MODEL_ERROR, f"{detail}. Call ~/start.")
            self._stage.stop()

    def release(self) -> None:
        """The operator lets the arm move again, as soon as the node moves it."""
        with self._lock:
            self._held = None
            self._is_armed = True
            self._teleoperation.forget()

    def switch_deadman(self, is_pressed: bool) -> None:
        """The dead-man switch says that it is held down, or that it is not."""
        with self._lock:
            self._pressed_s = self._clocks.steady_s() if is_pressed else None

    def steer(self, twist: np.ndarray, frame: str, stamp: int) -> str:
        """Somebody steers the arm from now until `release`; return why it does not follow, or "".

        Args:
            twist: (6,) m/s and rad/s, axes of `frame`.
            frame: Must be base_frame.
            stamp: When it was sent, nanoseconds of ROS time.
        """
        with self._lock:
            if self._held is None:
                self._held = Verdict(
                    State.HOLD, Reason.TELEOPERATION, "somebody steers; call ~/start to go on."
                )
            if not self._is_steered:
                return self._held.detail
            if not self._is_armed or self._node is None or not self._node.motion_enabled:
                return "motion is not enabled."
            return self._teleoperation.receive(
                twist,
                frame,
                age_s(stamp, self._clocks.ros_ns()),
                self._clocks.steady_s(),
                self.config.motion.base_frame,
            )

    def end(self) -> None:
        """When this returns, `tick` publishes nothing any more."""
        with self._lock:
            self._is_over = True
            self._stage.reset()

    def configure(self, config: NodeConfig) -> None:
        """Use new limits from now on."""
        with self._lock:
            self.config = config
            self._stage.configure(config.motion, config.gripper)

    def clock_jumped(self) -> None:
        """ROS time jumped: what was said before has no age any more."""
        with self._lock:
            self._node = self._heard_s = self._last_order_ns = None
            self._stage.stop()

    # What the node says --------------------------------------------------------------------------

    def report(self, report: NodeReport) -> None:
        """Follow what the node says about itself."""
        with self._lock:
            if not self._hear(report.stamp_ns):
                return
            last = self._node
            if last is not None and report.stamp_ns < last.stamp_ns <= self._clocks.ros_ns():
                return  # it was said before the action that has overtaken it
            self._node = report
            self._is_armed = self._is_armed or report.is_disarmed
            was_steered = last is not None and last.reason is Reason.TELEOPERATION
            if self._is_steered and was_steered and report.state is State.RUNNING:
                self._held = None  # ~/start of the node ends it for both
            is_news = last is not None and last.instruction != report.instruction
            if is_news and self.config.operation.on_instruction_change == "restart":
                self._stage.fade(self._clocks.steady_s())

    def order(self, order: Order) -> None:
        """Stream an action that the node executes; any other moves nothing."""
        with self._lock:
            if not self._hear(order.decided_ns) or self._node is None:
                return
            if order.drop is not Drop.NONE:
                if order.drop in _NODE_STANDS:
                    self._stage.fade(self._clocks.steady_s())
                return
            if order.decided_ns >= self._node.stamp_ns:
                # Whoever executes is RUNNING; the status that says so may still be on its way.
                self._node = dataclasses.replace(
                    self._node,
                    stamp_ns=order.decided_ns,
                    state=State.RUNNING,
                    reason=Reason.OK,
                    motion_enabled=True,
                )
            self._refused = self._refusal(order)
            is_repeated = order.decided_ns == self._last_order_ns
            if self._refused is not None or is_repeated or not self.verdict().may_move:
                return
            self._last_order_ns = order.decided_ns
            self._stage.spec = dataclasses.replace(_AS_PUBLISHED, action_hz=1.0 / order.step_s)
            self._stage.execute(MotionPlan(steps=order.steps), self._clocks.steady_s())

    def _hear(self, stamp_ns: int) -> bool:
        """Book a sign of life; return False when it is too old, or its clock is another one."""
        age, limit_s = age_s(stamp_ns, self._clocks.ros_ns()), self.config.split.node_timeout
        if abs(age) <= limit_s:
            self._heard_s = self._clocks.steady_s()
            self._clock_problem = ""
            return True
        where = "in the past" if age > 0.0 else "in the future"
        self._clock_problem = (
            f"messages of openvla_node are stamped {abs(age):.2f} s {where}: synchronise the "
            "clocks, or give both processes the same use_sim_time."
        )
        return False

    def _refusal(self, order: Order) -> Verdict | None:
        """Why an executed action is not streamed; the arm finishes the one before."""
        reason, detail = Reason.BAD_PARAMETER, ""
        steps, base_frame = order.steps, self.config.motion.base_frame
        age, limit_s = (
            age_s(order.image_ns, self._clocks.ros_ns()),
            self.config.timing.max_action_age,
        )
        if order.frame_id != base_frame:
            detail = (
                f"actions are given in '{order.frame_id}', base_frame of action_to_twist is "
                f"'{base_frame}': give both processes the same parameter file."
            )
        elif len(steps) == 0 or not np.isfinite(steps).all() or not 0.0 < order.step_s < math.inf:
            reason = Reason.NON_FINITE
            detail = f"an action of the steps {steps.tolist()} in {order.step_s} s each."
        elif not age <= limit_s:
            reason = Reason.STALE_IMAGE
            detail = f"the image of an action is {age:.2f} s old; max_action_age is {limit_s} s."
        return Verdict(State.RUNNING, reason, detail) if detail else None

    # Output -------------------------------------------------------------------------------------

    def verdict(self) -> Verdict:
        """What this process does now, and why."""
        with self._lock:
            now_s, limit_s = self._clocks.steady_s(), self.config.split.node_timeout
            if self._is_released(now_s):
                return Verdict(
                    State.HOLD, Reason.DEADMAN, "the dead-man switch (~/enable) is not held down."
                )
            if self._held is not None:
                return self._held
            if self._heard_s is None or now_s - self._heard_s > limit_s:
                return self._silent(now_s)
            if self._node is None:
                return Verdict(State.IDLE, Reason.OK, "openvla_node has not said its state yet.")
            if not self._is_armed:
                return Verdict(
                    State.HOLD,
                    Reason.OPERATOR,
                    "action_to_twist came up while openvla_node was armed: call ~/start here, or "
                    "disable and enable motion there.",
                )
            if not self._node.moves:
                return self._resting(self._node)
            pose = self._ee_pose.read()
            lost = self._stage.pose_obstacle(pose)
            if lost:
                why = self._ee_pose.problem if pose is None else ""
                detail = f"{why}: {lost}" if why else lost
                return Verdict(State.HOLD, Reason.TF_UNAVAILABLE, detail)
            return self._refused or Verdict(State.RUNNING)

    def tick(self, publish: Callable[[Tick], None]) -> Verdict:
        """Publish the twist of this moment and return the verdict it rests on.

        `publish` runs under the lock: no twist can slip out after `end` or `hold` has returned.
        """
        with self._lock:
            verdict = self.verdict()
            if self._is_over:
                return verdict
            now_s, last_s = self._clocks.steady_s(), self._last_tick_s
            self._last_tick_s = now_s
            if last_s is not None and now_s - last_s > LATE_TICK_S:
                self._stage.stop()
            steered = None
            if verdict.reason is Reason.TELEOPERATION:
                steered = self._teleoperation.twist(now_s)
            is_moving = verdict.may_move or steered is not None
            if self._was_moving and not is_moving:
                self._stop(verdict, now_s)
            self._was_moving = is_moving
            pose = self._ee_pose.read()
            if steered is None:
                twist = self._stage.sample(now_s, pose)
            else:
                twist = self._stage.follow(steered, now_s, pose)
            publish(Tick(twist))
            return verdict

    @property
    def node_report(self) -> NodeReport | None:
        """What the node said last; None before that."""
        return self._node

    def _stop(self, verdict: Verdict, now_s: float) -> None:
        is_off = self._node is not None and self._node.is_disarmed
        if verdict.stops_at_once or is_off:
            self._stage.stop()
        else:
            self._stage.fade(now_s)

    @property
    def _is_steered(self) -> bool:
        return self._held is not None and self._held.reason is Reason.TELEOPERATION

    def _is_released(self, now_s: float) -> bool:
        operation = self.config.operation
        if not operation.deadman_required:
            return False
        return self._pressed_s is None or now_s - self._pressed_s > operation.deadman_timeout

    def _silent(self, now_s: float) -> Verdict:
        if self._clock_problem:
            return Verdict(State.HOLD, Reason.CLOCK_JUMP, self._clock_problem)
        if self._heard_s is None:
            return Verdict(State.IDLE, Reason.OK, "openvla_node has not been heard yet.")
        limit_s = self.config.split.node_timeout
        detail = f"openvla_node has been silent for more than {limit_s} s (node_timeout)."
        return Verdict(State.HOLD, Reason.MODEL_HANG, detail)

    @staticmethod
    def _resting(node: NodeReport) -> Verdict:
        if node.state is State.RUNNING:
            return Verdict(
                State.IDLE, Reason.OK, "dry run: motion_enabled of openvla_node is false."
            )
        return Verdict(node.state, node.reason, f"openvla_node is in {node.state.name}.")
