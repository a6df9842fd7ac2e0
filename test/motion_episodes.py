"""Episodes without images, for tests of what becomes of their actions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from openvla_ros.action_specs import load_action_spec
from openvla_ros.control.pose import Pose
from openvla_ros.data.episode import Episode
from openvla_ros.ros.frame_sources import SHARED_VARIABLE, shared_data_folder

SPEC = load_action_spec("bridge_orig")
START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 200_000_000
NO_OCTO_FILES = (
    f"no recorded episodes on this machine: {SHARED_VARIABLE} must name a folder with "
    "data/bridge_octo_debug"
)


def octo_actions() -> np.ndarray:
    """(25, 10, 7) actions of real WidowX episodes, 5 Hz."""
    path = Path(__file__).parent / "reference" / "bridge_octo_actions.npz"
    return np.load(path)["actions"].astype(np.float64)


def octo_files() -> list[Path]:
    """The same episodes with states and images, where this machine has them."""
    data = shared_data_folder()
    return [] if data is None else sorted((data / "bridge_octo_debug").glob("episode_*.npz"))


def episode_of(
    actions: np.ndarray,
    *,
    name: str = "episode_000",
    rate_hz: float = 5.0,
    states: np.ndarray | None = None,
    first_ns: int = START_NS,
    source: str = "a recording",
) -> Episode:
    """An episode whose images are small, and different in every step."""
    steps = len(actions)

    def images():
        for step in range(steps):
            yield np.full((16, 24, 3), [step, 255 - step, 40], np.uint8)

    return Episode(
        name=name,
        source=source,
        instruction="put spoon on towel",
        rate_hz=rate_hz,
        stamps_ns=first_ns + np.arange(steps, dtype=np.int64) * round(1e9 / rate_hz),
        actions=np.asarray(actions, np.float64),
        open_images=images,
        states=states,
    )


def composed(actions: np.ndarray, start: Pose | None = None) -> Pose:
    """Where base-axes deltas with Euler angles lead: plain NumPy, nothing of `control`."""
    position = np.zeros(3) if start is None else start.position.copy()
    rotation = np.eye(3) if start is None else start.rotation.copy()
    for action in actions:
        position = position + action[:3]
        rotation = turned(action[3:6]) @ rotation
    return Pose(position, rotation)


def turned(rpy: np.ndarray) -> np.ndarray:
    """(3, 3) Rz(yaw) Ry(pitch) Rx(roll)."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(rpy), np.sin(rpy)
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def angle_deg(one: np.ndarray, other: np.ndarray) -> float:
    """Angle between two rotation matrices; exact for small ones too."""
    difference = np.linalg.norm(one - other) / (2.0 * np.sqrt(2.0))  # = sin(angle / 2)
    return float(np.degrees(2.0 * np.arcsin(min(difference, 1.0))))
