"""What comes in from other nodes: camera, instruction, and jumps of ROS time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from openvla_ros.config import NodeConfig
from openvla_ros.errors import InstructionError
from openvla_ros.messages import check_instruction
from openvla_ros.ros import qos
from openvla_ros.ros.guards import guarded_callback
from openvla_ros.ros.session import Session


class Inputs:
    """Hands every message to the session, if there is one, and returns at once.

    Attributes:
        instruction: The active instruction; it outlives sessions.
    """

    def __init__(
        self, node: Any, session: Callable[[], Session | None], announce: Callable[[str], None]
    ) -> None:
        """Listen for instructions and clock jumps.

        Args:
            node: The node.
            session: Returns the current session, or None.
            announce: Tells everybody the instruction that is now active.
        """
        self.instruction = ""
        self._node = node
        self._session = session
        self._announce = announce
        self._images: Any = None
        node.create_subscription(
            String,
            "instruction",
            guarded_callback(node, self._on_instruction),
            qos.INSTRUCTION,
            callback_group=MutuallyExclusiveCallbackGroup(),
        )
        backwards = Duration(nanoseconds=-1)
        self._jump_handle = node.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=backwards, on_clock_change=True),
            post_callback=self._on_clock_jump,
        )

    def subscribe(self, config: NodeConfig) -> None:
        """Listen to what the parameters name."""
        kind, topic = (
            (CompressedImage, "image/compressed")
            if config.inputs.image_transport == "compressed"
            else (Image, "image")
        )
        if self._images is not None:
            # Kept over cleanup: rclpy loses subscriptions that are made again and again.
            if self._images.msg_type is kind:
                return
            self._node.destroy_subscription(self._images)
        self._images = self._node.create_subscription(
            kind,
            topic,
            guarded_callback(self._node, self._on_image),
            qos.IMAGE,
            callback_group=MutuallyExclusiveCallbackGroup(),  # as for the stream timer
            event_callbacks=qos.NO_EVENTS,
        )
        # A camera that publishes under another name looks like no camera at all.
        self._node.get_logger().info(f"images come from {self._node.resolve_topic_name(topic)}")

    def set_instruction(self, text: str) -> None:
        """Follow a checked instruction."""
        session = self._session()
        if session is not None:
            session.set_instruction(text)
        if text != self.instruction:
            self.instruction = text
            self._announce(text)

    def _on_image(self, message: Any) -> None:
        session = self._session()
        if session is not None:
            session.image(message)

    def _on_instruction(self, message: String) -> None:
        try:
            self.set_instruction(check_instruction(message.data))
        except InstructionError as error:
            # Whoever sent it wanted something else than the arm is doing.
            self._node.get_logger().error(f"{error} No instruction is active now.")
            self.set_instruction("")
            session = self._session()
            if session is not None:
                session.refuse_instruction(f"{error} Send another instruction.")

    def _on_clock_jump(self, _: Any) -> None:
        session = self._session()
        if session is not None:
            session.clock_jumped()
