"""A camera node without a camera: recorded or rendered frames, published at a steady rate.

Publishes `image` (sensor_msgs/Image, rgb8, best effort) and `instruction` (std_msgs/String). Every
frame carries the time at which it is published, as a live camera's would.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String

from openvla_ros.errors import OpenVLAError
from openvla_ros.ros.frame_sources import STILL_S, FrameSource, open_frame_source
from openvla_ros.ros.spinning import spin_until_shutdown

FRAME_ID = "camera_color_optical_frame"
INSTRUCTION_REPEAT_S = 1.0  # `instruction` is volatile: a node that starts late hears the next one


class CameraNode(Node):
    """Publishes one frame per period, and the instruction when it changes and once a second."""

    def __init__(self, source: FrameSource, rate_hz: float, instruction: str = "") -> None:
        """Start publishing.

        Args:
            source: Where frames come from.
            rate_hz: Frames per second.
            instruction: Sent instead of the source's own instructions, unless it is "".
        """
        super().__init__("openvla_camera")
        self._frames = source.frames(rate_hz)
        self._fixed_instruction = instruction
        self._repeat_every = max(1, round(INSTRUCTION_REPEAT_S * rate_hz))
        self._count = 0
        self._last_instruction = ""
        self._image_publisher = self.create_publisher(
            Image, "image", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        )
        self._instruction_publisher = self.create_publisher(String, "instruction", 1)
        self.get_logger().info(f"{rate_hz:g} Hz from {source.description}")
        self.create_timer(1.0 / rate_hz, self._publish_next)

    def _publish_next(self) -> None:
        frame = next(self._frames)
        instruction = self._fixed_instruction or frame.instruction
        is_new = instruction != self._last_instruction
        if instruction and (is_new or self._count % self._repeat_every == 0):
            self._instruction_publisher.publish(String(data=instruction))
        self._last_instruction = instruction
        self._count += 1
        message = rgb_to_message(frame.image)
        message.header.stamp = self.get_clock().now().to_msg()
        message.header.frame_id = FRAME_ID
        self._image_publisher.publish(message)


def rgb_to_message(image: np.ndarray) -> Image:
    """Return an rgb8 message of an (H, W, 3) uint8 RGB picture, without stamp."""
    height, width, _ = image.shape
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width, is_bigendian=0)
    message.data = np.ascontiguousarray(image).tobytes()
    return message


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node until it is interrupted; returns a process exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bag", type=Path, help="rosbag2 to play (default: sample data)")
    parser.add_argument("--image-topic", default="", help="topic in the bag")
    parser.add_argument("--instruction-topic", default="", help="topic in the bag")
    parser.add_argument("--instruction", default="", help="send this instead of the source's own")
    parser.add_argument("--rate", type=float, default=5.0, help="frames per second")
    parser.add_argument("--still", type=float, default=STILL_S, help="seconds per still picture")
    own, ros = parser.parse_known_args(arguments)
    try:
        source = open_frame_source(own.bag, own.image_topic, own.instruction_topic, own.still)
    except OpenVLAError as error:
        print(f"camera: {error}", file=sys.stderr)
        return 1
    rclpy.init(args=ros)
    return spin_until_shutdown(lambda: CameraNode(source, own.rate, own.instruction))


if __name__ == "__main__":
    sys.exit(main())
