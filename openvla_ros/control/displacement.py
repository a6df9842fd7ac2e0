"""Dataset units → SI displacement per step, in the axes of this robot's base.

The one place where units, Euler angles and the clip per step are dealt with. What is not known
about a dataset is refused here, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openvla_ros.control.pose import SMALL_ANGLE_RAD, rotation_to_quaternion
from openvla_ros.errors import MotionError
from openvla_ros.types import ActionSpec

AXES = ("x", "y", "z", "roll", "pitch", "yaw")


@dataclass(frozen=True)
class StepLimits:
    """The largest displacement of one step, per axis; 0.05 m and 0.25 rad are those of BridgeData.

    Source: bridge_data_robot, robot_base_env.py, action space.
    """

    position_m: float = 0.05
    rotation_rad: float = 0.25


@dataclass(frozen=True)
class Displacement:
    """Where the end-effector goes, step by step.

    Attributes:
        steps: (K, 6) float64: translation in m and rotation vector in rad, both in base axes; the
            rotation is about the end-effector point and multiplies from the left.
        clipped: (K, 6) bool: x y z roll pitch yaw of the action that were cut to the limit.
    """

    steps: np.ndarray
    clipped: np.ndarray

    @property
    def clip_mask(self) -> int:
        """Bits of the first step: bit 0 = x ... bit 5 = yaw."""
        return sum(1 << axis for axis in np.flatnonzero(self.clipped[0]).tolist())


def displacement(
    actions: np.ndarray,
    spec: ActionSpec,
    *,
    limits: StepLimits,
    base_rotation: np.ndarray | None = None,
    linear_scale: float = 1.0,
    angular_scale: float = 1.0,
) -> Displacement:
    """Return the displacement of every step in metres and radians, in this robot's base axes.

    Order: units → clip per axis → rotation vector → axes of this base → scale.

    Args:
        actions: (K, n >= 6) in dataset units.
        spec: What these numbers mean.
        limits: Clip per axis and step, in SI, before the scale.
        base_rotation: (3, 3) from the dataset's base axes to ours; None = the same axes.
        linear_scale: Multiplies the translation.
        angular_scale: Multiplies the rotation vector.

    Raises:
        MotionError: A number is not finite, or `spec` does not say what is needed, or describes an
            action that this function cannot convert.

    Source: bridge_data_robot, action2transform_local (Rz Ry Rx, base axes, left-multiplied).
    """
    require_convertible(spec)
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim != 2 or actions.shape[1] < 6 or not np.isfinite(actions[:, :6]).all():
        raise MotionError(f"the action must be (K, >= 6) finite numbers, not {actions!r}")
    unit_m, unit_rad = spec.translation_unit_m, spec.rotation_unit_rad
    assert unit_m is not None and unit_rad is not None  # require_convertible has seen to it
    si = np.concatenate(
        [actions[:, 0:3] * unit_m, actions[:, 3:6] * unit_rad],
        axis=1,
    )
    bound = np.repeat([limits.position_m, limits.rotation_rad], 3)
    kept = np.clip(si, -bound, bound)
    if spec.rotation_form == "euler_xyz":
        rotations = np.stack([rotation_vector(euler_matrix(row)) for row in kept[:, 3:6]])
    else:
        rotations = kept[:, 3:6]
    turn = np.eye(3) if base_rotation is None else np.asarray(base_rotation, dtype=np.float64)
    steps = np.concatenate(
        [kept[:, 0:3] @ turn.T * linear_scale, rotations @ turn.T * angular_scale], axis=1
    )
    return Displacement(steps=steps, clipped=kept != si)


def require_convertible(spec: ActionSpec) -> None:
    """Return when `displacement` can convert actions of this spec.

    Raises:
        MotionError: A field is unknown, or describes something else than base-frame steps.
    """
    unknown = [name for name in spec.unknown_for_motion() if name != "action_hz"]
    if unknown:
        raise MotionError(
            f"nobody has published {', '.join(unknown)} for the statistics '{spec.unnorm_key}': "
            "without them its actions cannot become motion."
        )
    for name in ("translation_frame", "rotation_frame"):
        if getattr(spec, name) != "base":
            raise MotionError(
                f"actions of '{spec.unnorm_key}' have {name} '{getattr(spec, name)}'; this version "
                "moves only for actions in 'base' axes."
            )
    if spec.rotation_form not in ("euler_xyz", "rotvec"):
        raise MotionError(
            f"actions of '{spec.unnorm_key}' have rotation_form '{spec.rotation_form}'; known are "
            "'euler_xyz' and 'rotvec'."
        )


def euler_matrix(rpy: np.ndarray) -> np.ndarray:
    """(3, 3) rotation Rz(yaw) Ry(pitch) Rx(roll) for (3,) roll, pitch, yaw in radians."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(rpy), np.sin(rpy)
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """(3,) axis times angle in radians, angle in [0, pi], of a (3, 3) rotation matrix."""
    # Through the quaternion: exact for every angle, also near pi, where the antisymmetric part of
    # the matrix vanishes.
    x, y, z, w = rotation_to_quaternion(matrix)
    vector = np.array([x, y, z])
    sine = float(np.linalg.norm(vector))
    if sine < SMALL_ANGLE_RAD:
        return 2.0 * vector
    return vector * (2.0 * float(np.arctan2(sine, w)) / sine)
