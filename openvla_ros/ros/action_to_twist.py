"""action_to_twist: the twist in a process of its own, which outlives the process with the GPU.

Subscribes `action`, `status`, `enable` and `teleop_twist` of openvla_node, and `ee_pose`; publishes
`~/twist_cmd` at `stream_rate` from the first moment on, zero unless the node moves the arm, and
`~/status`. Run openvla_node with `output: none` beside it. Imports neither torch nor transformers.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter
from std_srvs.srv import Trigger

from openvla_ros.config import NodeConfig
from openvla_ros.control.states import Drop, Reason, State
from openvla_ros.control.supervisor import Verdict
from openvla_ros.errors import ConfigurationError, OpenVLAError
from openvla_ros.messages import stamp_ns
from openvla_ros.msg import VLAAction, VLAStatus
from openvla_ros.ros import qos
from openvla_ros.ros.ee_pose import EndEffector
from openvla_ros.ros.follower import Follower, NodeReport, Order
from openvla_ros.ros.frames import Clocks, Tick
from openvla_ros.ros.guards import guarded_callback
from openvla_ros.ros.operator_inputs import OperatorInputs
from openvla_ros.ros.outgoing import twist_message
from openvla_ros.ros.parameters import changed_config, declare_parameters, read_config
from openvla_ros.ros.process import run
from openvla_ros.ros.publishers import ACKNOWLEDGE_S

NAME = "action_to_twist"
FOLLOWED = "openvla_node"  # in the same namespace
STATUS_PERIOD_S = 0.5
LAST_ZEROS = 5  # one could be lost on its way

#: Parameters of openvla_node that this process uses too; the rest of the file is for the node.
USED = (
    "base_frame",
    "twist_mode",
    "stream_rate",
    "hold_max",
    "decay_time",
    "limits.linear_speed",
    "limits.angular_speed",
    "limits.linear_accel",
    "limits.angular_accel",
    "limits.workspace_min",
    "limits.workspace_max",
    "workspace_margin",
    "ee_pose_source",
    "ee_frame",
    "deadman_required",
    "deadman_timeout",
    "on_instruction_change",
    "max_action_age",
    "node_timeout",
)


class ActionToTwistNode(Node):
    """Moves messages to a `Follower` and back.

    Attributes:
        fatal: Why the process must end: never.
        is_policy_stuck: True when a thread cannot be ended: never.
    """

    fatal = ""
    is_policy_stuck = False

    def __init__(
        self, *, steady_clock: Callable[[], float] = time.monotonic, **node_arguments: Any
    ) -> None:
        """Stream zeros from now on.

        Args:
            steady_clock: Seconds; time-outs and streaming use it, so tests can stop time.
            node_arguments: For `rclpy.node.Node`, e.g. `parameter_overrides`.

        Raises:
            ConfigurationError: A parameter is not usable.
        """
        super().__init__(NAME, **node_arguments)
        declare_parameters(self, USED)
        config = read_config(self)
        _require_base_frame(config)
        clocks = Clocks(lambda: self.get_clock().now().nanoseconds, steady_clock)
        ee_pose = EndEffector(self, steady_clock)
        ee_pose.use(config)
        self._follower = Follower(config, clocks, ee_pose)
        self._reported: Verdict | None = None
        self._stopping = threading.Lock()
        self._is_over = False
        self._twist = self.create_publisher(TwistStamped, "~/twist_cmd", qos.TWIST)
        self._status = self.create_publisher(VLAStatus, "~/status", qos.LATCHED)
        self._create_inputs()
        self._create_timers(config)
        self.add_on_set_parameters_callback(self._on_parameters)

    def _create_inputs(self) -> None:
        for kind, topic, callback, profile in (
            (VLAStatus, f"{FOLLOWED}/status", self._on_status, qos.LATCHED),
            (VLAAction, f"{FOLLOWED}/action", self._on_action, qos.ACTION),
        ):
            self.create_subscription(
                kind,
                topic,
                guarded_callback(self, callback),
                profile,
                callback_group=MutuallyExclusiveCallbackGroup(),
                event_callbacks=qos.NO_EVENTS,
            )
        # The node's own: the switch must also work while the node hangs.
        OperatorInputs(self, lambda: self._follower, FOLLOWED)
        operator = MutuallyExclusiveCallbackGroup()
        for name, answer in (("start", self._on_start), ("stop", self._on_stop)):
            self.create_service(Trigger, f"~/{name}", answer, callback_group=operator)

    def _create_timers(self, config: NodeConfig) -> None:
        # Steady: a bag that stops playing stops ROS time, and must not stop the zeros.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        for period_s, callback in (
            (1.0 / config.motion.stream_rate, self._stream),
            (STATUS_PERIOD_S, self._publish_status),
        ):
            group = MutuallyExclusiveCallbackGroup()
            self.create_timer(period_s, guarded_callback(self, callback), group, clock=clock)
        backwards = Duration(nanoseconds=-1)
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=backwards, on_clock_change=True),
            post_callback=lambda _: self._follower.clock_jumped(),
        )

    # Inputs -------------------------------------------------------------------------------------

    def _on_status(self, message: VLAStatus) -> None:
        self._follower.report(
            NodeReport(
                stamp_ns=stamp_ns(message.header.stamp),
                state=State(message.state),
                reason=Reason(message.reason),
                motion_enabled=message.motion_enabled,
                instruction=message.instruction,
            )
        )

    def _on_action(self, message: VLAAction) -> None:
        self._follower.order(
            Order(
                image_ns=stamp_ns(message.header.stamp),
                decided_ns=stamp_ns(message.inference_end),
                frame_id=message.header.frame_id,
                steps=np.array(message.steps, dtype=np.float64).reshape(-1, 6),
                step_s=message.action_dt,
                drop=Drop(message.drop_reason),
            )
        )

    def _on_start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._follower.release()
        response.success = True
        return response

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._follower.hold()
        response.success, response.message = True, "stopped; ~/start goes on."
        return response

    def _on_parameters(self, changes: list[RosParameter]) -> SetParametersResult:
        try:
            config = changed_config(self, changes, is_unconfigured=False)
            if config is not None:
                self._follower.configure(config)
        except OpenVLAError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    # Output -------------------------------------------------------------------------------------

    def _stream(self) -> None:
        verdict = self._follower.tick(self._publish_twist)
        if verdict != self._reported:
            self._publish_status()

    def _publish_twist(self, tick: Tick) -> None:
        frame = self._follower.config.motion.base_frame
        self._twist.publish(twist_message(tick.twist, self.get_clock().now().to_msg(), frame))

    def _publish_status(self) -> None:
        verdict, node = self._follower.verdict(), self._follower.node_report
        message = VLAStatus()
        message.header.stamp = self.get_clock().now().to_msg()
        message.state, message.reason = int(verdict.state), int(verdict.reason)
        message.detail = verdict.detail
        message.motion_enabled = node is not None and node.motion_enabled
        message.instruction = "" if node is None else node.instruction
        for name in ("image_age", "last_latency", "mean_latency", "max_latency"):
            setattr(message, name, math.nan)
        self._status.publish(message)
        if verdict != self._reported:
            self._reported = verdict
            text = f"{verdict.state.name} {verdict.reason.name} {verdict.detail}".rstrip()
            # Two calls in two places: rclpy remembers the level of a place.
            if verdict.reason is Reason.OK or verdict.state is State.IDLE:
                self.get_logger().info(text)
            else:
                self.get_logger().warning(text)

    # The process --------------------------------------------------------------------------------

    def stop_for(self, detail: str) -> None:
        """Stop the arm until ~/start, because something broke."""
        self._follower.fail(detail)

    def stop_streaming(self) -> None:
        """End motion; the last twist that has left is zero."""
        with self._stopping:
            if self._is_over:
                return
            self._is_over = True
            self._follower.end()
            for _ in range(LAST_ZEROS):
                self._publish_twist(Tick.zero())
                time.sleep(1.0 / self._follower.config.motion.stream_rate)
            self._twist.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE_S))

    def trigger_shutdown(self) -> None:
        """Nothing is left to do: this is no lifecycle node."""


def _require_base_frame(config: NodeConfig) -> None:
    if not config.motion.base_frame:
        raise ConfigurationError(
            "base_frame is empty: give action_to_twist the parameter file of openvla_node, or set "
            "base_frame to the frame in which the robot's controller expects the twist."
        )


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT, SIGTERM or SIGHUP; return the exit code."""
    return run(ActionToTwistNode, args, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
