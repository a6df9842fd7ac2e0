"""How the datasets of Open X-Embodiment become OpenVLA's action: one table row per dataset.

The action is x y z, roll pitch yaw, gripper: motions as the dataset counts them (metres per step,
parts of the largest step, velocities), and the gripper absolute, 1 open and 0 closed. All numbers
are computed in float32, as the reference does. This file knows no files; `rlds.py` brings numbers.
Source: openvla @ c8f03f4, rlds/oxe/{transforms,configs}.py, rlds/oxe/utils/droid_utils.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from openvla_ros.data import oxe_mixtures as names
from openvla_ros.data.gripper_labels import absolute_gripper, binarize_gripper
from openvla_ros.errors import ConfigurationError

ACTION_DIM = 7
ACTION, STATE = "action", "observation/state"
WORLD, ROTATION = "action/world_vector", "action/rotation_delta"
CLOSEDNESS, OPEN = "action/gripper_closedness_action", "action/open_gripper"
VELOCITY, GRIPPER_TARGET = "action_dict/cartesian_velocity", "action_dict/gripper_position"
POSE, GRIPPER = "observation/cartesian_position", "observation/gripper_position"
# Quantiles with which DROID was normalised when its idle steps were looked for.
DROID_Q01 = np.array(
    [
        -0.7776297926902771,
        -0.5803514122962952,
        -0.5795090794563293,
        -0.6464047729969025,
        -0.7041108310222626,
        -0.8895104378461838,
    ],
    np.float32,
)
DROID_Q99 = np.array(
    [
        0.7597932070493698,
        0.5726242214441299,
        0.7351000607013702,
        0.6705610305070877,
        0.6464948207139969,
        0.8897542208433151,
    ],
    np.float32,
)


@dataclass(frozen=True)
class OxeTransform:
    """How the steps of one dataset are read.

    Attributes:
        camera: Feature of the observation that OpenVLA looks at.
        features: Names below a step, in the order in which `compute` takes their numbers.
        compute: (T, n) float32 of each feature to (T, 7) float32; a row of NaN for a step that is
            left out.
        pose: Features that together are x y z [m] roll pitch yaw [rad] gripper of the end effector;
            () where nothing is known to be that.
        instruction: Feature that holds the task; "" = where every dataset may have it.
        rate_hz: Steps per second, for names that `action_specs.yaml` does not describe.
        other_camera: Feature that OpenVLA looks at in half of the episodes instead; "" = none.
        is_idle: (T, 7) actions to (T,) bool: steps that count in the statistics, and that nothing
            is trained on. None = all are trained on.
    """

    camera: str
    features: tuple[str, ...]
    compute: Callable[..., np.ndarray]
    pose: tuple[str, ...] = ()
    instruction: str = ""
    rate_hz: float | None = None
    other_camera: str = ""
    is_idle: Callable[[np.ndarray], np.ndarray] | None = None

    def actions(self, *features: np.ndarray, where: str) -> np.ndarray:
        """Return (T, 7) float32, a row of NaN for a step that is left out.

        Args:
            features: (T, n) of each of `self.features`, finite.
            where: The recording, for the error.

        Raises:
            ConfigurationError: The features are too short or too long for seven numbers.
        """
        actions = self.compute(*(np.asarray(f, np.float32) for f in features))
        if actions.shape[1] != ACTION_DIM:
            sizes = ", ".join(
                f"{n} of {f.shape[1]}" for n, f in zip(self.features, features, strict=True)
            )
            raise ConfigurationError(
                f"{where}: {sizes} numbers give an action of {actions.shape[1]}, not {ACTION_DIM}. "
                "This is another dataset, or another version of it: name the right transform."
            )
        assert actions.dtype == np.float32, actions.dtype
        return actions


def named_transform(name: str) -> OxeTransform:
    """Return how a dataset is read.

    Raises:
        ConfigurationError: The name is not in `TRANSFORMS`; the text lists them.
    """
    if name not in TRANSFORMS:
        raise ConfigurationError(
            f"transform {name!r} is unknown. Known: {', '.join(sorted(TRANSFORMS))}. Leave it out "
            "when the dataset's action is seven numbers already."
        )
    return TRANSFORMS[name]


# Grippers: (T,) as stored to (T,) with 1 open, 0 closed.


def _as_stored(opening: np.ndarray) -> np.ndarray:
    return opening


def _inverted(closing: np.ndarray) -> np.ndarray:
    return np.float32(1.0) - closing


def _clipped(opening: np.ndarray) -> np.ndarray:
    return np.clip(opening, np.float32(0.0), np.float32(1.0))


def _clipped_inverted(closing: np.ndarray) -> np.ndarray:
    return _inverted(_clipped(closing))


Gripper = Callable[[np.ndarray], np.ndarray]


# Actions: features of a step to seven numbers.


def _whole(action: np.ndarray, *, drop_last: int = 0) -> np.ndarray:
    """The action as it is stored, without its last numbers."""
    return action[:, : action.shape[1] - drop_last]


def _vector(action: np.ndarray, *, gripper: Gripper) -> np.ndarray:
    """One vector: six motions first, the gripper last."""
    return np.column_stack([action[:, :6], gripper(action[:, -1])])


def _parts(
    world: np.ndarray, rotation: np.ndarray, gripper_part: np.ndarray, *, gripper: Gripper
) -> np.ndarray:
    """Translation, rotation and gripper as features of their own."""
    return np.column_stack([world, rotation, gripper(gripper_part[:, 0])])


def _without_rotation(world: np.ndarray, closing: np.ndarray) -> np.ndarray:
    return _parts(world, np.zeros_like(world), closing, gripper=absolute_gripper)


def _without_gripper(world: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    return np.column_stack([world, rotation, np.zeros_like(world[:, :1])])


def _relabelled(state: np.ndarray, opening: np.ndarray) -> np.ndarray:
    """BridgeData's motions are the differences of the poses that were reached.

    Its first step, all zeros, is left out, and so is the last, which reaches no next pose.
    """
    actions = np.full((len(state), ACTION_DIM), np.nan, np.float32)
    actions[1:-1, :6] = state[2:, :6] - state[1:-1, :6]
    actions[1:-1, 6] = opening[1:-1]
    return actions


def _bridge_orig(action: np.ndarray, state: np.ndarray) -> np.ndarray:
    return _relabelled(state, binarize_gripper(action[:, -1]))


def _bridge_oxe(is_open: np.ndarray, state: np.ndarray) -> np.ndarray:
    return _relabelled(state, is_open[:, 0])


def _planar(action: np.ndarray) -> np.ndarray:
    """Language-Table: x and y; the tool is no gripper and counts as open."""
    zeros = np.zeros_like(action)
    return np.column_stack([action, zeros, zeros, np.ones_like(action[:, :1])])


def _franka_play(action: np.ndarray) -> np.ndarray:
    return np.column_stack([action[:, -8:-2], _clipped(action[:, -2])])


def _with_quaternion(action: np.ndarray, *, gripper: Gripper, gripper_at: int) -> np.ndarray:
    """Translation, rotation as a quaternion (x y z w), gripper."""
    angles = euler_from_quaternion(action[:, 3:7])
    return np.column_stack([action[:, :3], angles, gripper(action[:, gripper_at])])


def _fanuc(action: np.ndarray, state: np.ndarray) -> np.ndarray:
    """The dataset has no gripper actions: whether it is closed stands for them."""
    return np.column_stack([action, _inverted(state[:, 6])])


def _first_residual(
    translation: np.ndarray, rotation: np.ndarray, closes: np.ndarray
) -> np.ndarray:
    """BC-Z stores ten future steps one after another: the first is the action."""
    return np.column_stack([translation[:, :3], rotation[:, :3], _inverted(closes[:, 0])])


def _play_fusion(action: np.ndarray) -> np.ndarray:
    return np.column_stack([action[:, :3], action[:, -4:]])


def _nonprehensile(action: np.ndarray) -> np.ndarray:
    return np.column_stack([action[:, :6], np.zeros_like(action[:, :1])])


def _droid(velocity: np.ndarray, closing: np.ndarray) -> np.ndarray:
    return np.column_stack([velocity[:, :6], _inverted(closing[:, 0])])


def _stands_still(actions: np.ndarray) -> np.ndarray:
    """(T,) whether all six motions are 0 once normalised with DROID's published quantiles."""
    motions = actions[:, :6].astype(np.float32)

    def normalized(values: np.ndarray) -> np.ndarray:
        spread = DROID_Q99 - DROID_Q01 + np.float32(1e-8)
        return np.clip(np.float32(2.0) * (values - DROID_Q01) / spread - np.float32(1.0), -1, 1)

    off = np.abs(normalized(motions) - normalized(np.zeros_like(motions)))
    return np.asarray((off <= np.float32(1e-5)).all(axis=1))


def euler_from_quaternion(quaternions: np.ndarray) -> np.ndarray:
    """Return roll pitch yaw [rad] of R = Rz(yaw) Ry(pitch) Rx(roll), (T, 3) in the given dtype.

    Args:
        quaternions: (T, 4) x y z w, of norm 1. At a pitch of 90 degrees the yaw is 0.

    Source: tensorflow_graphics 2021.12.3, geometry/transformation/euler.py, from_quaternion.
    """
    x, y, z, w = quaternions.astype(np.float64).T
    r00, r10 = 1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + z * w)
    r20 = np.clip(2.0 * (x * z - y * w), -1.0, 1.0)
    r21, r22 = 2.0 * (y * z + x * w), 1.0 - 2.0 * (x * x + y * y)
    r01, r02 = 2.0 * (x * y - z * w), 2.0 * (x * z + y * w)
    is_locked = np.abs(np.abs(r20) - 1.0) < 1e-6
    roll = np.where(is_locked, np.arctan2(-np.sign(r20) * r01, -np.sign(r20) * r02), 0.0)
    roll = np.where(is_locked, roll, np.arctan2(r21, r22))
    pitch = np.where(is_locked, -np.sign(r20) * (np.pi / 2), -np.arcsin(r20))
    yaw = np.where(is_locked, 0.0, np.arctan2(r10, r00))
    return np.stack([roll, pitch, yaw], axis=1).astype(quaternions.dtype)


def _one(
    camera: str, compute: Callable[..., np.ndarray], rate_hz: float | None = None
) -> OxeTransform:
    """A dataset whose action is one vector."""
    return OxeTransform(camera, (ACTION,), compute, rate_hz=rate_hz)


def _three(camera: str, gripper: Gripper, gripper_part: str = CLOSEDNESS) -> OxeTransform:
    """A dataset whose action is three vectors."""
    return OxeTransform(camera, (WORLD, ROTATION, gripper_part), partial(_parts, gripper=gripper))


_inverted_last = partial(_vector, gripper=_inverted)
_clipped_inverted_last = partial(_vector, gripper=_clipped_inverted)
_bridge = OxeTransform("image_0", (ACTION, STATE), _bridge_orig, pose=(STATE,), rate_hz=5.0)
_tabletop = OxeTransform(
    "static_image",
    (ACTION,),
    partial(_vector, gripper=binarize_gripper),
    pose=(POSE, GRIPPER),
    rate_hz=5.0,
)

#: Rates are given where `action_specs.yaml` has none. Source: huggingface/lerobot @ 66a3862,
#: push_dataset_to_hub/openx/configs.yaml; of tdroid_* and droid_wipe: the OpenVLA paper.
TRANSFORMS: dict[str, OxeTransform] = {
    "bridge_orig": _bridge,
    "bridge_dataset": _bridge,
    "bridge_oxe": OxeTransform("image", (OPEN, STATE), _bridge_oxe, pose=(STATE,), rate_hz=5.0),
    "fractal20220817_data": _three("image", absolute_gripper),
    "kuka": _three("image", absolute_gripper),
    "jaco_play": OxeTransform("image", (WORLD, CLOSEDNESS), _without_rotation),
    "berkeley_autolab_ur5": _three("image", absolute_gripper),
    "taco_play": OxeTransform(
        "rgb_static", ("action/rel_actions_world",), partial(_vector, gripper=_clipped)
    ),
    "roboturk": _three("front_rgb", _clipped_inverted),
    "viola": _three("agentview_rgb", _clipped_inverted),
    "berkeley_cable_routing": OxeTransform("image", (WORLD, ROTATION), _without_gripper),
    "toto": _three("image", _as_stored, OPEN),
    "language_table": OxeTransform(
        "rgb", (ACTION,), _planar, instruction="observation/instruction", rate_hz=10.0
    ),
    names.HYDRA: _one("image", _inverted_last),
    names.EDAN: _one("image", _inverted_last),
    names.BUDS: _one("image", _clipped_inverted_last),
    names.SAILOR: _one("image", _clipped_inverted_last),
    names.SIRIUS: _one("image", _clipped_inverted_last),
    "utaustin_mutex": _one("image", _clipped_inverted_last),
    names.FRANKA_PLAY: _one("image", _franka_play),
    names.FURNITURE: _one(
        "image", partial(_with_quaternion, gripper=_clipped_inverted, gripper_at=-1)
    ),
    names.PICKUP_INSERT: _one("image", partial(_with_quaternion, gripper=_as_stored, gripper_at=7)),
    names.KITCHEN: _one("image", partial(_whole, drop_last=1)),
    "cmu_stretch": _one("image", partial(_whole, drop_last=1)),
    "berkeley_fanuc_manipulation": OxeTransform("image", (ACTION, STATE), _fanuc),
    "bc_z": OxeTransform(
        "image",
        (
            "action/future/xyz_residual",
            "action/future/axis_angle_residual",
            "action/future/target_close",
        ),
        _first_residual,
    ),
    "fmb_dataset": _one("image_side_1", _whole),
    "dobbe": _one("wrist_image", _whole),
    "droid": OxeTransform(
        "exterior_image_1_left",
        (VELOCITY, GRIPPER_TARGET),
        _droid,
        pose=(POSE, GRIPPER),
        other_camera="exterior_image_2_left",
        is_idle=_stands_still,
    ),
    "droid_wipe": OxeTransform(
        "exterior_image_2_left",
        (VELOCITY, GRIPPER_TARGET),
        _droid,
        pose=(POSE, GRIPPER),
        rate_hz=15.0,
    ),
    "tdroid_carrot_in_bowl": _tabletop,
    "tdroid_pour_corn_in_pot": _tabletop,
    "tdroid_flip_pot_upright": _tabletop,
    "tdroid_move_object_onto_plate": _tabletop,
    "tdroid_knock_object_over": _tabletop,
    "tdroid_cover_object_with_towel": _tabletop,
    "libero_spatial_no_noops": _one("image", _clipped_inverted_last),
    "libero_object_no_noops": _one("image", _clipped_inverted_last),
    "libero_goal_no_noops": _one("image", _clipped_inverted_last),
    "libero_10_no_noops": _one("image", _clipped_inverted_last),
    names.MANISKILL: _one("image", _whole, 20.0),
    names.EXPLORATION: _one("highres_image", partial(_whole, drop_last=1), 10.0),
    names.NONPREHENSILE: _one("image", _nonprehensile, 10.0),
    names.ROBOCOOK: _one("image_1", _whole, 5.0),
    "cmu_play_fusion": _one("image", _play_fusion, 5.0),
}
