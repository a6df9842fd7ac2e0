"""Dataset units → SI displacement per step, in the axes of this robot's base.

The one place where units, Euler angles and the clip per step are dealt with. What is not known
about a dataset is refused here, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openvla_ros.control.pose import (
    SMALL_ANGLE_RAD,
    exponential_map,
    rotation_to_quaternion,
)
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
class DeadBand:
    """A step that is smaller than this becomes zero: translation and rotation by themselves."""

    position_m: float = 0.0
    rotation_rad: float = 0.0


@dataclass(frozen=True)
class Displacement:
    """Where the end-effector goes, step by step.

    Attributes:
        steps: (K, 6) float64: translation in m and rotation vector in rad, both in base axes; the
            rotation is about the end-effector point and multiplies from the left.
        clipped: (K, 6) bool: x y z roll pitch yaw of the action that were cut to the limit.
        ignored: (K, 2) bool: translation and rotation that were not zero, and within the dead band.
    """

    steps: np.ndarray
    clipped: np.ndarray
    ignored: np.ndarray

    @property
    def clip_mask(self) -> int:
        """Bits of the first step: bit 0 = x ... bit 5 = yaw."""
        return sum(1 << axis for axis in np.flatnonzero(self.clipped[0]).tolist())


def displacement(
    actions: np.ndarray,
    spec: ActionSpec,
    *,
    limits: StepLimits,
    dead_band: DeadBand | None = None,
    base_rotation: np.ndarray | None = None,
    ee_rotation: np.ndarray | None = None,
    linear_scale: float = 1.0,
    angular_scale: float = 1.0,
) -> Displacement:
    """Return the displacement of every step in metres and radians, in this robot's base axes.

    Order: units → clip per axis → rotation vector → dead band → axes of this base → scale.

    Args:
        actions: (K, n >= 6) in dataset units.
        spec: What these numbers mean.
        limits: Clip per axis and step, in SI, before the scale.
        dead_band: Smallest step that moves the arm, in SI, before the scale; None = any.
        base_rotation: (3, 3) from the dataset's base axes to ours; None = the same axes.
        ee_rotation: (3, 3) orientation of the end effector now, to base axes; needed for actions in
            tool axes. Each step of a chunk uses the axes in which the one before it ends.
        linear_scale: Multiplies the translation.
        angular_scale: Multiplies the rotation vector.

    Raises:
        MotionError: A number is not finite, or `spec` does not say what is needed, or describes an
            action that this function cannot convert, or the orientation is needed and missing.

    Source: bridge_data_robot, action2transform_local (Rz Ry Rx, base axes, left-multiplied).
    """
    require_convertible(spec)
    if needs_orientation(spec) and ee_rotation is None:
        raise MotionError(
            f"actions of '{spec.unnorm_key}' are given in tool axes, and the orientation of the "
            "end effector is not known."
        )
    si = _metres_and_radians(actions, spec)
    bound = np.repeat([limits.position_m, limits.rotation_rad], 3)
    kept = np.clip(si, -bound, bound)
    moves = kept.copy()
    if spec.rotation_form == "euler_xyz":
        moves[:, 3:6] = [rotation_vector(euler_matrix(row)) for row in kept[:, 3:6]]
    ignored = _within(dead_band or DeadBand(), moves)
    moves[np.repeat(ignored, 3, axis=1)] = 0.0
    turn = np.eye(3) if base_rotation is None else np.asarray(base_rotation, dtype=np.float64)
    steps = _in_base_axes(moves, spec, turn, ee_rotation, (linear_scale, angular_scale))
    return Displacement(steps=steps, clipped=kept != si, ignored=ignored)


def needs_orientation(spec: ActionSpec) -> bool:
    """True when some half of the action is given in the axes of the tool."""
    return "ee" in (spec.translation_frame, spec.rotation_frame)


def _metres_and_radians(actions: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """(K, 6) in SI units of (K, n >= 6) in dataset units."""
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim != 2 or actions.shape[1] < 6 or not np.isfinite(actions[:, :6]).all():
        raise MotionError(f"the action must be (K, >= 6) finite numbers, not {actions!r}")
    unit_m, unit_rad = spec.translation_unit_m, spec.rotation_unit_rad
    assert unit_m is not None and unit_rad is not None  # require_convertible has seen to it
    return actions[:, 0:6] * np.repeat([unit_m, unit_rad], 3)


def _within(band: DeadBand, moves: np.ndarray) -> np.ndarray:
    """(K, 2) bool: halves of (K, 6) that are not zero and smaller than the band."""
    sizes = np.linalg.norm(moves.reshape(-1, 2, 3), axis=2)  # (K, 2)
    return (sizes > 0.0) & (sizes < [band.position_m, band.rotation_rad])


def _in_base_axes(
    moves: np.ndarray,
    spec: ActionSpec,
    turn: np.ndarray,
    ee_rotation: np.ndarray | None,
    scales: tuple[float, float],
) -> np.ndarray:
    """(K, 6) scaled, in base axes, of (K, 6) in the axes of the spec.

    A rotation r about tool axes, multiplied from the right, is the rotation R r about base axes,
    multiplied from the left.
    """
    if not needs_orientation(spec):
        ee_rotation = None
    orientation = np.eye(3) if ee_rotation is None else np.asarray(ee_rotation, dtype=np.float64)
    steps = np.empty_like(moves)
    for move, step in zip(moves, steps, strict=True):
        axes = {"base": turn, "ee": orientation}
        step[0:3] = axes[spec.translation_frame or ""] @ move[0:3] * scales[0]
        step[3:6] = axes[spec.rotation_frame or ""] @ move[3:6] * scales[1]
        orientation = exponential_map(step[3:6]) @ orientation
    return steps


def require_convertible(spec: ActionSpec) -> None:
    """Return when `displacement` can convert actions of this spec.

    Raises:
        MotionError: A field is unknown, or holds a word that `displacement` does not know.
    """
    unknown = [name for name in spec.unknown_for_motion() if name != "action_hz"]
    if unknown:
        raise MotionError(
            f"nobody has published {', '.join(unknown)} for the statistics '{spec.unnorm_key}': "
            "without them its actions cannot become motion."
        )
    for name in ("translation_frame", "rotation_frame"):
        if getattr(spec, name) not in ("base", "ee"):
            raise MotionError(
                f"actions of '{spec.unnorm_key}' have {name} '{getattr(spec, name)}'; known are "
                "'base' and 'ee'."
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
