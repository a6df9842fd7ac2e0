"""The launch file: its arguments are parameters, and it starts a node that becomes active."""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path

import pytest

from openvla_ros.config import PARAMETERS
from openvla_ros.errors import ConfigurationError

FILE = Path(__file__).resolve().parents[1] / "launch" / "openvla.launch.py"


def constant(name: str) -> object:
    for node in ast.parse(FILE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{FILE.name} defines no {name}")


def test_every_forwarded_argument_is_a_parameter() -> None:
    assert set(constant("FORWARDED")) <= set(PARAMETERS)


def test_the_documented_arguments_exist() -> None:
    arguments = {*constant("FORWARDED"), *constant("OTHERS")}
    assert arguments >= {
        "checkpoint", "revision", "quantization", "adapter", "unnorm_key", "backend", "robot",
        "image", "image_transport", "device", "instruction", "namespace", "params_file",
        "use_sim_time", "motion_enabled", "autostart", "log_level",
    }  # fmt: skip


def test_motion_is_never_enabled_by_default() -> None:
    assert "motion_enabled" in constant("FORWARDED")  # empty by default: the files decide
    assert PARAMETERS["motion_enabled"].default is False


@pytest.fixture
def launch_file():
    pytest.importorskip("launch_ros", reason="ros2 launch comes with an apt ROS, not with wheels")
    spec = importlib.util.spec_from_file_location("openvla_launch", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def started(launch_file, monkeypatch: pytest.MonkeyPatch, **given: str) -> list:
    from launch import LaunchContext

    monkeypatch.setattr(launch_file, "get_package_share_directory", lambda _: FILE.parents[1])
    context = LaunchContext()
    for argument in launch_file.generate_launch_description().entities[:-1]:
        argument.visit(context)
    context.launch_configurations.update(given)
    return launch_file._start(context)


def test_empty_arguments_override_nothing(launch_file, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict.fromkeys((*launch_file.FORWARDED, *launch_file.OTHERS), "")
    assert launch_file._overrides(given) == {}
    assert launch_file._overrides({**given, "use_sim_time": "false"}) == {"use_sim_time": False}


def test_an_empty_argument_of_an_including_launch_file_is_the_default(
    launch_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launch.actions import EmitEvent
    from launch_ros.actions import LifecycleNode

    given = dict.fromkeys((*launch_file.FORWARDED, *launch_file.OTHERS), "")
    actions = started(launch_file, monkeypatch, **given)
    assert any(isinstance(action, EmitEvent) for action in actions), "autostart is true by default"
    (node,) = (action for action in actions if isinstance(action, LifecycleNode))
    words = [str(getattr(part, "text", part)) for argument in node.cmd for part in argument]
    assert words[words.index("--log-level") + 1] == "info"


def test_autostart_activates_only_the_first_time(
    launch_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Configured again by hand, e.g. with another checkpoint, the arm must not move by itself."""
    from launch.actions import RegisterEventHandler

    actions = started(launch_file, monkeypatch)
    (handler,) = (a.event_handler for a in actions if isinstance(a, RegisterEventHandler))
    assert handler.handle_once


def test_arguments_have_the_types_of_their_parameters(launch_file) -> None:
    given = dict.fromkeys((*launch_file.FORWARDED, *launch_file.OTHERS), "")
    given |= {
        "use_sim_time": "true",
        "motion_enabled": "true",
        "action_hz": "5",
        "instruction": "pick: the cup",
        "mock_action": "[0.01, 0, 0, 0, 0, 0, 1]",
    }
    values = launch_file._overrides(given)
    assert values["use_sim_time"] is True and values["motion_enabled"] is True
    assert values["action_hz"] == 5.0 and isinstance(values["action_hz"], float)
    assert values["mock_action"] == [0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert values["instruction"].value == "pick: the cup"


def test_a_bad_argument_is_refused_by_name(launch_file, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="quantization"):
        started(launch_file, monkeypatch, quantization="int3")
    with pytest.raises(ConfigurationError, match="franka_servo"):
        started(launch_file, monkeypatch, robot="frnka")
    with pytest.raises(ConfigurationError, match="params_file"):
        started(launch_file, monkeypatch, params_file="/nowhere.yaml")


def test_the_image_profile_of_fast_dds_is_set_unless_the_user_has_one(
    launch_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launch.actions import SetEnvironmentVariable

    def sets_it() -> bool:
        actions = started(launch_file, monkeypatch)
        return any(isinstance(action, SetEnvironmentVariable) for action in actions)

    monkeypatch.setitem(os.environ, launch_file.FASTDDS_PROFILES, "mine.xml")
    assert not sets_it()
    monkeypatch.delitem(os.environ, launch_file.FASTDDS_PROFILES)
    assert sets_it()
