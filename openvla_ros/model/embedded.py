"""The checkpoint that comes with the package: `openvla-tiny`, for the simulated cell."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from openvla_ros.errors import CheckpointError

#: Its name wherever a checkpoint is named.
EMBEDDED = "openvla-tiny"
#: Statistics key of its training data.
EMBEDDED_UNNORM_KEY = "sim_viperx"

_FOLDER = "openvla_tiny"


def embedded_checkpoint() -> Path:
    """Return its folder.

    Raises:
        CheckpointError: This installation lacks it.
    """
    folder = Path(str(resources.files("openvla_ros"))) / "resources" / _FOLDER
    if not (folder / "config.json").exists():
        raise CheckpointError(
            f"This installation has no {EMBEDDED!r}: {folder} is missing or empty. Install "
            "openvla_ros again, or train it: python -m openvla_ros.sim.tiny --help"
        )
    return folder
