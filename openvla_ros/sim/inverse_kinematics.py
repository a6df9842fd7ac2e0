"""From a pose of the tool to joint positions: damped least squares within the joints' limits."""

from __future__ import annotations

from typing import Any

import numpy as np

from openvla_ros.control.displacement import rotation_vector
from openvla_ros.control.pose import Pose
from openvla_ros.sim.arms import TOOL_SITE, ArmModel

DAMPING = 0.03  # m and rad per rad: keeps joint steps small near a singular pose
MAX_STEP_RAD = 0.4  # per iteration
SOLVED_M = 0.0005
SOLVED_RAD = 0.002


class ArmKinematics:
    """Forward and inverse kinematics of one arm, on a state of its own: nothing simulated moves."""

    def __init__(self, model: Any, arm: ArmModel) -> None:
        """Look up the joints of `arm` in a compiled `model`."""
        import mujoco

        self._mujoco = mujoco
        self._model = model
        self._data = mujoco.MjData(model)
        self._site = model.site(TOOL_SITE).id
        joints = [model.joint(name) for name in arm.joints]
        self._positions = np.array([joint.qposadr[0] for joint in joints])
        self._speeds = np.array([joint.dofadr[0] for joint in joints])
        self.lower_rad, self.upper_rad = np.array([joint.range for joint in joints]).T
        self._jacobian = np.zeros((6, model.nv))

    def pose(self, joints_rad: np.ndarray) -> Pose:
        """Return where the tool is with these joint positions."""
        self._data.qpos[self._positions] = joints_rad
        self._mujoco.mj_kinematics(self._model, self._data)
        rotation = self._data.site_xmat[self._site].reshape(3, 3).copy()
        return Pose(self._data.site_xpos[self._site].copy(), rotation)

    def towards(self, joints_rad: np.ndarray, target: Pose) -> tuple[np.ndarray, np.ndarray]:
        """Return joint positions nearer to `target`, and the (6,) error there was: m and rad."""
        error = pose_error(self.pose(joints_rad), target)
        self._mujoco.mj_comPos(self._model, self._data)
        self._mujoco.mj_jacSite(
            self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._site
        )
        jacobian = self._jacobian[:, self._speeds]
        squares = jacobian @ jacobian.T + DAMPING**2 * np.eye(6) * self._damped(error)
        step = jacobian.T @ np.linalg.solve(squares, error)
        largest = float(np.abs(step).max())
        if largest > MAX_STEP_RAD:
            step *= MAX_STEP_RAD / largest
        return np.clip(joints_rad + step, self.lower_rad, self.upper_rad), error

    def solve(self, target: Pose, start_rad: np.ndarray, iterations: int = 40) -> np.ndarray | None:
        """Return joint positions that bring the tool to `target`; None when none are found."""
        joints = np.array(start_rad, float)
        for _ in range(iterations):
            joints, error = self.towards(joints, target)
            if is_small(error):
                return joints
        return joints if is_small(pose_error(self.pose(joints), target)) else None

    @staticmethod
    def _damped(error: np.ndarray) -> float:
        # Less damping close to the target: the last millimetres converge like Newton's method.
        return min(1.0, float(np.linalg.norm(error)) / 0.05) + 1e-3


def pose_error(pose: Pose, target: Pose) -> np.ndarray:
    """Return (6,) from `pose` to `target`: metres, then a rotation vector in base axes."""
    return np.concatenate(
        [target.position - pose.position, rotation_vector(target.rotation @ pose.rotation.T)]
    )


def is_small(error: np.ndarray) -> bool:
    """True when a (6,) pose error is below half a millimetre and 0.1 degrees."""
    return bool(np.linalg.norm(error[:3]) < SOLVED_M and np.linalg.norm(error[3:]) < SOLVED_RAD)
