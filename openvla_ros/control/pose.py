"""Poses of the end effector, and how a twist moves them.

Frames: a pose is that of the end effector in the base frame. A twist is the velocity of the
end-effector point and the angular velocity, both along base axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SMALL_ANGLE_RAD = 1e-6  # below this, sin(a)/a equals its series to the last bit of a float64
MAX_POSE_AGE_S = 0.3  # older than this, nobody knows where the end effector is


@dataclass(frozen=True)
class Pose:
    """Where the end effector is.

    Attributes:
        position: (3,) float64, metres, base frame.
        rotation: (3, 3) float64 rotation matrix, end effector to base.
    """

    position: np.ndarray = field(default_factory=lambda: np.zeros(3))
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))


@dataclass(frozen=True)
class EndEffectorPose:
    """A measured pose of the end effector, as it comes from outside: check it before use.

    Attributes:
        position: (3,) metres, base frame.
        quaternion: (4,) x y z w, end effector to base.
        age_s: Seconds since it was measured; negative = its clock is ahead of ours.
    """

    position: np.ndarray
    quaternion: np.ndarray
    age_s: float

    @property
    def pose(self) -> Pose:
        """The same with a rotation matrix; `pose_problem` must be ""."""
        return Pose(np.asarray(self.position, float), quaternion_to_rotation(self.quaternion))


def pose_problem(pose: EndEffectorPose | None) -> str:
    """Why the arm must not move on this pose, in words; "" when it may."""
    if pose is None:
        return "the pose of the end effector is not known"
    numbers = np.concatenate([np.ravel(pose.position), np.ravel(pose.quaternion), [pose.age_s]])
    if numbers.shape != (8,) or not np.isfinite(numbers).all():
        return f"the pose of the end effector is not usable: {pose}"
    length = float(np.linalg.norm(pose.quaternion))
    if abs(length - 1.0) > 0.01:  # messages carry rounded numbers; (0, 0, 0, 0) means "not set"
        return f"the quaternion of the end effector has length {length:g}, not 1"
    if abs(pose.age_s) > MAX_POSE_AGE_S:
        return (
            f"the pose of the end effector is {pose.age_s:.2f} s old, and {MAX_POSE_AGE_S} s is "
            "the limit"
        )
    return ""


def exponential_map(rotation_vector: np.ndarray) -> np.ndarray:
    """Return the (3, 3) rotation matrix of a (3,) rotation vector in radians.

    Source: Rodrigues' formula, with its series where the angle vanishes.
    """
    angle = float(np.linalg.norm(rotation_vector))
    x, y, z = rotation_vector
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    if angle < SMALL_ANGLE_RAD:
        return np.eye(3) + cross + 0.5 * cross @ cross
    return (
        np.eye(3) + np.sin(angle) / angle * cross + (1.0 - np.cos(angle)) / angle**2 * cross @ cross
    )


def integrate_twist(pose: Pose, linear: np.ndarray, angular: np.ndarray, duration_s: float) -> Pose:
    """Return the pose after a constant twist.

    Args:
        pose: Start.
        linear: (3,) m/s, base axes, of the end-effector point.
        angular: (3,) rad/s, base axes, about the end-effector point.
        duration_s: Seconds, >= 0.

    Returns:
        The position moves by `linear * duration_s`; the rotation is multiplied from the left,
        because the angular velocity is given along base axes.
    """
    rotation = exponential_map(np.asarray(angular, float) * duration_s) @ pose.rotation
    return Pose(pose.position + np.asarray(linear, float) * duration_s, _orthonormal(rotation))


def rotation_to_quaternion(rotation: np.ndarray) -> np.ndarray:
    """Return the (4,) quaternion (x, y, z, w) of a rotation matrix, with w >= 0.

    Source: Shepperd's method: divide by the largest of the four components.
    """
    m = rotation
    trace = np.trace(m)
    squares = np.array([m[0, 0], m[1, 1], m[2, 2], trace])
    largest = int(np.argmax(squares))
    if largest == 3:
        quaternion = np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], 1 + trace])
    else:
        i, j, k = largest, (largest + 1) % 3, (largest + 2) % 3
        quaternion = np.empty(4)
        quaternion[i] = 1.0 + 2.0 * m[i, i] - trace
        quaternion[j] = m[j, i] + m[i, j]
        quaternion[k] = m[k, i] + m[i, k]
        quaternion[3] = m[k, j] - m[j, k]
    quaternion = quaternion / np.linalg.norm(quaternion)
    return -quaternion if quaternion[3] < 0 else quaternion


def quaternion_to_rotation(quaternion: np.ndarray) -> np.ndarray:
    """Return the (3, 3) rotation matrix of a (4,) quaternion (x, y, z, w) of any length but 0."""
    x, y, z, w = np.asarray(quaternion, float) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _orthonormal(rotation: np.ndarray) -> np.ndarray:
    # Thousands of 20 ms steps would let rounding errors grow; one SVD removes them.
    u, _, vt = np.linalg.svd(rotation)
    return u @ vt
