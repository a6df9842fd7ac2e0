"""How commands speak: tables for people, JSON for machines, one red message when it goes wrong.

In JSON mode standard output holds the JSON and nothing else.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from openvla_ros.errors import DependencyError, OpenVLAError

PIPE_WIDTH = 140  # columns
_EXTRAS = {
    "torch": "model",
    "transformers": "model",
    "tokenizers": "model",
    "huggingface_hub": "model",
    "peft": "model",
    "accelerate": "model",
    "bitsandbytes": "quant",
    "rosbags": "bags",
    "pyarrow": "lerobot",
    "av": "lerobot",
    "ray": "ray",
    "foxglove": "foxglove",
    "matplotlib": "plots",
    "mujoco": "sim",
    "tensorboard": "train",
}
_ROS_MODULES = {"rclpy", "std_msgs", "sensor_msgs", "geometry_msgs", "lifecycle_msgs"}


def print_json(value: Any) -> None:
    """Write `value` as one JSON document; arrays become lists, numbers JSON lacks become null."""
    json.dump(_plain(value), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def print_error(error: OpenVLAError, *, as_json: bool) -> None:
    """Write an error for a person on standard error, and as JSON on standard output if asked."""
    if as_json:
        print_json({"error": str(error), "type": type(error).__name__})
    Console(stderr=True).print(
        f"[bold red]{type(error).__name__}:[/] {escape(str(error))}", soft_wrap=True
    )


def wide_console() -> Console:
    """Return a console for tables: a pipe or file gets lines as long as the tables need."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


@contextmanager
def needs(purpose: str) -> Iterator[None]:
    """Turn a missing optional library inside the block into an error that says how to get it.

    Raises:
        DependencyError: A known optional library, or ROS 2, cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        missing = (error.name or "").split(".")[0]
        if missing in _EXTRAS:
            raise DependencyError(
                f"{purpose} needs {missing}, which is not installed: "
                f"{how_to_install(missing, _EXTRAS[missing])}."
            ) from error
        if missing in _ROS_MODULES or error.name in (
            "openvla_ros.msg",
            "openvla_ros.srv",
            "openvla_ros.action",
        ):
            raise DependencyError(
                f"{purpose} needs ROS 2 and this package's messages ({error}). Run `make setup` "
                "and `source scripts/env.bash`, or source the workspace that holds openvla_ros."
            ) from error
        raise


def how_to_install(name: str, extra: str) -> str:
    """Return what brings an optional library of this package; torch is the user's to choose."""
    command = f"pip install '.[{extra}]' in the folder of openvla_ros"
    if name != "torch":
        return command
    return f"first torch as https://pytorch.org/get-started/locally/ says, then {command}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
