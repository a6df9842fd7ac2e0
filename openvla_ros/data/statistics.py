"""Action statistics of training data, as they are written into a checkpoint.

Source: openvla @ c8f03f4, rlds/utils/data_utils.py, get_dataset_statistics.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros.data.atomic_files import write_whole_file

_FORMAT = 1  # of the kept files; another one makes them anew


def action_statistics(actions: np.ndarray, episodes: int, mask: np.ndarray) -> dict[str, Any]:
    """Return the statistics entry of a dataset, as JSON types.

    Args:
        actions: (N, n) of all steps, held-out ones too; taken as float32, as training sees them.
        episodes: From which they are.
        mask: (n,) bool, False where a number is not normalised (the gripper).

    Returns:
        {"action": {mean, std, max, min, q01, q99, mask}, "proprio": the same of zeros,
        "num_transitions": N, "num_trajectories": episodes}; std is the population's, quantiles are
        interpolated linearly in float64.
    """
    seen = np.asarray(actions, np.float32)
    assert seen.ndim == 2 and len(seen) and seen.shape[1:] == mask.shape, (seen.shape, mask.shape)
    action = {
        "mean": seen.mean(axis=0).tolist(),
        "std": seen.std(axis=0).tolist(),
        "max": seen.max(axis=0).tolist(),
        "min": seen.min(axis=0).tolist(),
        "q01": np.quantile(seen.astype(np.float64), 0.01, axis=0).tolist(),
        "q99": np.quantile(seen.astype(np.float64), 0.99, axis=0).tolist(),
    }
    return {
        "action": action | {"mask": np.asarray(mask, bool).tolist()},
        "proprio": {name: [0.0] * seen.shape[1] for name in action},
        "num_transitions": len(seen),
        "num_trajectories": episodes,
    }


def cached_statistics(
    actions: np.ndarray, episodes: int, mask: np.ndarray, folder: Path
) -> dict[str, Any]:
    """Return `action_statistics`, kept in `folder` by a hash of all that goes into them.

    Raises:
        StorageError: The file cannot be written.
    """
    seen = np.ascontiguousarray(actions, np.float32)
    digest = hashlib.sha256(f"{_FORMAT} {seen.shape} {episodes} {mask.tolist()}".encode())
    digest.update(seen.tobytes())
    path = folder / f"dataset_statistics_{digest.hexdigest()}.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # not there yet, or damaged
        entry = action_statistics(seen, episodes, mask)
    write_whole_file(path, [json.dumps(entry, indent=2).encode()])
    return entry
