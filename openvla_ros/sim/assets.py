"""Where the shapes of an arm come from: other people's wheels, never this repository."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from openvla_ros.errors import DependencyError

VIPERX_PACKAGE = "gym_aloha"
VIPERX_REQUIREMENT = "gym-aloha==0.1.5"  # Apache-2.0


def viperx_folder() -> Path:
    """Return the folder with the ViperX 300 of gym-aloha: MJCF and meshes.

    Only files are read; the package is not imported, so what it depends on may be absent.

    Raises:
        DependencyError: It is not installed.
    """
    found = importlib.util.find_spec(VIPERX_PACKAGE)
    if found is not None and found.submodule_search_locations:
        folder = Path(found.submodule_search_locations[0]) / "assets"
        if (folder / "vx300s_dependencies.xml").is_file():
            return folder
    raise DependencyError(
        "the simulated ViperX 300 needs the meshes of gym-aloha, which are not installed: "
        f"pip install --no-deps '{VIPERX_REQUIREMENT}' (0.4 MB; without --no-deps it brings "
        "dm_control and gymnasium, which are not used here), or run `make setup`."
    )
