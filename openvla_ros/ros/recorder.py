"""Records topics into an MCAP bag: serialised messages as they come off the wire, undecoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from lifecycle_msgs.msg import TransitionEvent
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64, String

from openvla_ros.data.bag_file import BagFile
from openvla_ros.msg import GripperCommand, VLAAction, VLAStatus

QUEUE_DEPTH = 100  # two seconds of twists: a slow disk loses nothing


@dataclass(frozen=True)
class RecordedTopic:
    """One topic to record.

    Attributes:
        name: Resolved topic name.
        message_class: Its rclpy message class.
        is_latched: The publisher keeps the last message for late subscribers.
        is_best_effort: The publisher does not repeat lost messages.
    """

    name: str
    message_class: type
    is_latched: bool = False
    is_best_effort: bool = False

    @property
    def message_type(self) -> str:
        """Type name as bags store it, such as "std_msgs/msg/String"."""
        package, middle, _ = self.message_class.__module__.split(".", 2)
        return f"{package}/{middle}/{self.message_class.__name__}"

    @property
    def qos(self) -> QoSProfile:
        """Subscription that matches the publisher."""
        return QoSProfile(
            depth=QUEUE_DEPTH,
            reliability=ReliabilityPolicy.BEST_EFFORT
            if self.is_best_effort
            else ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL
            if self.is_latched
            else DurabilityPolicy.VOLATILE,
        )


def demo_topics(node_name: str = "openvla_node") -> tuple[RecordedTopic, ...]:
    """Return everything the demo sends: inputs, answers, commands, state of the mock robot."""
    node = f"/{node_name}"
    return (
        RecordedTopic("/image", Image, is_best_effort=True),
        RecordedTopic("/image/compressed", CompressedImage, is_best_effort=True),
        RecordedTopic("/instruction", String),
        RecordedTopic(f"{node}/action", VLAAction),
        RecordedTopic(f"{node}/twist_cmd", TwistStamped),
        RecordedTopic(f"{node}/gripper_cmd", GripperCommand),
        RecordedTopic(f"{node}/status", VLAStatus, is_latched=True),
        RecordedTopic(f"{node}/active_instruction", String, is_latched=True),
        RecordedTopic(f"{node}/transition_event", TransitionEvent),
        RecordedTopic("/ee_pose", PoseStamped),
        RecordedTopic("/gripper_opening", Float64),
        RecordedTopic("/diagnostics", DiagnosticArray),
    )


class Recorder:
    """Subscribes to topics and appends what arrives to a bag, stamped with the node's time."""

    def __init__(self, node: Node, path: Path, topics: Sequence[RecordedTopic]) -> None:
        """Create the bag and subscribe; messages arrive while the caller spins `node`.

        Raises:
            ConfigurationError: The folder exists, or a definition is missing.
            DependencyError: `rosbags` is not installed.
        """
        self._clock = node.get_clock()
        self.bag = BagFile(path, {topic.name: topic.message_type for topic in topics})
        self._subscriptions: list[Any] = [
            node.create_subscription(
                topic.message_class,
                topic.name,
                partial(self._store, topic.name),
                topic.qos,
                raw=True,
            )
            for topic in topics
        ]

    def _store(self, topic: str, serialized: bytes) -> None:
        now_ns = self._clock.now().nanoseconds
        if now_ns:  # simulated time is 0 until the first /clock
            self.bag.write(topic, now_ns, serialized)

    def close(self) -> None:
        """Flush and close the bag; what arrives later is dropped."""
        self.bag.close()
