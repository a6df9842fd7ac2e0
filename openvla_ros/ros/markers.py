"""A step of the arm as rviz markers, and the path of steps. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, PoseStamped
from nav_msgs.msg import Path
from rclpy.duration import Duration
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from openvla_ros.control.pose import Pose, rotation_to_quaternion
from openvla_ros.evaluation.pictures.step_shapes import arc_points, box_edges

Box = tuple[np.ndarray, np.ndarray]
NAMESPACE = "openvla"
#: Steps are millimetres; in rviz they are drawn so much longer.
MAGNIFICATION = 5.0
ARC_RADIUS_M = 0.08
LIFETIME = Duration(seconds=2.0)  # an arrow of a policy that answers no more must go away
ARROW_ID, ARC_ID, TEXT_ID, BOX_ID = range(4)
BLUE = ColorRGBA(r=0.12, g=0.43, b=0.78, a=1.0)
ORANGE = ColorRGBA(r=0.85, g=0.47, b=0.08, a=1.0)
WHITE = ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)
GREY = ColorRGBA(r=0.6, g=0.6, b=0.6, a=0.8)


def step_markers(
    now: Time,
    base_frame: str,
    tool: Pose,
    step: np.ndarray | None,
    text: str,
    box: Box | None,
) -> MarkerArray:
    """Return arrow, arc, text and workspace box; what there is nothing to show of is deleted.

    Args:
        now: Stamp.
        base_frame: Frame of everything here.
        tool: Where the end effector is.
        step: (6,) m and rad, base axes; None when it is not known.
        text: Shown above the end effector.
        box: Smallest and largest corner of the workspace, m; None = off.
    """
    header = Header(stamp=now, frame_id=base_frame)
    markers = [
        _arrow(header, tool, step),
        _arc(header, tool, step),
        _text(header, tool, text),
        _box(header, box),
    ]
    return MarkerArray(markers=markers)


def path_message(now: Time, base_frame: str, poses: Iterable[Pose]) -> Path:
    """Return poses in the base frame as Path."""
    header = Header(stamp=now, frame_id=base_frame)
    return Path(header=header, poses=[_pose_stamped(header, pose) for pose in poses])


def _arrow(header: Header, tool: Pose, step: np.ndarray | None) -> Marker:
    marker = _marker(header, ARROW_ID, Marker.ARROW, BLUE)
    if step is None or not np.any(step[:3]):
        marker.action = Marker.DELETE
        return marker
    tip = tool.position + MAGNIFICATION * step[:3]
    marker.points = [_point(tool.position), _point(tip)]
    marker.scale.x, marker.scale.y, marker.scale.z = 0.008, 0.02, 0.03  # shaft, head, head length
    return marker


def _arc(header: Header, tool: Pose, step: np.ndarray | None) -> Marker:
    marker = _marker(header, ARC_ID, Marker.LINE_STRIP, ORANGE)
    points = [] if step is None else arc_points(MAGNIFICATION * step[3:], ARC_RADIUS_M)
    if not len(points):
        marker.action = Marker.DELETE
        return marker
    marker.points = [_point(tool.position + point) for point in points]
    marker.scale.x = 0.006  # line width
    return marker


def _text(header: Header, tool: Pose, text: str) -> Marker:
    marker = _marker(header, TEXT_ID, Marker.TEXT_VIEW_FACING, WHITE)
    marker.text = text
    marker.pose.position = _point(tool.position + np.array([0.0, 0.0, 0.18]))
    marker.scale.z = 0.03  # letter height
    return marker


def _box(header: Header, box: Box | None) -> Marker:
    marker = _marker(header, BOX_ID, Marker.LINE_LIST, GREY)
    marker.lifetime = Duration().to_msg()  # stays: it holds whether or not the policy answers
    if box is None:
        marker.action = Marker.DELETE
        return marker
    edges = box_edges(*box)
    marker.points = [_point(corner) for corner in edges]
    marker.scale.x = 0.004
    return marker


def _marker(header: Header, number: int, kind: int, colour: ColorRGBA) -> Marker:
    marker = Marker(header=header, ns=NAMESPACE, id=number, type=kind, color=colour)
    marker.action = Marker.ADD
    marker.pose.orientation.w = 1.0
    marker.lifetime = LIFETIME.to_msg()
    return marker


def _pose_stamped(header: Header, pose: Pose) -> PoseStamped:
    message = PoseStamped(header=header)
    message.pose.position = _point(pose.position)
    x, y, z, w = map(float, rotation_to_quaternion(pose.rotation))
    orientation = message.pose.orientation
    orientation.x, orientation.y, orientation.z, orientation.w = x, y, z, w
    return message


def _point(xyz: np.ndarray) -> Point:
    x, y, z = map(float, xyz)
    return Point(x=x, y=y, z=z)
