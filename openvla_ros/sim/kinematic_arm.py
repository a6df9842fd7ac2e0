"""An arm without joints or mass that follows Cartesian twists the way MoveIt Servo accepts them.

It stands in for a robot in demos and tests. Time is an argument: it has no clock of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openvla_ros.control.pose import Pose, integrate_twist

COMMAND_TIMEOUT_S = 0.1  # MoveIt Servo's default incoming_command_timeout, against header.stamp
GRIPPER_TRAVEL_S = 0.5  # fully open to fully closed, about what a Franka Hand takes


@dataclass(frozen=True)
class TwistCommand:
    """One accepted twist: (3,) m/s and (3,) rad/s along base axes, valid from `stamp_s`."""

    linear: np.ndarray
    angular: np.ndarray
    stamp_s: float


class KinematicArm:
    """Integrates twists while they are fresh; stands still as soon as they are not."""

    def __init__(
        self,
        start: Pose | None = None,
        *,
        base_frame: str = "",
        command_timeout_s: float = COMMAND_TIMEOUT_S,
        gripper_opening: float = 1.0,
    ) -> None:
        """Stand at `start`.

        Args:
            start: First pose; the identity when None.
            base_frame: Frame a twist must be given in; "" accepts any.
            command_timeout_s: A command whose stamp is this old is ignored.
            gripper_opening: 0 closed ... 1 open.
        """
        self.pose = start if start is not None else Pose()
        self.gripper_opening = gripper_opening
        self.path_length_m = 0.0
        self.accepted = 0
        self.refused: dict[str, int] = {}
        self._base_frame = base_frame
        self._timeout_s = command_timeout_s
        self._command: TwistCommand | None = None
        self._gripper_target = gripper_opening
        self._last_step_s: float | None = None

    def command_twist(
        self,
        linear: np.ndarray,
        angular: np.ndarray,
        *,
        frame_id: str,
        stamp_s: float,
        now_s: float,
    ) -> str:
        """Take a twist, or return why it is refused ("" when it is taken).

        A stamp in the future is refused: compared with `now` it would never go stale.
        """
        reason = self._reason_to_refuse(linear, angular, frame_id, stamp_s, now_s)
        if reason:
            self.refused[reason] = self.refused.get(reason, 0) + 1
            return reason
        self.step(now_s)  # what came before belongs to the previous command
        self._command = TwistCommand(np.array(linear, float), np.array(angular, float), stamp_s)
        self.accepted += 1
        return ""

    def command_gripper(self, opening: float) -> None:
        """Move the fingers towards `opening` (0 closed ... 1 open); values outside are cut."""
        if np.isfinite(opening):
            self._gripper_target = float(np.clip(opening, 0.0, 1.0))

    def step(self, now_s: float) -> Pose:
        """Return the pose at `now_s`; motion counts only while the last command was fresh.

        A clock that jumps back starts a new step and moves nothing.
        """
        last, self._last_step_s = self._last_step_s, now_s
        if last is None:
            return self.pose
        if now_s < last:
            self._command = None
            return self.pose
        self._move_gripper(now_s - last)
        if self._command is not None:
            moving_s = min(now_s, self._command.stamp_s + self._timeout_s) - last
            if moving_s > 0.0:
                self.pose = integrate_twist(
                    self.pose, self._command.linear, self._command.angular, moving_s
                )
                self.path_length_m += float(np.linalg.norm(self._command.linear)) * moving_s
        return self.pose

    def _reason_to_refuse(
        self, linear: np.ndarray, angular: np.ndarray, frame_id: str, stamp_s: float, now_s: float
    ) -> str:
        if not (np.isfinite(linear).all() and np.isfinite(angular).all()):
            return "not finite"
        if not frame_id or (self._base_frame and frame_id != self._base_frame):
            return f"frame {frame_id!r} is not {self._base_frame!r}"
        if stamp_s - now_s > self._timeout_s:
            return "stamp in the future"
        if now_s - stamp_s >= self._timeout_s:
            return "stale"
        return ""

    def _move_gripper(self, duration_s: float) -> None:
        reach = duration_s / GRIPPER_TRAVEL_S
        self.gripper_opening += float(
            np.clip(self._gripper_target - self.gripper_opening, -reach, reach)
        )
