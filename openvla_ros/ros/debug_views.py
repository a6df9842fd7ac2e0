"""~/debug/image, ~/debug/markers and ~/debug/path: what the model saw and wants, for people.

Nothing is drawn without a subscriber. Drawing takes milliseconds, so it has a thread of its own,
with room for one answer: when answers come faster, the newest is drawn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from nav_msgs.msg import Path
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from visualization_msgs.msg import MarkerArray

from openvla_ros.control.states import Drop
from openvla_ros.evaluation.pictures.overlay import draw_overlay
from openvla_ros.evaluation.pictures.step_shapes import DeltaPath
from openvla_ros.ros.debug_picture import DebugPicture, Scene, state_text, tool_pose
from openvla_ros.ros.frames import Answer
from openvla_ros.ros.markers import path_message, step_markers
from openvla_ros.ros.session import Session
from openvla_ros.ros.worker import InferenceWorker

#: A viewer on the network asks for best effort, a recorder for reliable: this serves both.
QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
LOOK_PERIOD_S = 0.5  # a state that changes without an answer is drawn so late at most
SHORTEST_PERIOD_S = 0.1
JPEG_QUALITY = 85
JOIN_S = 2.0


class DebugViews:
    """Draws the answers of a node."""

    def __init__(
        self, node: Node, session: Callable[[], Session | None], *, base_frame: Callable[[], str]
    ) -> None:
        """Offer the topics.

        Args:
            node: The node.
            session: Returns the current session, or None.
            base_frame: Returns the frame of steps and poses; "" = not known, and no markers.
        """
        self._node = node
        self._session = session
        self._base_frame = base_frame
        self._image = node.create_publisher(Image, "~/debug/image", QOS)
        self._compressed = node.create_publisher(CompressedImage, "~/debug/image/compressed", QOS)
        self._markers = node.create_publisher(MarkerArray, "~/debug/markers", QOS)
        self._path = node.create_publisher(Path, "~/debug/path", QOS)
        self._picture = DebugPicture(node, base_frame)
        self._newest: Answer | None = None
        self._drawn: tuple[Any, ...] = ()
        self._route_lock = threading.Lock()
        self._route = DeltaPath()
        self._route_of: tuple[int, str] | None = None
        self._worker: InferenceWorker[Scene] | None = None
        self._is_closed = False
        node.create_timer(
            LOOK_PERIOD_S,
            self._look,
            MutuallyExclusiveCallbackGroup(),
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    def answer(self, answer: Answer) -> None:
        """Take a new answer. Called under the session's lock: stores it and returns."""
        self._newest = answer
        session = self._session()
        if session is None:
            return
        try:
            self._extend_route(session, answer)
            self._offer(session, answer)
        except Exception as error:
            self._complain(error)

    def close(self) -> bool:
        """End the thread; return False when it still draws after a while."""
        self._is_closed = True
        return self._worker is None or self._worker.close(JOIN_S)

    def _look(self) -> None:
        """Draw again when the state has changed since, or when somebody has just subscribed."""
        session, answer = self._session(), self._newest
        if session is None or not session.is_active:
            self._newest = None
            return
        if self._wants_image(session):
            self._picture.listen()
        if answer is not None:
            self._offer(session, answer)

    def _offer(self, session: Session, answer: Answer) -> None:
        if self._is_closed or not (self._wants_image(session) or self._wants_markers(session)):
            return
        topics = (self._image, self._compressed, self._markers, self._path)
        scene = Scene(
            answer,
            session.verdict(),
            is_dry_run=not session.config.motion.motion_enabled,
            viewers=tuple(topic.get_subscription_count() for topic in topics),
        )
        if scene.key == self._drawn:
            return
        if self._worker is None:
            self._worker = InferenceWorker(
                self._draw, min_interval_s=SHORTEST_PERIOD_S, name="debug views"
            )
        self._worker.offer(scene)

    def _wants_image(self, session: Session) -> bool:
        has_viewer = (
            self._image.get_subscription_count() + self._compressed.get_subscription_count()
        )
        return session.config.views.debug_image and has_viewer > 0

    def _wants_markers(self, session: Session) -> bool:
        has_viewer = self._markers.get_subscription_count() + self._path.get_subscription_count()
        return session.config.views.debug_markers and has_viewer > 0 and bool(self._base_frame())

    # In the thread that draws -------------------------------------------------------------------

    def _draw(self, scene: Scene) -> None:
        session = self._session()
        if session is None or scene.key == self._drawn:
            return
        self._drawn = scene.key
        try:
            if self._wants_image(session):
                self._publish_image(draw_overlay(self._picture.overlay(scene, session)), scene)
            if self._wants_markers(session):
                self._publish_markers(scene, session)
        except Exception as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        """Log what broke: what only shows the arm must not stop it."""
        self._node.get_logger().error(
            f"~/debug could not be drawn: {error!r}", throttle_duration_sec=10.0
        )

    def _publish_image(self, picture: np.ndarray, scene: Scene) -> None:
        header = scene.answer.frame.message.header
        if self._image.get_subscription_count():
            height, width, _ = picture.shape
            message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
            message.header, message.data = header, picture.tobytes()
            self._image.publish(message)
        if self._compressed.get_subscription_count():
            bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
            _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            message = CompressedImage(header=header, format="rgb8; jpeg compressed bgr8")
            message.data = jpeg.tobytes()
            self._compressed.publish(message)

    def _publish_markers(self, scene: Scene, session: Session) -> None:
        now, frame = self._node.get_clock().now().to_msg(), self._base_frame()
        motion, plan = session.config.motion, scene.answer.plan
        box = (np.array(motion.workspace_min), np.array(motion.workspace_max))
        step = None if plan.steps is None else plan.steps[0]
        text = f"{state_text(scene)}\n{scene.answer.frame.instruction}"
        tool, is_measured = tool_pose(session)
        if not is_measured:
            text += "\n(drawn at the base: the pose of the end effector is not known)"
        self._markers.publish(
            step_markers(now, frame, tool, step, text, box if motion.has_workspace else None)
        )
        if self._path.get_subscription_count():
            with self._route_lock:
                poses = list(self._route.poses)
            self._path.publish(path_message(now, frame, poses))

    def _extend_route(self, session: Session, answer: Answer) -> None:
        """Add the steps that were executed, or would have been; begin anew with an instruction."""
        if answer.drop not in (Drop.NONE, Drop.DRY_RUN) or answer.plan.steps is None:
            return
        key = (answer.frame.activation, answer.frame.instruction)
        with self._route_lock:
            if key != self._route_of:
                self._route_of = key
                self._route.begin(tool_pose(session)[0])
            self._route.add(answer.plan.steps)
