"""Messages as CDR bytes, without ROS: what is written into a bag."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from openvla_ros.control.pose import Pose, rotation_to_quaternion
from openvla_ros.data.bag_file import COMPRESSED_IMAGE, typestore_for
from openvla_ros.data.bag_numbers import FLOAT, JOINTS, POSE, TEXT, TWIST

_BASIC = (TEXT, FLOAT, TWIST, POSE, JOINTS, COMPRESSED_IMAGE)


class BagMessages:
    """Serialises the messages that every recording has.

    Attributes:
        typestore: Of their definitions, for whoever writes them.
    """

    def __init__(self, others: Iterable[str] = ()) -> None:
        """Look the definitions up.

        Args:
            others: Further types that the caller serialises.

        Raises:
            ConfigurationError: A type has no definition here.
            DependencyError: `rosbags` is not installed.
        """
        self.typestore = typestore_for([*_BASIC, *others])

    def text(self, text: str) -> bytes:
        """std_msgs/String."""
        return self._bytes(TEXT, data=text)

    def number(self, value: float) -> bytes:
        """std_msgs/Float64."""
        return self._bytes(FLOAT, data=float(value))

    def compressed(self, stamp_ns: int, data: np.ndarray, kind: str, frame: str) -> bytes:
        """Return the (n,) uint8 of a picture file, "jpeg" or "png", as CompressedImage."""
        header = self._header(stamp_ns, frame)
        return self._bytes(COMPRESSED_IMAGE, header=header, format=kind, data=data)

    def twist(self, stamp_ns: int, twist: np.ndarray, base_frame: str) -> bytes:
        """Return a (6,) twist, m/s and rad/s, as TwistStamped."""
        kind = self.typestore.types["geometry_msgs/msg/Twist"]
        return self._bytes(
            TWIST,
            header=self._header(stamp_ns, base_frame),
            twist=kind(linear=self._vector(twist[:3]), angular=self._vector(twist[3:])),
        )

    def pose(self, stamp_ns: int, pose: Pose, base_frame: str) -> bytes:
        """Return a pose in metres as PoseStamped."""
        types = self.typestore.types
        at = types["geometry_msgs/msg/Point"](*pose.position.tolist())
        quaternion = rotation_to_quaternion(pose.rotation).tolist()
        turn = types["geometry_msgs/msg/Quaternion"](*quaternion)
        body = types["geometry_msgs/msg/Pose"](position=at, orientation=turn)
        return self._bytes(POSE, header=self._header(stamp_ns, base_frame), pose=body)

    def joints(self, stamp_ns: int, names: Sequence[str], positions: np.ndarray) -> bytes:
        """Return (n,) radians or metres as JointState, without velocities and efforts."""
        none = np.zeros(0)
        return self._bytes(
            JOINTS,
            header=self._header(stamp_ns, ""),
            name=list(names),
            position=np.asarray(positions, np.float64),
            velocity=none,
            effort=none,
        )

    def _bytes(self, message_type: str, **fields: Any) -> bytes:
        message = self.typestore.types[message_type](**fields)
        return bytes(self.typestore.serialize_cdr(message, message_type))

    def _time(self, nanoseconds: int) -> Any:
        seconds, rest = divmod(int(nanoseconds), 1_000_000_000)
        return self.typestore.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=rest)

    def _header(self, stamp_ns: int, frame: str) -> Any:
        kind = self.typestore.types["std_msgs/msg/Header"]
        return kind(stamp=self._time(stamp_ns), frame_id=frame)

    def _vector(self, three: np.ndarray) -> Any:
        x, y, z = np.asarray(three, np.float64).tolist()
        return self.typestore.types["geometry_msgs/msg/Vector3"](x=x, y=y, z=z)
