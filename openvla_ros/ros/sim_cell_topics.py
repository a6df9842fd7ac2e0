"""What the simulated cell says: pictures, poses, joints, its task."""

from __future__ import annotations

import importlib.util
from typing import Any

import cv2
import numpy as np
from geometry_msgs.msg import PoseStamped, TransformStamped
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, JointState
from std_msgs.msg import Bool, Float64, String

from openvla_ros.control.pose import rotation_to_quaternion
from openvla_ros.errors import ConfigurationError
from openvla_ros.ros import qos
from openvla_ros.ros.camera import FRAME_ID as CAMERA_FRAME
from openvla_ros.ros.camera import rgb_to_message
from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.cell_model import camera_pose, focal_length_pixels

TRANSPORTS = ("raw", "compressed")
JPEG_QUALITY = 95


class CellPublishers:
    """Publishers of one cell."""

    def __init__(
        self,
        node: Node,
        cell: SimCell,
        *,
        base_frame: str,
        size: tuple[int, int],
        transport: str,
        has_clock: bool,
    ) -> None:
        """Advertise everything.

        Args:
            node: Publishes.
            cell: What is published.
            base_frame: Frame of the poses.
            size: Width and height of a picture.
            transport: "raw" or "compressed".
            has_clock: Also /clock.

        Raises:
            ConfigurationError: No such transport.
        """
        if transport not in TRANSPORTS:
            raise ConfigurationError(
                f"image_transport '{transport}' is not one of: {', '.join(TRANSPORTS)}."
            )
        self._cell = cell
        self._base_frame = base_frame
        self._width, self._height = size
        self._is_raw = transport == "raw"
        publisher = node.create_publisher
        image = rgb_to_message(np.zeros((1, 1, 3), np.uint8))
        self._image = (
            publisher(type(image), "image", qos.IMAGE)
            if self._is_raw
            else publisher(CompressedImage, "image/compressed", qos.IMAGE)
        )
        self._view = publisher(CompressedImage, "view/compressed", qos.IMAGE)
        self._info = publisher(CameraInfo, "camera_info", qos.IMAGE)
        self._joints = publisher(JointState, "joint_states", 1)
        self._pose = publisher(PoseStamped, "ee_pose", 1)
        self._opening = publisher(Float64, "gripper_opening", 1)
        self._done = publisher(Bool, "task_done", 1)
        self._instruction = publisher(String, "instruction", 1)
        self._clock = publisher(Clock, "/clock", 1) if has_clock else None
        self._static: Any = None
        if importlib.util.find_spec("tf2_msgs") is not None:
            from tf2_msgs.msg import TFMessage

            self._tf_message = TFMessage
            self._static = publisher(TFMessage, "/tf_static", qos.LATCHED)

    def publish_state(self, stamp: Any) -> None:
        """Publish time, joints, pose and opening, and whether the task is done."""
        if self._clock is not None:
            self._clock.publish(Clock(clock=stamp))
        joints = JointState(name=[name.rpartition("/")[2] for name in self._cell.arm.joints])
        joints.header.stamp = stamp
        joints.position = self._cell.joint_positions().tolist()
        self._joints.publish(joints)
        pose = self._cell.ee_pose()
        message = PoseStamped()
        message.header.stamp, message.header.frame_id = stamp, self._base_frame
        at, turn = message.pose.position, message.pose.orientation
        at.x, at.y, at.z = pose.position.tolist()
        turn.x, turn.y, turn.z, turn.w = rotation_to_quaternion(pose.rotation).tolist()
        self._pose.publish(message)
        self._opening.publish(Float64(data=self._cell.opening()))
        self._done.publish(Bool(data=self._cell.task.is_done(self._cell.state())))

    def publish_picture(self, stamp: Any) -> None:
        """Publish what the camera sees, and its lens."""
        picture = self._cell.render(self._width, self._height)
        if self._is_raw:
            message: Any = rgb_to_message(picture)
        else:
            message = _compressed(picture)
        message.header.stamp, message.header.frame_id = stamp, CAMERA_FRAME
        self._image.publish(message)
        info = self._lens()
        info.header = message.header
        self._info.publish(info)

    def publish_view(self, stamp: Any, size: int) -> None:
        """Publish what the camera sees for people to look at, `size` pixels wide and high."""
        message = _compressed(self._cell.render(size, size))
        message.header.stamp, message.header.frame_id = stamp, CAMERA_FRAME
        self._view.publish(message)

    def publish_instruction(self, text: str) -> None:
        """Publish what is to be done."""
        self._instruction.publish(String(data=text))

    def publish_camera_frame(self, stamp: Any) -> None:
        """Publish where the camera of this scene is, when tf2_msgs is installed."""
        if self._static is None:
            return
        position, rotation = camera_pose(self._cell.scene)
        frame = TransformStamped(child_frame_id=CAMERA_FRAME)
        frame.header.stamp, frame.header.frame_id = stamp, self._base_frame
        to, turn = frame.transform.translation, frame.transform.rotation
        to.x, to.y, to.z = position.tolist()
        turn.x, turn.y, turn.z, turn.w = rotation_to_quaternion(rotation).tolist()
        self._static.publish(self._tf_message(transforms=[frame]))

    def _lens(self) -> CameraInfo:
        focal = focal_length_pixels(self._height)
        x, y = (self._width - 1) / 2, (self._height - 1) / 2
        info = CameraInfo(width=self._width, height=self._height, distortion_model="plumb_bob")
        info.d = [0.0] * 5
        info.k = [focal, 0.0, x, 0.0, focal, y, 0.0, 0.0, 1.0]
        info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p = [focal, 0.0, x, 0.0, 0.0, focal, y, 0.0, 0.0, 0.0, 1.0, 0.0]
        return info


def _compressed(picture: np.ndarray) -> CompressedImage:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return CompressedImage(format="rgb8; jpeg compressed bgr8", data=jpeg.tobytes())
