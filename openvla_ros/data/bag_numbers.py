"""What one message of a topic says, as numbers: by its type, and by what the user declared.

A reader raises ValueError, with what is wrong, for a message that it cannot use; `bag_tracks` adds
where that message is.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from openvla_ros.data.bag_file import COMPRESSED_IMAGE, IMAGE_TYPES
from openvla_ros.data.topics import (
    DIFFERENCE_ROTATIONS,
    TWIST_ROTATIONS,
    ActionSource,
    GripperSource,
    StateSource,
)
from openvla_ros.errors import ConfigurationError

TEXT, EMPTY, BOOL = "std_msgs/msg/String", "std_msgs/msg/Empty", "std_msgs/msg/Bool"
TWIST, POSE = "geometry_msgs/msg/TwistStamped", "geometry_msgs/msg/PoseStamped"
ARRAY, FLOAT = "std_msgs/msg/Float64MultiArray", "std_msgs/msg/Float64"
JOINTS = "sensor_msgs/msg/JointState"
ANSWER, OPENING = "openvla_ros/msg/VLAAction", "openvla_ros/msg/GripperCommand"

#: What a topic may hold, by what it is used for.
ROLE_TYPES = {
    "image": IMAGE_TYPES,
    "instruction": (TEXT,),
    "action": (TWIST, POSE, ARRAY, ANSWER),
    "gripper": (FLOAT, ARRAY, OPENING, JOINTS),
    "state": (POSE, ARRAY),
    "marker": (EMPTY, BOOL),
}

Numbers = tuple[float, ...]
#: None: the message says nothing about it, such as a JointState of other joints.
Reader = Callable[[Any], Numbers | None]
UNKNOWN_SIZE = (0.0, 0.0)
SHORTEST_QUATERNION = 1e-6


def image_reader(message_type: str) -> Reader:
    """Return the reader of width and height; 0, 0 where a compressed image has no sound header."""
    if message_type == COMPRESSED_IMAGE:
        return lambda message: _compressed_size(message.data)
    return lambda message: (float(message.width), float(message.height))


def action_reader(message_type: str, source: ActionSource) -> Reader:
    """Return the reader of an action topic.

    It gives, by type: TwistStamped: 3 m/s and 3 rad/s. PoseStamped: 3 m and the quaternion
    (x, y, z, w). Float64MultiArray: its numbers. VLAAction: the first row of `raw`.

    Raises:
        ConfigurationError: The user declared too little about this type, or what it has not.
    """
    _require_declared(message_type, source)
    if message_type == TWIST:
        return lambda message: _vector(message.twist.linear) + _vector(message.twist.angular)
    if message_type == POSE:
        return _pose
    if message_type == ANSWER:
        return _first_row
    return _array_reader(source.columns, at_least=6 if source.differences else 1)


def gripper_reader(message_type: str, source: GripperSource) -> Reader:
    """Return the reader of a gripper topic: one number, 0 closed to 1 open.

    Raises:
        ConfigurationError: `column` or `joint` is missing, or has no meaning for this type.
    """
    _require("gripper.column", source.column >= 0, message_type == ARRAY, message_type)
    _require("gripper.joint", bool(source.joint), message_type == JOINTS, message_type)
    if message_type == ARRAY:
        read = _array_reader((source.column,))
    elif message_type == JOINTS:
        read = _joint_reader(source.joint)
    elif message_type == OPENING:
        read = _opening
    else:
        read = _float

    def opening(message: Any) -> Numbers | None:
        numbers = read(message)
        if numbers is None:
            return None
        share = (numbers[0] - source.closed) / (source.open - source.closed)
        return (float(np.clip(share, 0.0, 1.0)),)

    return opening


def state_reader(message_type: str, source: StateSource) -> Reader:
    """Return the reader of a state topic: a pose as `action_reader` gives it, or its numbers.

    Raises:
        ConfigurationError: `columns` are given for a pose.
    """
    if message_type == POSE:
        _require("state.columns", bool(source.columns), False, message_type)
        return _pose
    return _array_reader(source.columns)


def marker_reader(message_type: str) -> Reader:
    """Return the reader of a marker: 1 = an episode may begin here, 0 = it ends."""
    if message_type == BOOL:
        return lambda message: (float(bool(message.data)),)
    return lambda _: (1.0,)


def action_period(message: Any) -> Numbers | None:
    """Return the seconds of one step that a VLAAction says; None where nobody knew."""
    seconds = float(message.action_dt)
    return (seconds,) if np.isfinite(seconds) and seconds > 0.0 else None


def _require_declared(message_type: str, source: ActionSource) -> None:
    is_array = message_type == ARRAY
    _require("action.columns", bool(source.columns), None, message_type, is_array)
    _require("action.differences", source.differences, None, message_type, is_array)
    _require("action.hold_s", source.hold_s > 0.0, None, message_type, message_type == TWIST)
    _require("action.offset_s", source.offset_s != 0, None, message_type, message_type != ANSWER)
    if source.rotation_form == "rotvec" and source.rotation != "rotvec_rate":
        raise ConfigurationError(
            "action.rotation_form is 'rotvec', which only a turn made of rotvec_rate can be "
            "written as. For poses, write `rotation: rotvec`; else leave it out."
        )
    allowed: tuple[str, ...] = ()
    if message_type == TWIST:
        allowed = TWIST_ROTATIONS
    elif message_type == POSE:
        allowed = DIFFERENCE_ROTATIONS
    elif source.differences:
        allowed = DIFFERENCE_ROTATIONS[:1]  # of roll, pitch, yaw nothing else can be taken
    if not allowed:
        _require("action.rotation", bool(source.rotation), False, message_type)
    elif source.rotation not in allowed:
        said = repr(source.rotation) if source.rotation else "not given"
        raise ConfigurationError(
            f"action.rotation is {said}, and the topic is a {message_type}: write which rotation "
            f"it holds, {' or '.join(allowed)}. Nobody can tell from the numbers."
        )


def _require(
    name: str, is_given: bool, is_needed: bool | None, message_type: str, is_allowed: bool = False
) -> None:
    """Refuse a key that is needed and absent, or given and without meaning for the type."""
    if is_needed and not is_given:
        raise ConfigurationError(f"{name} must be given: the topic is a {message_type}.")
    if is_given and not (is_needed or is_allowed):
        raise ConfigurationError(
            f"{name} has no meaning for a topic of {message_type}. Leave it out."
        )


def _vector(vector: Any) -> Numbers:
    return float(vector.x), float(vector.y), float(vector.z)


def _pose(message: Any) -> Numbers:
    q = message.pose.orientation
    quaternion = (float(q.x), float(q.y), float(q.z), float(q.w))
    if np.linalg.norm(quaternion) < SHORTEST_QUATERNION:  # false for NaN, which others refuse
        raise ValueError("its orientation is a quaternion of length 0: it was never set")
    return _vector(message.pose.position) + quaternion


def _array_reader(columns: tuple[int, ...], at_least: int = 1) -> Reader:
    def read(message: Any) -> Numbers:
        data = np.asarray(message.data, np.float64).ravel()
        if columns and max(columns) >= len(data):
            raise ValueError(f"it has {len(data)} numbers, so there is no column {max(columns)}")
        taken = data[list(columns)] if columns else data
        if len(taken) < at_least:
            raise ValueError(f"it gives {len(taken)} numbers, and {at_least} are needed")
        return tuple(taken.tolist())

    return read


def _first_row(message: Any) -> Numbers:
    raw, rows = np.asarray(message.raw, np.float64).ravel(), int(message.chunk_steps)
    if rows < 1 or not len(raw) or len(raw) % rows:
        raise ValueError(f"its `raw` has {len(raw)} numbers for {rows} steps")
    return tuple(raw[: len(raw) // rows].tolist())


def _joint_reader(joint: str) -> Reader:
    def read(message: Any) -> Numbers | None:
        names = list(message.name)
        if joint not in names:
            return None  # several publishers share this topic, each with joints of its own
        index = names.index(joint)
        if index >= len(message.position):
            raise ValueError(f"it names the joint {joint!r}, and gives no position for it")
        return (float(message.position[index]),)

    return read


def _opening(message: Any) -> Numbers:
    return (float(message.opening),)


def _float(message: Any) -> Numbers:
    return (float(message.data),)


def _compressed_size(data: Any) -> Numbers:
    """Width and height from the header alone: decoding waits until the image is needed."""
    try:
        with Image.open(io.BytesIO(bytes(data)), formats=("JPEG", "PNG")) as picture:
            return float(picture.width), float(picture.height)
    except (
        OSError,
        ValueError,
        TypeError,
        SyntaxError,
        LookupError,
        struct.error,
        Image.DecompressionBombError,
    ):
        return UNKNOWN_SIZE
