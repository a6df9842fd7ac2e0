"""/diagnostics, in the form of diagnostic_updater: one status per part of the node, once a second.

The library itself is not used: it has no wheel, and a node without apt ROS shall say the same.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from openvla_ros.config import NodeConfig
from openvla_ros.control.supervisor import Verdict
from openvla_ros.ros.health import Health, Snapshot, examine
from openvla_ros.ros.inference import gpu_memory_bytes
from openvla_ros.ros.session import Session
from openvla_ros.types import DecodingStatistics

PERIOD_S = 1.0
TWIST_TOPIC = "~/twist_cmd"


class Diagnostics:
    """Publishes the health of a node."""

    def __init__(
        self,
        node: Node,
        session: Callable[[], Session | None],
        *,
        verdict: Callable[[], Verdict],
        config: Callable[[], NodeConfig],
        steady_s: Callable[[], float],
        gripper_trouble: Callable[[], str] = lambda: "",
    ) -> None:
        """Publish from now on, whatever lifecycle state the node is in.

        Args:
            node: The node.
            session: Returns the current session, or None.
            verdict: Returns what the node does now.
            config: Returns its parameters.
            steady_s: Steady seconds.
            gripper_trouble: Returns what is wrong with the gripper, or "".
        """
        self._node = node
        # With the namespace: two robots in one graph are told apart.
        self._name = node.get_fully_qualified_name().lstrip("/")
        self._session = session
        self._verdict = verdict
        self._config = config
        self._steady_s = steady_s
        self._gripper_trouble = gripper_trouble
        self._active_since_s: float | None = None
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 1)
        node.create_timer(
            PERIOD_S,
            self._publish,
            MutuallyExclusiveCallbackGroup(),
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    def _publish(self) -> None:
        try:
            parts = examine(self._snapshot())
        except Exception as error:  # what only watches must not stop an arm, nor a process
            self._node.get_logger().error(f"no diagnostics: {error!r}", throttle_duration_sec=10.0)
            return
        message = DiagnosticArray(status=[self._status(part) for part in parts])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)

    def _snapshot(self) -> Snapshot:
        session, now_s = self._session(), self._steady_s()
        is_active = session is not None and session.is_active
        if not is_active:
            self._active_since_s = None
        elif self._active_since_s is None:
            self._active_since_s = now_s
        topic = self._node.resolve_topic_name(TWIST_TOPIC)
        return Snapshot(
            verdict=self._verdict(),
            is_active=is_active,
            active_s=now_s - (self._active_since_s if is_active else now_s),
            config=self._config(),
            info=None if session is None else session.policy.info,
            ledger=None if session is None else session.ledger,
            report=None if session is None else session.report(),
            image_age_s=math.nan if session is None else session.image_age_s(),
            now_s=now_s,
            twist_topic=topic,
            subscribers=self._node.count_subscribers(topic),
            publishers=self._node.count_publishers(topic),
            gpu_bytes=gpu_memory_bytes(),
            gripper_trouble=self._gripper_trouble(),
            statistics=DecodingStatistics() if session is None else session.policy.statistics,
        )

    def _status(self, health: Health) -> Any:
        return DiagnosticStatus(
            level=bytes([health.level]),
            name=f"{self._name}: {health.part}",
            message=health.message,
            hardware_id=socket.gethostname(),
            values=[KeyValue(key=key, value=value) for key, value in health.values.items()],
        )
