"""Where the end effector is: from a topic, or from tf2."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.time import Time

from openvla_ros.config import NodeConfig
from openvla_ros.control.pose import EndEffectorPose
from openvla_ros.errors import ConfigurationError
from openvla_ros.messages import stamp_ns
from openvla_ros.ros import qos
from openvla_ros.ros.frames import PoseSource, UnknownPose, age_s

TOPIC = "ee_pose"


class PoseTopic:
    """PoseStamped on `ee_pose`."""

    def __init__(self, node: Any, steady_s: Callable[[], float] = time.monotonic) -> None:
        """Subscribe; poses in another frame than `base_frame` are refused once it is set."""
        self.base_frame = ""
        self.problem = ""
        self._clock = node.get_clock()
        self._steady_s = steady_s
        self._newest: tuple[PoseStamped, float] | None = None
        self._subscription = node.create_subscription(
            PoseStamped,
            TOPIC,
            self._on_pose,
            qos.NEWEST,
            callback_group=MutuallyExclusiveCallbackGroup(),
            event_callbacks=qos.NO_EVENTS,
        )
        self._topic = self._subscription.topic_name

    def read(self) -> EndEffectorPose | None:
        """Return the newest pose; its age is by stamp or by arrival, whichever is worse."""
        newest = self._newest
        self.problem = self._problem_of(newest)
        if newest is None or self.problem:
            return None
        message, received_s = newest
        by_stamp_s = age_s(stamp_ns(message.header.stamp), self._clock.now().nanoseconds)
        by_arrival_s = self._steady_s() - received_s  # grows also when ROS time stands still
        position, turn = message.pose.position, message.pose.orientation
        return EndEffectorPose(
            np.array([position.x, position.y, position.z]),
            np.array([turn.x, turn.y, turn.z, turn.w]),
            by_stamp_s if abs(by_stamp_s) > by_arrival_s else by_arrival_s,
        )

    def _problem_of(self, newest: tuple[PoseStamped, float] | None) -> str:
        if newest is None:
            return f"no pose of the end effector has arrived on {self._topic}"
        header = newest[0].header
        if header.frame_id != self.base_frame:
            return (
                f"the poses on {self._topic} are given in the frame '{header.frame_id}', and "
                f"base_frame is '{self.base_frame}'"
            )
        if stamp_ns(header.stamp) == 0:
            return f"the poses on {self._topic} carry no time stamp (header.stamp is 0)"
        return ""

    def _on_pose(self, message: PoseStamped) -> None:
        self._newest = (message, self._steady_s())


class PoseTransform:
    """The transform from base_frame to ee_frame, by tf2.

    Raises:
        ConfigurationError: tf2_ros is not installed.
    """

    def __init__(self, node: Any, base_frame: str, ee_frame: str) -> None:
        """Listen to /tf and /tf_static."""
        try:
            import tf2_ros
        except ImportError as error:
            raise ConfigurationError(
                f"ee_pose_source is 'tf' and tf2_ros cannot be imported ({error}): install "
                "ros-<distro>-tf2-ros-py, or set ee_pose_source to 'topic' and publish PoseStamped "
                f"on `{TOPIC}`."
            ) from None
        self.problem = ""
        self.frames = (base_frame, ee_frame)
        self._clock = node.get_clock()
        self._failures = (tf2_ros.TransformException,)
        self._buffer = tf2_ros.Buffer()
        # No thread of its own: the node's executor delivers the transforms.
        self._listener = tf2_ros.TransformListener(self._buffer, node, spin_thread=False)

    def read(self) -> EndEffectorPose | None:
        """Return the newest transform; its age is by its stamp."""
        base, end = self.frames
        try:
            found = self._buffer.lookup_transform(base, end, Time())  # 0 = the newest
        except self._failures as error:
            self.problem = f"tf knows no transform from '{base}' to '{end}': {error}"
            return None
        self.problem = ""
        moved, turn = found.transform.translation, found.transform.rotation
        return EndEffectorPose(
            np.array([moved.x, moved.y, moved.z]),
            np.array([turn.x, turn.y, turn.z, turn.w]),
            age_s(stamp_ns(found.header.stamp), self._clock.now().nanoseconds),
        )


class EndEffector:
    """The pose source that the parameters name; it is kept when a policy is unloaded."""

    def __init__(self, node: Any, steady_s: Callable[[], float] = time.monotonic) -> None:
        """Know nothing until `use`."""
        self._node = node
        self._steady_s = steady_s
        self._topic: PoseTopic | None = None
        self._transform: PoseTransform | None = None
        self._source: PoseSource = UnknownPose()

    @property
    def problem(self) -> str:
        """Why the last `read` returned None, in words; "" when it did not."""
        return self._source.problem

    def read(self) -> EndEffectorPose | None:
        """Return the newest pose, in base_frame, with its age; None when there is no usable one."""
        return self._source.read()

    def use(self, config: NodeConfig) -> None:
        """Follow the parameters.

        Raises:
            ConfigurationError: A package is missing.
        """
        base_frame, ee_frame = config.motion.base_frame, config.operation.ee_frame
        if config.operation.ee_pose_source == "topic":
            if self._topic is None:
                self._topic = PoseTopic(self._node, self._steady_s)
            self._topic.base_frame = base_frame
            self._source = self._topic
            return
        if self._transform is None:
            self._transform = PoseTransform(self._node, base_frame, ee_frame)
        self._transform.frames = (base_frame, ee_frame)
        self._source = self._transform
