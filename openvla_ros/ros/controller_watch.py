"""Who follows the command of the arm, and who else gives one: asked of the ROS graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock
from rclpy.qos import DurabilityPolicy

from openvla_ros.config import NodeConfig
from openvla_ros.control.states import Reason, State
from openvla_ros.control.supervisor import Verdict
from openvla_ros.ros.guards import guarded_callback
from openvla_ros.ros.session import Session

PERIOD_S = 0.2
PATIENCE_S = 5.0  # at activation: two processes may take seconds to discover each other
#: Nodes that listen to everything and move nothing, by the beginning of their names. A subscriber
#: without a name counts as a controller: a node that was created again under its old name keeps
#: none (rclpy), and motion must not end for that. One that turns out to be a listener ends it then.
LISTENERS = (
    "_ros2cli",
    "rosbag2",
    "rqt",
    "rviz",
    "plotjuggler",
    "foxglove",
    "rosbridge",
    "openvla_demo",
    "openvla_foxglove",
    "openvla_monitor",
    "openvla_node",
    "openvla_record",
)


class ControllerWatch:
    """Looks at the command topic a few times a second, and tells the session what it sees."""

    def __init__(self, node: Any, session: Callable[[], Session | None], clock: Clock) -> None:
        """Start to look.

        Args:
            node: The node.
            session: Returns the current session, or None.
            clock: Steady.
        """
        self._node = node
        self._session = session
        node.create_timer(
            PERIOD_S,
            guarded_callback(node, self._tell),
            MutuallyExclusiveCallbackGroup(),
            clock=clock,
        )

    def look(self, config: NodeConfig) -> tuple[str, str]:
        """Return why nobody follows the command, and who else gives one, in words; "" = all well.

        Without `require_controller` it does not look.
        """
        if not config.operation.require_controller:
            return "", ""
        topic, kind = command_topic(self._node, config.operation.output)
        return self._missing(topic, kind, config.operation.controller_node), self._rival(topic)

    def obstacle(self, config: NodeConfig) -> Verdict | None:
        """Why motion cannot begin, after giving a controller some time to appear; None = it can."""
        if not config.motion.motion_enabled:
            return None
        deadline = time.monotonic() + PATIENCE_S
        missing, rival = self.look(config)
        while (missing or rival) and time.monotonic() < deadline:
            time.sleep(PERIOD_S)
            missing, rival = self.look(config)
        if rival:
            return Verdict(State.READY, Reason.MULTIPLE_PUBLISHERS, rival)
        return Verdict(State.READY, Reason.NO_CONTROLLER, missing) if missing else None

    def _tell(self) -> None:
        session = self._session()
        if session is not None and session.is_active:
            session.check_controller()

    def _missing(self, topic: str, kind: str, wanted: str) -> str:
        names, others = [], []
        for info in self._node.get_subscriptions_info_by_topic(topic):
            is_heard = (
                info.topic_type == kind
                and info.qos_profile.durability != DurabilityPolicy.TRANSIENT_LOCAL
            )
            name = _full_name(info)
            is_controller = (
                name == _with_slash(wanted) if wanted else not info.node_name.startswith(LISTENERS)
            )
            (names if is_heard and is_controller else others).append(name)
        if names:
            return ""
        who = f"'{wanted}' (controller_node)" if wanted else "no controller"
        listening = f"; only {', '.join(sorted(set(others)))} listens" if others else ""
        return (
            f"{who} subscribes to {topic} as {kind}{listening}: start it, or remap the topic to "
            "the one it listens to."
        )

    def _rival(self, topic: str) -> str:
        names = [_full_name(info) for info in self._node.get_publishers_info_by_topic(topic)]
        # With output none the one that streams in our place may publish.
        if len(names) <= 1:
            return ""
        return (
            f"{len(names)} publishers command the arm on {topic} ({', '.join(sorted(names))}): "
            "stop all but one."
        )


def command_topic(node: Any, output: str) -> tuple[str, str]:
    """Return the resolved topic that moves the arm, and its type."""
    if output == "pose":
        return node.resolve_topic_name("~/pose_cmd"), "geometry_msgs/msg/PoseStamped"
    return node.resolve_topic_name("~/twist_cmd"), "geometry_msgs/msg/TwistStamped"


def _full_name(info: Any) -> str:
    return f"{info.node_namespace.rstrip('/')}/{info.node_name}"


def _with_slash(name: str) -> str:
    return name if name.startswith("/") else f"/{name}"
