"""Follows Cartesian twists with joint position targets, as MoveIt Servo does for a real arm.

The twist is integrated into a pose, and inverse kinematics follows that pose, so that the sum of
many small steps goes where the twist said. What the arm cannot reach is not stored.
"""

from __future__ import annotations

import numpy as np

from openvla_ros.control.pose import Pose, integrate_twist
from openvla_ros.sim.arms import ArmModel
from openvla_ros.sim.inverse_kinematics import ArmKinematics, pose_error

LEASH_M = 0.02  # the target may be this far ahead of what the joint targets reach
LEASH_RAD = 0.10
PUSH_RAD = 0.06  # and the joint targets this far ahead of the joints: how hard it pushes


class TwistServo:
    """Joint position targets of one arm.

    Attributes:
        joints_rad: (n,) targets now.
    """

    def __init__(self, kinematics: ArmKinematics, arm: ArmModel) -> None:
        """Call `start` before anything else."""
        self._kinematics = kinematics
        self._max_speed_rad_s = np.array(arm.max_speed_rad_s)
        self.joints_rad = np.zeros(len(arm.joints))
        self._target = Pose()

    def start(self, joints_rad: np.ndarray) -> None:
        """Stand still at these joint positions."""
        self.joints_rad = np.array(joints_rad, float)
        self._target = self._kinematics.pose(self.joints_rad)

    def follow(self, twist: np.ndarray, duration_s: float, measured_rad: np.ndarray) -> None:
        """Move the targets for `duration_s`.

        Args:
            twist: (6,) m/s and rad/s of the tool point along base axes.
            duration_s: Seconds; some milliseconds, because joints go straight in between.
            measured_rad: (n,) where the joints are.
        """
        nearest = np.clip(self.joints_rad, measured_rad - PUSH_RAD, measured_rad + PUSH_RAD)
        lag = pose_error(self._kinematics.pose(nearest), self._target)
        ahead = self._target
        if twist.any():
            ahead = integrate_twist(self._target, twist[:3], twist[3:], duration_s)
        for target in (ahead, self._target):  # where it cannot go on, it still catches up
            joints, _ = self._kinematics.towards(nearest, target)
            reach = self._max_speed_rad_s * duration_s
            joints = np.clip(joints, nearest - reach, nearest + reach)
            joints = np.clip(joints, measured_rad - PUSH_RAD, measured_rad + PUSH_RAD)
            if _is_followed(lag, pose_error(self._kinematics.pose(joints), target)):
                self.joints_rad, self._target = joints, target
                return
        self.joints_rad = nearest


def _is_followed(before: np.ndarray, after: np.ndarray) -> bool:
    """True when what is left to the target is within the leash, or gets less."""
    return all(
        np.linalg.norm(after[part]) <= max(leash, float(np.linalg.norm(before[part])) - 1e-9)
        for part, leash in ((slice(0, 3), LEASH_M), (slice(3, 6), LEASH_RAD))
    )
