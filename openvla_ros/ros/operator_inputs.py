"""What a person sends while the arm works: the dead-man switch, and a twist to steer by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from std_msgs.msg import Bool

from openvla_ros.messages import stamp_ns
from openvla_ros.ros import qos
from openvla_ros.ros.guards import guarded_callback
from openvla_ros.ros.session import Session

REPEAT_S = 2.0  # a refused twist comes 50 times a second, and is told this seldom


class OperatorInputs:
    """~/enable and ~/teleop_twist of a node."""

    def __init__(self, node: Any, session: Callable[[], Session | None], prefix: str = "~") -> None:
        """Subscribe.

        Args:
            node: The node.
            session: Returns the current session, or None.
            prefix: Whose topics these are.
        """
        self._node = node
        self._session = session
        for kind, topic, callback, profile in (
            (Bool, f"{prefix}/enable", self._on_enable, qos.ENABLE),
            (TwistStamped, f"{prefix}/teleop_twist", self._on_twist, qos.NEWEST),
        ):
            node.create_subscription(
                kind,
                topic,
                guarded_callback(node, callback),
                profile,
                # Each of its own: a flood of twists must not delay the switch.
                callback_group=MutuallyExclusiveCallbackGroup(),
                event_callbacks=qos.NO_EVENTS,
            )

    def _on_enable(self, message: Bool) -> None:
        session = self._session()
        if session is not None:
            session.switch_deadman(message.data)

    def _on_twist(self, message: TwistStamped) -> None:
        session = self._session()
        if session is None:
            return
        v, w = message.twist.linear, message.twist.angular
        twist = np.array([v.x, v.y, v.z, w.x, w.y, w.z])
        header = message.header
        refusal = session.steer(twist, header.frame_id, stamp_ns(header.stamp))
        if refusal:
            self._node.get_logger().error(
                f"the twist on ~/teleop_twist is refused: {refusal}",
                throttle_duration_sec=REPEAT_S,
            )
