"""What leaves at every tick: twist, target pose, gripper command. No rclpy in here."""

from __future__ import annotations

import dataclasses
import math

from openvla_ros.control.pose import EndEffectorPose, Pose, pose_problem
from openvla_ros.control.safety import Intervention
from openvla_ros.control.states import Reason
from openvla_ros.control.supervisor import Verdict
from openvla_ros.control.teleoperation import Teleoperation
from openvla_ros.ros.frames import Tick
from openvla_ros.ros.shared_state import SharedState

GRIPPER_REPEAT_S = 1.0
# After a gap like this between two ticks MoveIt Servo (0.1 s) has long stopped the arm by itself. A
# process that was frozen must not go on with an action that belongs to the time before.
LATE_TICK_S = 0.25
EDGE_SHOWN_S = 0.5  # so long an edge of the workspace is told after the arm has left it


class Streaming:
    """Samples the motion stage under a verdict. Call it under the lock."""

    def __init__(self, shared: SharedState) -> None:
        """Stand still."""
        self.teleoperation = Teleoperation()
        self._shared = shared
        self._was_moving = self._was_cut = False
        self._gripper_sent: tuple[float, float] | None = None  # opening, steady seconds
        self._target: Pose | None = None  # the last one that was published
        self._edge_s = -math.inf
        self._last_tick_s = math.inf

    def reset(self) -> None:
        """Forget the gripper, the target and who steered."""
        self.teleoperation.forget()
        self._was_moving = self._was_cut = False
        self._gripper_sent = self._target = None
        self._edge_s = -math.inf
        self._last_tick_s = math.inf

    def forget_gripper(self) -> None:
        """Publish the gripper's next command even if it equals the last one."""
        self._gripper_sent = None

    def is_at_edge(self, now_s: float) -> bool:
        """True when the workspace has just taken something from the twist."""
        return now_s - self._edge_s <= EDGE_SHOWN_S

    def tick(self, verdict: Verdict, pose: EndEffectorPose | None, now_s: float) -> Tick:
        """Return what to publish now."""
        stage, is_enabled = self._shared.stage, self._shared.config.motion.motion_enabled
        if now_s - self._last_tick_s > LATE_TICK_S:
            stage.stop()
            stage.release_target()
        self._last_tick_s = now_s
        steered = None
        if is_enabled and verdict.reason is Reason.TELEOPERATION:
            steered = self.teleoperation.twist(now_s)
        may_move = is_enabled and verdict.may_move
        is_moving = may_move or steered is not None
        if verdict.stops_at_once and not self._was_cut:
            stage.stop()
            # The target runs ahead of the arm; what is cut must not be caught up on.
            stage.release_target()
        elif self._was_moving and not is_moving:
            stage.fade(now_s)
        self._was_cut, self._was_moving = verdict.stops_at_once, is_moving
        twist = stage.sample(now_s, pose) if steered is None else stage.follow(steered, now_s, pose)
        if Intervention.WORKSPACE in stage.report(now_s).current:
            self._edge_s = now_s
        return Tick(
            twist,
            gripper_opening=self._gripper_command(now_s) if may_move else None,
            target=self._follow_target(pose, now_s),
        )

    def last_tick(self, pose: EndEffectorPose | None, now_s: float) -> Tick:
        """Return what to publish last: no twist, and a target where the arm is."""
        self._shared.stage.release_target()
        return dataclasses.replace(Tick.zero(), target=self._follow_target(pose, now_s))

    def _follow_target(self, pose: EndEffectorPose | None, now_s: float) -> Pose | None:
        """The target pose of this tick, when that is the output."""
        config, stage = self._shared.config, self._shared.stage
        if config.operation.output != "pose":
            return None
        is_enabled, last = config.motion.motion_enabled, self._target
        if not is_enabled:
            self._target = None  # a dry run commands nothing; the arm stays where its last word is
            stage.release_target()
            if last is None:
                return None
        if pose is None or pose_problem(pose):
            stage.release_target()  # what moves meanwhile is not made up for when the pose is back
            return last
        target = stage.target(now_s, pose)
        self._target = target if is_enabled else None
        return target

    def _gripper_command(self, now_s: float) -> float | None:
        """The opening to publish now: when it changed, and once a second."""
        is_open = self._shared.stage.gripper_is_open
        if is_open is None:
            return None
        opening = 1.0 if is_open else 0.0
        if self._gripper_sent is not None:
            last, sent_s = self._gripper_sent
            if opening == last and now_s - sent_s < GRIPPER_REPEAT_S:
                return None
        self._gripper_sent = (opening, now_s)
        return opening
