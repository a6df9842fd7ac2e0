"""What the robot did from one image to the next, from what was recorded: twists, poses, numbers.

This file knows no bag: it works on what `bag_tracks` has read.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from openvla_ros.control.displacement import rotation_vector
from openvla_ros.control.pose import exponential_map, quaternion_to_rotation
from openvla_ros.data.alignment import (
    held_during,
    last_at_or_before,
    own_of_step,
    recent_at_step,
    step_ends,
)
from openvla_ros.data.bag_numbers import ANSWER, POSE, TWIST
from openvla_ros.data.bag_tracks import Track
from openvla_ros.data.topics import ActionSource, TopicConfig
from openvla_ros.errors import ConfigurationError

OPENVLA_NUMBERS = 7  # of an action, where nothing was recorded that would say otherwise
# A velocity or a pose that is older than this many steps says nothing about the present one.
HELD_STEPS = 1.5
_GIMBAL_LOCK = 1.0 - 1e-12


def recorded_actions(
    tracks: Mapping[str, Track], config: TopicConfig, step_ns: np.ndarray, period_ns: int
) -> np.ndarray:
    """Return the action of every step of one episode.

    Args:
        tracks: What the topics say, by role, see `bag_tracks.read_tracks`.
        config: How the action topic is to be read.
        step_ns: (T,) stamps of the images.
        period_ns: One step at the rate of the dataset.

    Returns:
        (T, n) float64; a row of NaN where nothing was recorded. Twists and poses: metres, radians,
        gripper (1 open), in base axes. Arrays and answers: as recorded.

    Raises:
        ConfigurationError: Nobody said where the gripper of a twist or a pose is.
    """
    action = tracks.get("action")
    if action is None:
        return np.full((len(step_ns), OPENVLA_NUMBERS), np.nan)
    if action.message_type == TWIST:
        moves = _integrated(action, config.action, step_ns, period_ns)
    elif action.message_type == POSE or config.action.differences:
        moves = _differences(action, config.action, step_ns, period_ns)
    elif action.message_type == ANSWER:
        moves = _rows(action, _of_same_stamp(action.stamps_ns, step_ns))
    else:
        moves = _rows(action, own_of_step(action.stamps_ns, step_ns, period_ns))
    return _with_gripper(moves, action, tracks.get("gripper"), config, step_ns)


def recorded_states(
    tracks: Mapping[str, Track], step_ns: np.ndarray, period_ns: int
) -> np.ndarray | None:
    """Return (T, m) what the state topic said last at each image; None = there is no such topic.

    Poses: x y z [m] roll pitch yaw [rad]. A row of NaN where it said nothing for 1.5 steps.
    """
    state = tracks.get("state")
    if state is None:
        return None
    rows = _rows(state, recent_at_step(state.stamps_ns, step_ns, HELD_STEPS * period_ns))
    return _euler_poses(rows) if state.message_type == POSE else rows


def roll_pitch_yaw(rotation: np.ndarray) -> np.ndarray:
    """(3,) radians of a (3, 3) rotation Rz(yaw) Ry(pitch) Rx(roll); pitch in [-pi/2, pi/2].

    Where the arm points straight up or down, roll is 0: only roll and yaw together are known.
    """
    sine = -float(rotation[2, 0])
    if abs(sine) > _GIMBAL_LOCK:
        yaw = np.arctan2(-rotation[0, 1], rotation[1, 1])
        return np.array([0.0, np.copysign(np.pi / 2, sine), yaw])
    return np.array(
        [
            np.arctan2(rotation[2, 1], rotation[2, 2]),
            np.arcsin(sine),
            np.arctan2(rotation[1, 0], rotation[0, 0]),
        ]
    )


def _rows(track: Track, index: np.ndarray) -> np.ndarray:
    """(T, m): the values at these indices, NaN at -1."""
    rows = np.full((len(index), track.values.shape[1]), np.nan)
    rows[index >= 0] = track.values[index[index >= 0]]
    return rows


def _of_same_stamp(stamps_ns: np.ndarray, step_ns: np.ndarray) -> np.ndarray:
    index = last_at_or_before(stamps_ns, step_ns)
    return np.where((index >= 0) & (stamps_ns[index] == step_ns), index, -1)


def _integrated(
    twist: Track, source: ActionSource, step_ns: np.ndarray, period_ns: int
) -> np.ndarray:
    """(T, 6): how far the velocities of each step lead."""
    hold_ns = source.hold_s * 1e9 or HELD_STEPS * period_ns
    moves = np.full((len(step_ns), 6), np.nan)
    for move, begin, end in zip(moves, step_ns, step_ends(step_ns, period_ns), strict=True):
        held = held_during(twist.stamps_ns, int(begin), int(end), hold_ns)
        if held is None:
            continue
        velocities = twist.values[held.indices]  # (k, 6)
        move[:] = held.durations_s @ velocities
        if source.rotation == "rotvec_rate":
            turn = np.eye(3)
            for velocity, duration_s in zip(velocities, held.durations_s, strict=True):
                turn = exponential_map(velocity[3:] * duration_s) @ turn  # about base axes
            is_vector = source.rotation_form == "rotvec"
            move[3:] = rotation_vector(turn) if is_vector else roll_pitch_yaw(turn)
    return moves


def _differences(
    pose: Track, source: ActionSource, step_ns: np.ndarray, period_ns: int
) -> np.ndarray:
    """(T, 6): how far the pose moves until the next step; the last step has none, so it is NaN.

    Source: openvla @ c8f03f4, relabel_bridge_actions, for euler_difference.
    """
    index = recent_at_step(pose.stamps_ns, step_ns, HELD_STEPS * period_ns)
    poses = _rows(pose, index)
    if pose.message_type == POSE and source.rotation == "euler_difference":
        poses = _euler_poses(poses)
    moves = np.full((len(step_ns), 6), np.nan)
    # A pose that is not newer than that of the step says nothing about its motion.
    is_known = (index[:-1] >= 0) & (index[1:] > index[:-1])
    for step in np.flatnonzero(is_known).tolist():
        here, there = poses[step], poses[step + 1]
        moves[step, :3] = there[:3] - here[:3]
        if source.rotation == "euler_difference":
            moves[step, 3:] = _within_half_a_turn(there[3:6] - here[3:6])
        else:
            turn = quaternion_to_rotation(there[3:]) @ quaternion_to_rotation(here[3:]).T
            is_vector = source.rotation == "rotvec"
            moves[step, 3:] = rotation_vector(turn) if is_vector else roll_pitch_yaw(turn)
    return moves


def _within_half_a_turn(angles: np.ndarray) -> np.ndarray:
    """The same angles in [-pi, pi]; those that are there already keep every bit."""
    turned = (angles + np.pi) % (2 * np.pi) - np.pi
    return np.where(np.abs(angles) > np.pi, turned, angles)


def _euler_poses(rows: np.ndarray) -> np.ndarray:
    """(T, 6) x y z roll pitch yaw of (T, 7) x y z and quaternion; NaN rows stay NaN."""
    poses = np.full((len(rows), 6), np.nan)
    for pose, row in zip(poses, rows, strict=True):
        if not np.isnan(row).any():
            pose[:] = np.concatenate([row[:3], roll_pitch_yaw(quaternion_to_rotation(row[3:]))])
    return poses


def _with_gripper(
    moves: np.ndarray,
    action: Track,
    gripper: Track | None,
    config: TopicConfig,
    step_ns: np.ndarray,
) -> np.ndarray:
    """(T, n + 1) with the gripper as the last number, where the action topic has none."""
    is_motion = action.message_type in (TWIST, POSE) or config.action.differences
    if not config.gripper.is_given and is_motion:
        raise ConfigurationError(
            f"the action topic {action.topic} has no gripper: name the topic of the gripper under "
            "`gripper` in the topic file, or write `gripper: none`."
        )
    if config.gripper.is_given and action.message_type == ANSWER:
        raise ConfigurationError(
            f"the answers on {action.topic} have a gripper. Leave `gripper` out of the topic file."
        )
    if not config.gripper.is_given or config.gripper.is_absent:
        return moves
    if gripper is None:
        opening = np.full((len(step_ns), 1), config.gripper.constant, np.float64)
    else:  # a command holds until the next one, however long ago it came
        opening = _rows(gripper, last_at_or_before(gripper.stamps_ns, step_ns))
    actions = np.concatenate([moves, opening], axis=1)
    actions[np.isnan(actions).any(axis=1)] = np.nan
    return actions
