"""Where files go that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/openvla_ros, or ~/.cache/openvla_ros."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "openvla_ros"
