"""Launch files as tests read them: loaded as modules, their actions looked at, nothing started."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"


def load(name: str):
    """Return a launch file of this package as a module; skip the test where launch is not."""
    path = LAUNCH / name
    pytest.importorskip("launch_ros", reason="ros2 launch comes with an apt ROS, not with wheels")
    spec = importlib.util.spec_from_file_location(path.name.partition(".")[0] + "_launch", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def started(launch_file, monkeypatch: pytest.MonkeyPatch, **given: str) -> list:
    """Return the actions of a launch file for the given arguments."""
    from launch import LaunchContext

    if hasattr(launch_file, "get_package_share_directory"):
        monkeypatch.setattr(launch_file, "get_package_share_directory", lambda _: ROOT)
    context = LaunchContext()
    context.launch_configurations.update(given)
    for argument in launch_file.generate_launch_description().entities[:-1]:
        argument.visit(context)
    return launch_file._start(context)


def nodes(actions: list) -> dict:
    """Executable → node action."""
    from launch_ros.actions import Node

    return {a.node_executable: a for a in actions if isinstance(a, Node)}


def remappings(node) -> dict[str, str]:
    """From → to."""
    return {
        "".join(part.text for part in old): "".join(part.text for part in new)
        for old, new in node.expanded_remapping_rules or node._Node__remappings
    }


def given_parameters(node) -> dict:
    """The last parameters of a node: those of the arguments."""
    return node._Node__parameters[-1]


def parameter(node, name: str):
    """What the arguments set a parameter to; None when they leave it to the files."""
    found = [v for k, v in given_parameters(node).items() if k[0].text == name]
    if not found or isinstance(found[0], bool):
        return found[0] if found else None
    return yaml.safe_load(found[0][0].text)
