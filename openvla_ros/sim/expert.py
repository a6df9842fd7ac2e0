"""Does every task by looking at where things are: the teacher of the embedded policy.

It has no memory: what it does follows from the state alone, so it also knows the way back from
states that somebody else has brought about.
"""

from __future__ import annotations

import numpy as np

from openvla_ros.control.displacement import euler_matrix, rotation_vector
from openvla_ros.control.pose import exponential_map, rotation_to_quaternion
from openvla_ros.data.oxe_transforms import euler_from_quaternion
from openvla_ros.sim.arms import TOOL_DOWN
from openvla_ros.sim.scene import BLOCK_SIZE_M, PLATE_HEIGHT_M
from openvla_ros.sim.tasks import (
    DIRECTIONS,
    PUSH_M,
    REACH_ABOVE_M,
    CellState,
    Task,
    is_on_plate,
)

STEP_S = 0.2  # 5 Hz, as BridgeData
MAX_STEP_M = 0.03  # norm of one step's translation
MAX_STEP_RAD = 0.12
GRASP_Z_M = 0.022  # tool point above the table when it closes on a block
PUSH_Z_M = 0.028
TRAVEL_Z_M = 0.10  # tool point above the table, clear of blocks and of a block that is held
BEHIND_M = 0.055  # tool point to the block's centre before a push
OPEN, CLOSED = 1.0, 0.0
_ALIGNED_M = 0.008
_LOW_M = 0.006
_LET_GO = 0.85  # opening at which the fingers are clear of a block


def expert_action(task: Task, state: CellState) -> np.ndarray:
    """Return what to do for the next 0.2 s.

    Returns:
        (7,) float64: translation in m and roll, pitch, yaw in rad (R = Rz Ry Rx, along base axes,
        multiplied from the left), then the opening of the gripper, 0 or 1: the action of
        BridgeData. All zero but the opening where nothing is left to do.
    """
    goal, opening = _GOALS[task.kind](task, state)
    move = goal - state.tool.position
    length = float(np.linalg.norm(move))
    if length > MAX_STEP_M:
        move *= MAX_STEP_M / length
    turn = rotation_vector(TOOL_DOWN @ state.tool.rotation.T)
    angle = float(np.linalg.norm(turn))
    if angle > MAX_STEP_RAD:
        turn *= MAX_STEP_RAD / angle
    return np.concatenate([move, _euler(turn), [opening]])


def _euler(turn: np.ndarray) -> np.ndarray:
    quaternion = rotation_to_quaternion(exponential_map(turn))
    return euler_from_quaternion(quaternion[None])[0]


def action_twist(action: np.ndarray, duration_s: float = STEP_S) -> np.ndarray:
    """Return the (6,) twist in m/s and rad/s that does a (7,) action in `duration_s`."""
    turn = rotation_vector(euler_matrix(action[3:6]))
    return np.concatenate([action[:3], turn]) / duration_s


def _up(height_m: float) -> np.ndarray:
    return np.array([0.0, 0.0, height_m])


def _above(place: np.ndarray, z: float) -> np.ndarray:
    return np.array([place[0], place[1], z])


def _funnel(state: CellState, goal: np.ndarray, clearance_m: float, slope: float) -> np.ndarray:
    """Where to go for `goal`: the further beside it, the higher, up to `clearance_m` above it."""
    beside = float(np.linalg.norm((goal - state.tool.position)[:2]))
    return goal + _up(min(clearance_m, slope * max(beside - _ALIGNED_M, 0.0)))


def _reach(task: Task, state: CellState) -> tuple[np.ndarray, float]:
    block = state.blocks[task.target]
    goal = block + _up(BLOCK_SIZE_M / 2 + REACH_ABOVE_M)
    return _funnel(state, goal, 0.04, 0.7), OPEN


def _push(task: Task, state: CellState) -> tuple[np.ndarray, float]:
    along = np.array([*DIRECTIONS[task.direction], 0.0])
    block, start = state.blocks[task.target], state.start[task.target]
    left = PUSH_M - float((block - start) @ along)
    tool = state.tool.position
    if left <= 0.0:
        return _above(tool, TRAVEL_Z_M) if tool[2] < TRAVEL_Z_M else tool, CLOSED
    offset = tool - block
    ahead = float(offset @ along)
    beside = offset - ahead * along
    is_behind = ahead < -BLOCK_SIZE_M / 2
    beside_m = float(np.linalg.norm(beside[:2]))
    if is_behind and beside_m < 2 * _ALIGNED_M and tool[2] < PUSH_Z_M + 2 * _LOW_M:
        return _above(tool + along * min(left + 0.01, MAX_STEP_M) - beside, PUSH_Z_M), CLOSED
    behind = _above(block - BEHIND_M * along, PUSH_Z_M)
    away = float(np.linalg.norm((tool - behind)[:2]))
    if away < _ALIGNED_M:
        return behind, CLOSED
    if tool[2] < TRAVEL_Z_M - 2 * _LOW_M and away > 3 * _ALIGNED_M:
        return _above(tool, TRAVEL_Z_M), CLOSED  # first up, then across
    return _above(behind, TRAVEL_Z_M if away > 3 * _ALIGNED_M else max(tool[2], PUSH_Z_M)), CLOSED


def _grasp(colour: str, state: CellState) -> tuple[np.ndarray, float]:
    block, tool = state.blocks[colour], state.tool.position
    goal = _above(block, max(GRASP_Z_M, block[2]))
    offset = goal - tool
    beside = float(np.linalg.norm(offset[:2]))
    is_low = -offset[2] < _LOW_M
    if beside < 1.5 * _ALIGNED_M and is_low:
        return goal, CLOSED
    if beside > 3 * _ALIGNED_M:  # across, above the blocks
        return _above(block, max(TRAVEL_Z_M, goal[2])), OPEN
    return _funnel(state, goal, TRAVEL_Z_M - GRASP_Z_M, 4.0), OPEN


def _pick(task: Task, state: CellState) -> tuple[np.ndarray, float]:
    if state.is_held(task.target):
        return _above(state.tool.position, TRAVEL_Z_M + 0.02), CLOSED
    return _grasp(task.target, state)


def _place(task: Task, state: CellState) -> tuple[np.ndarray, float]:
    assert state.plate is not None, "a scene without a plate"
    tool, block = state.tool.position, state.blocks[task.target]
    beside = float(np.linalg.norm((block - state.plate)[:2]))
    grip = tool - block  # how the block sits between the fingers
    goal = state.plate + grip + _up(BLOCK_SIZE_M / 2 + 0.002)
    if is_on_plate(state, task.target) and beside < 3 * _ALIGNED_M:
        is_free = state.opening > _LET_GO
        return (_above(tool, max(TRAVEL_Z_M, tool[2])) if is_free else goal), OPEN
    if not state.is_held(task.target):
        return _grasp(task.target, state)
    if beside < 2 * _ALIGNED_M:
        return goal, CLOSED
    if block[2] < BLOCK_SIZE_M / 2 + PLATE_HEIGHT_M + 0.03:
        return _above(tool, TRAVEL_Z_M), CLOSED  # first up, then across
    return _above(goal, TRAVEL_Z_M), CLOSED


_GOALS = {"reach": _reach, "push": _push, "pick": _pick, "place": _place}
