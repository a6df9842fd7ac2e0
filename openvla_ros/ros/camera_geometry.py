"""Lens and place of the camera, for the arrow in the debug image: CameraInfo, and tf2 if present.

Nothing is listened to before somebody looks at the picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo

from openvla_ros.control.pose import quaternion_to_rotation
from openvla_ros.evaluation.pictures.projection import CameraModel
from openvla_ros.ros import qos

TOPIC = "camera_info"
MODELS = ("", "plumb_bob", "rational_polynomial")  # OpenCV takes their numbers in this order


class CameraGeometry:
    """Looks up where points of the base frame are in the camera's picture.

    Attributes:
        problem: Why the last `camera` returned None, in a few words; "" when it did not.
    """

    def __init__(self, node: Node) -> None:
        """Listen to nothing yet."""
        self.problem = ""
        self._node = node
        self._info: CameraInfo | None = None
        self._is_listening = False
        self._buffer: Any = None
        self._failures: tuple[type[Exception], ...] = ()

    def listen(self) -> None:
        """Subscribe, the first time; call it from a callback of the executor."""
        if self._is_listening:
            return
        self._is_listening = True
        self._node.create_subscription(
            CameraInfo,
            TOPIC,
            self._on_info,
            qos.IMAGE,
            callback_group=MutuallyExclusiveCallbackGroup(),
        )
        try:
            import tf2_ros
        except ImportError:
            return
        self._failures = (tf2_ros.TransformException,)
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, self._node, spin_thread=False)

    def camera(self, base_frame: str, height: int, width: int) -> CameraModel | None:
        """Return the camera for pictures of a size; None when something about it is not known.

        Args:
            base_frame: Frame of the points to come.
            height: Of the camera's picture, pixels.
            width: Of the camera's picture, pixels.
        """
        info = self._info
        self.problem = self._missing(info, base_frame)
        if self.problem or info is None:
            return None
        try:
            found = self._buffer.lookup_transform(info.header.frame_id, base_frame, Time())
        except self._failures as error:
            self.problem = f"tf: {error}"
            return None
        moved, turn = found.transform.translation, found.transform.rotation
        matrix, distortion = self._lens(info)
        scale = np.diag([width / info.width, height / info.height, 1.0])  # a decimated picture
        return CameraModel(
            matrix=scale @ matrix,
            distortion=distortion,
            rotation=quaternion_to_rotation(np.array([turn.x, turn.y, turn.z, turn.w])),
            translation=np.array([moved.x, moved.y, moved.z]),
        )

    def _missing(self, info: CameraInfo | None, base_frame: str) -> str:
        if not base_frame:
            return "base_frame is empty"
        if info is None:
            return f"nothing on {self._node.resolve_topic_name(TOPIC)}"
        if not (info.width and info.height and info.k[0] > 0.0):
            return "the camera is not calibrated"
        if info.distortion_model not in MODELS:
            return f"distortion model {info.distortion_model}"
        return "" if self._buffer is not None else "tf2_ros is not installed"

    def _lens(self, info: CameraInfo) -> tuple[np.ndarray, np.ndarray]:
        """Matrix and distortion of the pictures on `image`: rectified ones by their name."""
        if "rect" in self._node.resolve_topic_name("image").rsplit("/", 1)[-1]:
            return np.array(info.p).reshape(3, 4)[:, :3], np.zeros(0)
        return np.array(info.k).reshape(3, 3), np.array(info.d, float)

    def _on_info(self, info: CameraInfo) -> None:
        self._info = info
