"""An arm without joints or mass that follows Cartesian twists the way MoveIt Servo accepts them.

It stands in for a robot in demos and tests. Time is an argument: it has no clock of its own.
"""

from __future__ import annotations

import numpy as np

from openvla_ros.control.pose import Pose, integrate_twist
from openvla_ros.sim.twist_gate import COMMAND_TIMEOUT_S, TwistGate

GRIPPER_TRAVEL_S = 0.5  # fully open to fully closed, about what a Franka Hand takes


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
        self._gate = TwistGate(base_frame, command_timeout_s)
        self._gripper_target = gripper_opening
        self._last_step_s: float | None = None

    @property
    def accepted(self) -> int:
        """How many twists were taken."""
        return self._gate.accepted

    @property
    def refused(self) -> dict[str, int]:
        """How many were not, by reason."""
        return self._gate.refused

    def command_twist(
        self,
        linear: np.ndarray,
        angular: np.ndarray,
        *,
        frame_id: str,
        stamp_s: float,
        now_s: float,
    ) -> str:
        """Take a twist, or return why it is refused ("" when it is taken)."""
        reason = self._gate.refusal(linear, angular, frame_id, stamp_s, now_s)
        if not reason:
            self.step(now_s)  # what came before belongs to the previous command
            self._gate.take(linear, angular, stamp_s)
        return reason

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
            self._gate.forget()
            return self.pose
        self._move_gripper(now_s - last)
        command = self._gate.command
        if command is not None:
            moving_s = min(now_s, command.stamp_s + self._gate.timeout_s) - last
            if moving_s > 0.0:
                self.pose = integrate_twist(self.pose, command.linear, command.angular, moving_s)
                self.path_length_m += float(np.linalg.norm(command.linear)) * moving_s
        return self.pose

    def _move_gripper(self, duration_s: float) -> None:
        reach = duration_s / GRIPPER_TRAVEL_S
        self.gripper_opening += float(
            np.clip(self._gripper_target - self.gripper_opening, -reach, reach)
        )
