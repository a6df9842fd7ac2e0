"""What goes into ~/debug/image: from an answer and the session to an `Overlay`."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.node import Node

from openvla_ros.control.pose import Pose, pose_problem
from openvla_ros.control.states import Drop, Reason, State
from openvla_ros.control.supervisor import Verdict
from openvla_ros.evaluation.pictures.overlay import Overlay
from openvla_ros.evaluation.pictures.projection import Arrow, arrow_in_view, view_map
from openvla_ros.messages import stamp_ns
from openvla_ros.ros.camera_geometry import CameraGeometry
from openvla_ros.ros.frames import Answer
from openvla_ros.ros.markers import MAGNIFICATION
from openvla_ros.ros.session import Session
from openvla_ros.types import Policy


@dataclass(frozen=True)
class Scene:
    """One answer, and the node at the moment of drawing.

    Attributes:
        viewers: Subscribers of each topic: a new one wants to see what there is.
    """

    answer: Answer
    verdict: Verdict
    is_dry_run: bool
    viewers: tuple[int, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """Scenes with the same key look the same."""
        frame = self.answer.frame
        state = (self.verdict.state, self.verdict.reason, self.is_dry_run)
        return (frame.activation, self.answer.sequence, *state, *self.viewers)


class DebugPicture:
    """Collects what the picture shows."""

    def __init__(self, node: Node, base_frame: Callable[[], str]) -> None:
        """Know nothing of the camera until `listen`.

        Args:
            node: The node.
            base_frame: Returns the frame of steps and poses; "" = not known.
        """
        self._base_frame = base_frame
        self._geometry = CameraGeometry(node)
        self._mapped: tuple[Any, int, int] | None = None  # policy, width, height of `_view_map`
        self._view_map = np.zeros((2, 3))

    def listen(self) -> None:
        """Look for the camera's calibration, from the first call on."""
        self._geometry.listen()

    def overlay(self, scene: Scene, session: Session) -> Overlay:
        """Return what to draw of an answer.

        Raises:
            ImageError: Its picture cannot be decoded any more.
        """
        answer, verdict = scene.answer, scene.verdict
        picture, view = session.view(answer.frame)
        left, top, width, height = session.config.inputs.image_roi
        if not width:
            left, top, height, width = 0, 0, *picture.shape[:2]
        part = (left, top, width, height)
        arrow, missing = self._arrow(answer, session, picture, part)
        facts = _facts(answer, f"{width} x {height}", f"{view.shape[1]} x {view.shape[0]}")
        steps = answer.plan.steps
        step = np.full(6, math.nan) if steps is None else steps[0]
        return Overlay(
            view=view,
            instruction=answer.frame.instruction,
            state=state_text(scene),
            level=_level(verdict),
            detail=verdict.detail,
            delta_position_m=step[:3],
            delta_rotation_rad=step[3:],
            gripper=answer.plan.gripper_opening,
            gripper_is_open=answer.gripper_is_open,
            verdict=_verdict_text(answer),
            is_executed=answer.drop is Drop.NONE,
            is_valid=answer.prediction.is_valid,
            facts=facts if arrow else (*facts, f"no arrow in the picture: {missing}"),
            arrow=arrow,
        )

    def _arrow(
        self,
        answer: Answer,
        session: Session,
        picture: np.ndarray,
        part: tuple[int, int, int, int],
    ) -> tuple[Arrow | None, str]:
        """The step in the view, magnified as in rviz; or None, and why."""
        tool, is_measured = tool_pose(session)
        if not is_measured:
            return None, "the pose of the end effector is not known"
        if answer.plan.steps is None:
            return None, "the step is not known"
        camera = self._geometry.camera(self._base_frame(), *picture.shape[:2])
        if camera is None:
            return None, self._geometry.problem
        tip = tool.position + MAGNIFICATION * answer.plan.steps[0][:3]
        points = np.array([tool.position, tip])
        to_view = self._map_into_view(session.policy, *part[2:])
        return arrow_in_view(camera, points, part, to_view), "it is behind the camera"

    def _map_into_view(self, policy: Policy, width: int, height: int) -> np.ndarray:
        key = (weakref.ref(policy), width, height)  # weak: an unloaded policy must go
        if key != self._mapped:
            self._mapped, self._view_map = key, view_map(policy.view, height, width)
        return self._view_map


def tool_pose(session: Session) -> tuple[Pose, bool]:
    """Return where the end effector is, or the base; and which of the two."""
    measured = session.ee_pose()
    if measured is None or pose_problem(measured):
        return Pose(), False
    return measured.pose, True


def state_text(scene: Scene) -> str:
    """Return state and reason, a few words."""
    state, reason = scene.verdict.state, scene.verdict.reason
    text = state.name if reason is Reason.OK else f"{state.name} {reason.name}"
    return f"{text} (dry run)" if scene.is_dry_run else text


def _level(verdict: Verdict) -> str:
    if verdict.state is State.RUNNING:
        return "ok"
    is_bad = verdict.state is State.FAULT or verdict.reason is Reason.STALE_IMAGE
    return "bad" if is_bad else "warn"


def _verdict_text(answer: Answer) -> str:
    if answer.drop is Drop.NONE:
        return "executed"
    return f"not executed: {answer.drop.name.lower().replace('_', ' ')}"


def _facts(answer: Answer, image_size: str, view_size: str) -> tuple[str, ...]:
    stamp = stamp_ns(answer.frame.message.header.stamp)
    age = f"{(answer.end_ns - stamp) * 1e-6:.0f} ms after the image" if stamp else "image unstamped"
    facts = [
        f"answer {answer.sequence}, {age}",
        f"model {answer.inference_ms:.0f} ms, {answer.prediction.passes} passes, "
        f"{answer.prediction.unnorm_key}",
        f"the model sees {view_size} of {image_size} pixels",
    ]
    if answer.plan.clip_mask:
        axes = ("dx", "dy", "dz", "rx", "ry", "rz")
        cut = [name for bit, name in enumerate(axes) if answer.plan.clip_mask & (1 << bit)]
        facts.append(f"cut to the limit: {', '.join(cut)}")
    return tuple(facts)
