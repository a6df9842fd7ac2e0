"""Records as the datasets of Open X-Embodiment store them, and the action each step stands for.

The widths are those of the published datasets. What an action is made of is written down here a
second time, one step at a time, from the table in the specification.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from recording_formats import encoded

Step = dict[str, np.ndarray]
FLAGS = ("open_gripper", "target_close")
CONVERTED = "_converted_externally_to_rlds"
WORLD, ROTATION = "action/world_vector", "action/rotation_delta"
CLOSING, OPEN = "action/gripper_closedness_action", "action/open_gripper"
STATE = "observation/state"
VELOCITY, TARGET = "action_dict/cartesian_velocity", "action_dict/gripper_position"
BC_Z = "action/future/"


@dataclass(frozen=True)
class OxeDataset:
    """Widths of the features of a step, the camera, and the action of one step."""

    features: dict[str, int]
    camera: str
    action: Callable[[Step], list[np.ndarray | float]]
    instruction: str = "observation/natural_language_instruction"


def _clip(value: float) -> float:
    return min(max(value, np.float32(0)), np.float32(1))


def _vector(last: Callable[[float], float], camera: str = "image", width: int = 7) -> OxeDataset:
    return OxeDataset(
        {"action": width},
        camera,
        lambda f: [*f["action"][:6], last(f["action"][-1])],
        "language_instruction",
    )


def _three(camera: str, last: Callable[[float], float], name: str = CLOSING) -> OxeDataset:
    return OxeDataset(
        {WORLD: 3, ROTATION: 3, name: 1},
        camera,
        lambda f: [*f[WORLD], *f[ROTATION], last(f[name][0])],
    )


def _shortened(camera: str = "image") -> OxeDataset:
    return OxeDataset(
        {"action": 8}, camera, lambda f: list(f["action"][:7]), "language_instruction"
    )


def _plain(camera: str) -> OxeDataset:
    return OxeDataset({"action": 7}, camera, lambda f: list(f["action"]), "language_instruction")


def _inverted(value: float) -> float:
    return np.float32(1) - value


def _clipped_inverted(value: float) -> float:
    return np.float32(1) - _clip(value)


#: Datasets whose steps are looked at one by one, without what came before or comes after.
DATASETS: dict[str, OxeDataset] = {
    "taco_play": OxeDataset(
        {"action/rel_actions_world": 7},
        "rgb_static",
        lambda f: [
            *f["action/rel_actions_world"][:6],
            _clip(f["action/rel_actions_world"][6]),
        ],
    ),
    "roboturk": _three("front_rgb", _clipped_inverted),
    "viola": _three("agentview_rgb", _clipped_inverted),
    "berkeley_cable_routing": OxeDataset(
        {WORLD: 3, ROTATION: 3}, "image", lambda f: [*f[WORLD], *f[ROTATION], 0.0]
    ),
    "toto": _three("image", float, OPEN),
    "language_table": OxeDataset(
        {"action": 2}, "rgb", lambda f: [*f["action"], 0, 0, 0, 0, 1], "observation/instruction"
    ),
    f"stanford_hydra_dataset{CONVERTED}": _vector(_inverted),
    f"dlr_edan_shared_control{CONVERTED}": _vector(_inverted),
    f"austin_buds_dataset{CONVERTED}": _vector(_clipped_inverted),
    f"austin_sailor_dataset{CONVERTED}": _vector(_clipped_inverted),
    f"austin_sirius_dataset{CONVERTED}": _vector(_clipped_inverted),
    "utaustin_mutex": _vector(_clipped_inverted),
    "libero_spatial_no_noops": _vector(_clipped_inverted),
    "libero_object_no_noops": _vector(_clipped_inverted),
    "libero_goal_no_noops": _vector(_clipped_inverted),
    "libero_10_no_noops": _vector(_clipped_inverted),
    f"nyu_franka_play_dataset{CONVERTED}": OxeDataset(
        {"action": 15},
        "image",
        lambda f: [*f["action"][7:13], _clip(f["action"][13])],
        "language_instruction",
    ),
    f"ucsd_kitchen_dataset{CONVERTED}": _shortened(),
    "cmu_stretch": _shortened(),
    f"cmu_franka_exploration_dataset{CONVERTED}": _shortened("highres_image"),
    "berkeley_fanuc_manipulation": OxeDataset(
        {"action": 6, STATE: 13},
        "image",
        lambda f: [*f["action"], np.float32(1) - f[STATE][6]],
        "language_instruction",
    ),
    "bc_z": OxeDataset(
        {
            f"{BC_Z}xyz_residual": 30,
            f"{BC_Z}axis_angle_residual": 30,
            f"{BC_Z}target_close": 10,
        },
        "image",
        lambda f: [
            *f[f"{BC_Z}xyz_residual"][:3],
            *f[f"{BC_Z}axis_angle_residual"][:3],
            1 - f[f"{BC_Z}target_close"][0],
        ],
    ),
    "fmb_dataset": _plain("image_side_1"),
    "dobbe": _plain("wrist_image"),
    f"maniskill_dataset{CONVERTED}": _plain("image"),
    f"stanford_robocook{CONVERTED}": _plain("image_1"),
    f"kaist_nonprehensile{CONVERTED}": OxeDataset(
        {"action": 20}, "image", lambda f: [*f["action"][:6], 0.0], "language_instruction"
    ),
    "cmu_play_fusion": OxeDataset(
        {"action": 9},
        "image",
        lambda f: [*f["action"][:3], *f["action"][5:]],
        "language_instruction",
    ),
    "droid_wipe": OxeDataset(
        {VELOCITY: 6, TARGET: 1},
        "exterior_image_2_left",
        lambda f: [*f[VELOCITY], np.float32(1) - f[TARGET][0]],
        "language_instruction",
    ),
}


def numbers(dataset: OxeDataset, steps: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """(T, n) of every feature: float32 beyond 0 and 1, flags as int64."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 2, (steps, width))
        if name.endswith(FLAGS)
        else rng.normal(0.4, 0.8, (steps, width)).astype(np.float32)
        for name, width in dataset.features.items()
    }


def actions_of(dataset: OxeDataset, features: dict[str, np.ndarray]) -> np.ndarray:
    """(T, 7) float32, one step after another."""
    steps = len(next(iter(features.values())))
    rows = [dataset.action({n: f[step] for n, f in features.items()}) for step in range(steps)]
    return np.array(rows, np.float32)


def record(
    dataset: OxeDataset, features: dict[str, np.ndarray], text: str = "pick up the can"
) -> dict[str, object]:
    """The features of one episode as TFDS flattens them, with a second camera beside the first."""
    steps = len(next(iter(features.values())))
    is_code = dataset.instruction == "observation/instruction"
    codes = np.tile(np.array([*map(ord, text), *[0] * 20]), (steps, 1))
    flat: dict[str, object] = {f"steps/{name}": values for name, values in features.items()}
    flat[f"steps/{dataset.instruction}"] = codes if is_code else [text.encode()] * steps
    flat[f"steps/observation/{dataset.camera}"] = [picture(step) for step in range(steps)]
    flat["steps/observation/another_view"] = [picture(100 + step) for step in range(steps)]
    return flat


def picture(level: int) -> bytes:
    """A PNG that is told apart by its grey level."""
    return encoded(np.full((8, 8, 3), level, np.uint8), "PNG")
