"""What a dataset says about the gripper, as OpenVLA learns it: per step, 1 open and 0 closed.

Both readings look at float32, as the reference does: 0.1 stored as float32 is not above 0.1.
"""

from __future__ import annotations

import numpy as np

OPEN_ABOVE, CLOSED_BELOW = 0.95, 0.05
#: A relative command closer to 0 than this holds the gripper as it is.
HOLD_WITHIN = 0.1
#: Numbers of an action that is the motion of a pose, and says nothing of a gripper.
POSE_DIM = 6


def has_gripper(action_dim: int) -> bool:
    """Return whether the last number of an action is the gripper, and all others are motions."""
    return action_dim != POSE_DIM


def binarize_gripper(gripper: np.ndarray) -> np.ndarray:
    """Return the openings as 0 or 1; one that is on its way counts as what it arrives at.

    Args:
        gripper: (T,) opening from 0 (closed) to 1 (open), finite.

    Returns:
        (T,) in the dtype of `gripper`. Steps at the end that never arrive get the last value as it
        is.

    Source: openvla @ c8f03f4, rlds/utils/data_utils.py, binarize_gripper_actions.
    """
    assert gripper.ndim == 1, gripper.shape
    if len(gripper) == 0:
        return gripper.copy()
    stored = gripper.astype(np.float32)
    is_open, is_closed = stored > np.float32(OPEN_ABOVE), stored < np.float32(CLOSED_BELOW)
    values = np.append(is_open.astype(gripper.dtype), gripper[-1])
    # The settled step at or after each one; behind the last of them stands the last value itself.
    steps = np.where(is_open | is_closed, np.arange(len(gripper)), len(gripper))
    return values[np.minimum.accumulate(steps[::-1])[::-1]]


def absolute_gripper(closing: np.ndarray) -> np.ndarray:
    """Return what the gripper is told to be, from commands that say only what changes.

    Args:
        closing: (T,) commands, above 0.1 = close, below -0.1 = open, else hold; finite.

    Returns:
        (T,) in the dtype of `closing`: 1 open, 0 closed. Before its first command the gripper is
        the opposite of it; without any it is open.

    Source: openvla @ c8f03f4, rlds/utils/data_utils.py, rel2abs_gripper_actions.
    """
    assert closing.ndim == 1, closing.shape
    stored = closing.astype(np.float32)
    opens, closes = stored < np.float32(-HOLD_WITHIN), stored > np.float32(HOLD_WITHIN)
    changes = np.flatnonzero(opens | closes)
    before = 1.0 if len(changes) == 0 else 1.0 - float(opens[changes[0]])
    values = np.append(opens.astype(closing.dtype), closing.dtype.type(before))
    # The command at or before each step; -1, the last of `values`, before the first command.
    steps = np.where(opens | closes, np.arange(len(closing)), -1)
    return values[np.maximum.accumulate(steps)]
