"""Real BridgeData frames and actions of the shared sample data, for tests that need them.

The data is not part of the repository: `OPENVLA_ROS_SHARED` names a folder that holds it under
`data/` (see docs/benchmarks/quantized_accuracy.md for what is expected there).
"""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import dataclass

import numpy as np
from PIL import Image

from openvla_ros.model.action_stats import ActionStats, parse_action_stats
from openvla_ros.model.action_stats import normalize as normalize  # for those who import this file
from openvla_ros.model.random_weights import BRIDGE_STATISTICS
from openvla_ros.ros.frame_sources import SHARED_VARIABLE, shared_data_folder

EPISODES = "bridge_octo_debug"
WINDOWS = "bridge_v2_frames100"
WHY_NOT = (
    f"no recorded episodes on this machine: {SHARED_VARIABLE} must name a folder with "
    f"data/{EPISODES} and data/{WINDOWS}"
)

#: A step of 0.2 s below both is a pause: 1 cm/s and 0.1 rad/s.
PAUSE_M = 0.002
PAUSE_RAD = 0.02


@dataclass(frozen=True)
class Episode:
    """Consecutive steps of one recording, seen by one camera.

    Attributes:
        name: Episode and camera.
        instruction: What the operator was asked to do.
        frames: (T, H, W, 3) uint8 RGB.
        actions: (T, 7) metres, radians, gripper (1 open), as commanded.
        states: (T, 7) pose of the end effector, and gripper.
    """

    name: str
    instruction: str
    frames: np.ndarray
    actions: np.ndarray
    states: np.ndarray


def has_recordings() -> bool:
    """Return whether this machine has the recorded data."""
    data = shared_data_folder()
    return data is not None and all((data / name).is_dir() for name in (EPISODES, WINDOWS))


def octo_episodes(camera: int = 0) -> list[Episode]:
    """Return 25 episode heads of ten steps, as camera 0, 1 or 2 saw them."""
    data = shared_data_folder()
    assert data is not None, WHY_NOT
    episodes = []
    for path in sorted((data / EPISODES).glob("episode_*.npz")):
        with np.load(path, allow_pickle=False) as stored:
            jpeg, offsets = stored[f"image_{camera}_jpeg"], stored[f"image_{camera}_offsets"]
            frames = [
                np.asarray(Image.open(io.BytesIO(jpeg[start:end].tobytes())).convert("RGB"))
                for start, end in itertools.pairwise(offsets)
            ]
            episodes.append(
                Episode(
                    name=f"{path.stem}/camera {camera}",
                    instruction=str(stored["instruction"]),
                    frames=np.stack(frames),
                    actions=stored["action"].astype(np.float64),
                    states=stored["state"].astype(np.float64),
                )
            )
    return episodes


def action_windows() -> list[np.ndarray]:
    """Return (T, 7) consecutive actions, T up to 10, from the middle of 100 other episodes."""
    data = shared_data_folder()
    assert data is not None, WHY_NOT
    samples = json.loads((data / WINDOWS / "samples.json").read_text(encoding="utf-8"))
    windows = []
    for sample in samples:
        # What precedes the first step is stored as zeros; it was never commanded.
        known = sample["history_actions"][max(0, 9 - sample["timestep"]) :]
        windows.append(np.array([*known, sample["action"]], np.float64))
    return windows


def bridge_stats() -> ActionStats:
    """Return the statistics that openvla-7b was trained with on this data."""
    key = "bridge_orig"
    return parse_action_stats(key, BRIDGE_STATISTICS[key], "random_weights.py")


def is_pause(actions: np.ndarray) -> np.ndarray:
    """Return (N,) bool: whether each action moves the arm less than `PAUSE_M` and `PAUSE_RAD`."""
    moved = np.linalg.norm(actions[:, :3], axis=1)
    turned = np.linalg.norm(actions[:, 3:6], axis=1)
    return (moved < PAUSE_M) & (turned < PAUSE_RAD)


def reached_actions(episode: Episode) -> np.ndarray:
    """Return (T - 1, 7): how far the arm really went, with the commanded gripper.

    What openvla-7b was trained on, in place of the commands.

    Source: openvla @ c8f03f4, relabel_bridge_actions.
    """
    moved = episode.states[1:, :6] - episode.states[:-1, :6]
    return np.concatenate([moved, episode.actions[:-1, 6:]], axis=1)
