"""`openvla-ros monitor --foxglove`: every topic for Foxglove, over a WebSocket, without apt ROS.

Messages pass as they were serialised; nothing is decoded. A topic is subscribed to only while a
viewer shows it, so pictures that nobody looks at are neither drawn nor sent. The bridge reads: no
viewer can publish, call a service or set a parameter through it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import foxglove
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.message_text import schema_text

NODE_NAME = "openvla_foxglove"  # the node under watch knows it, and does not take it for a robot
DISCOVERY_PERIOD_S = 1.0
LOOK_PERIOD_S = 0.2
QUEUE = 10


@dataclass
class Bridged:
    """One topic: its channel on the WebSocket, and the subscription while somebody looks."""

    topic: str
    message_class: type
    channel: foxglove.Channel
    subscription: Any = None


class FoxgloveBridge(Node):
    """Offers every topic of the ROS graph to Foxglove.

    Attributes:
        port: Where the server listens.
        bridged: By topic.
    """

    def __init__(self, host: str, port: int, **node_arguments: Any) -> None:
        """Start the server.

        Args:
            host: Address to listen on; 127.0.0.1 = this machine only, 0.0.0.0 = every network.
            port: TCP port; 0 = any free one.
            node_arguments: For `rclpy.node.Node`.

        Raises:
            ConfigurationError: The address is in use, or not one of this machine.
        """
        super().__init__(NODE_NAME, **node_arguments)
        self.bridged: dict[str, Bridged] = {}
        self._unknown: set[str] = set()
        self._foxglove = foxglove.Context()
        try:
            self._server = foxglove.start_server(
                name="openvla_ros", host=host, port=port, context=self._foxglove
            )
        except RuntimeError as error:
            self.destroy_node()
            raise ConfigurationError(
                f"Foxglove's server cannot listen on {host}:{port} ({error}); choose another "
                "--port, or end the program that uses it."
            ) from error
        self.port = self._server.port
        self._discover()
        self.create_timer(DISCOVERY_PERIOD_S, self._discover)
        self.create_timer(LOOK_PERIOD_S, self._follow_viewers)

    def destroy_node(self) -> None:
        """Close the server and the node."""
        server = getattr(self, "_server", None)
        if server is not None:
            server.stop()
        super().destroy_node()

    def _discover(self) -> None:
        for topic, types in self.get_topic_names_and_types():
            # Parts of actions have no definition of their own, and two types make no channel.
            if topic in self.bridged or len(types) != 1 or "/msg/" not in types[0]:
                continue
            if types[0] not in self._unknown:
                self._add(topic, types[0])

    def _add(self, topic: str, type_name: str) -> None:
        package, _, name = type_name.split("/")
        try:
            message_class = getattr(importlib.import_module(f"{package}.msg"), name)
            text = schema_text(type_name)
        except (ImportError, AttributeError, ConfigurationError) as error:
            self._unknown.add(type_name)
            self.get_logger().warning(f"{topic} is not shown: {error}")
            return
        channel = foxglove.Channel(
            topic,
            message_encoding="cdr",
            schema=foxglove.Schema(name=type_name, encoding="ros2msg", data=text.encode()),
            context=self._foxglove,
        )
        self.bridged[topic] = Bridged(topic, message_class, channel)

    def _follow_viewers(self) -> None:
        for bridged in self.bridged.values():
            is_watched = bridged.channel.has_sinks()
            if is_watched and bridged.subscription is None:
                bridged.subscription = self.create_subscription(
                    bridged.message_class,
                    bridged.topic,
                    bridged.channel.log,
                    self._qos(bridged.topic),
                    raw=True,
                )
            elif not is_watched and bridged.subscription is not None:
                self.destroy_subscription(bridged.subscription)
                bridged.subscription = None

    def _qos(self, topic: str) -> QoSProfile:
        """As reliable, and as latched, as every publisher of the topic is."""
        offered = [info.qos_profile for info in self.get_publishers_info_by_topic(topic)]
        is_reliable = all(q.reliability is ReliabilityPolicy.RELIABLE for q in offered)
        is_latched = all(q.durability is DurabilityPolicy.TRANSIENT_LOCAL for q in offered)
        return QoSProfile(
            depth=QUEUE,
            reliability=(
                ReliabilityPolicy.RELIABLE if is_reliable else ReliabilityPolicy.BEST_EFFORT
            ),
            durability=(
                DurabilityPolicy.TRANSIENT_LOCAL
                if is_latched and offered
                else DurabilityPolicy.VOLATILE
            ),
        )
