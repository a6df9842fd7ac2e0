"""The launch file: its arguments are parameters, and it starts a node that becomes active."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
from launch_files import LAUNCH, load, nodes, parameter, remappings, started

from openvla_ros.config import PARAMETERS
from openvla_ros.config.files import read_parameter_file
from openvla_ros.errors import ConfigurationError

FILE = LAUNCH / "openvla.launch.py"


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
        "use_sim_time", "motion_enabled", "autostart", "log_level", "split_streamer", "rviz",
        "record", "servo", "servo_node", "twist", "pose", "ee_pose", "output", "respawn",
    }  # fmt: skip


def test_motion_is_never_enabled_by_default() -> None:
    assert "motion_enabled" in constant("FORWARDED")  # empty by default: the files decide
    assert PARAMETERS["motion_enabled"].default is False


@pytest.fixture
def launch_file():
    return load(FILE.name)


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
        "gripper": "none",
        "mock_action": "[0.01, 0, 0, 0, 0, 0, 1]",
    }
    values = launch_file._overrides(given)
    assert values["use_sim_time"] is True and values["motion_enabled"] is True
    assert values["action_hz"] == 5.0 and isinstance(values["action_hz"], float)
    assert values["mock_action"] == [0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert values["instruction"].value == "pick: the cup"
    assert values["gripper.backend"].value == "none"


def test_a_bad_argument_is_refused_by_name(launch_file, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="quantization"):
        started(launch_file, monkeypatch, quantization="int3")
    with pytest.raises(ConfigurationError, match=r"gripper\.backend.*franka"):
        started(launch_file, monkeypatch, gripper="hand")
    with pytest.raises(ConfigurationError, match="franka_servo"):
        started(launch_file, monkeypatch, robot="frnka")
    with pytest.raises(ConfigurationError, match="params_file"):
        started(launch_file, monkeypatch, params_file="/nowhere.yaml")


def test_the_image_profile_of_fast_dds_is_set_unless_the_user_has_one(
    launch_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launch.actions import SetEnvironmentVariable

    def settings() -> int:
        actions = started(launch_file, monkeypatch)
        return sum(isinstance(action, SetEnvironmentVariable) for action in actions)

    for name in launch_file.FASTDDS_PROFILES:
        monkeypatch.delitem(os.environ, name, raising=False)
    assert settings() == 2  # one name up to Jazzy, another from Kilted on
    for name in launch_file.FASTDDS_PROFILES:
        monkeypatch.setitem(os.environ, name, "mine.xml")
        assert settings() == 0
        monkeypatch.delitem(os.environ, name)


def test_the_twist_of_a_split_streamer_comes_from_it_alone(
    launch_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    twist = "/servo_node/delta_twist_cmds"
    for extra, topic in (({}, "/cell/action_to_twist/twist_cmd"), ({"twist": twist}, twist)):
        actions = nodes(
            started(launch_file, monkeypatch, split_streamer="true", namespace="cell", **extra)
        )
        node, streamer = actions["openvla_node"], actions["action_to_twist"]
        # The node looks who listens on this topic; the streamer publishes there.
        assert remappings(node)["~/twist_cmd"] == topic == remappings(streamer)["~/twist_cmd"]
        assert parameter(node, "output") == "none"
        assert parameter(streamer, "output") is None
    assert "action_to_twist" not in nodes(started(launch_file, monkeypatch, split_streamer=""))


def test_nothing_is_respawned_unless_asked_and_the_streamer_never(
    launch_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A streamer that comes back would follow the node and move the arm, without being asked."""
    for respawn, expected in (("", False), ("true", True)):
        actions = nodes(
            started(
                launch_file, monkeypatch, respawn=respawn, split_streamer="true", servo="humble"
            )
        )
        flags = {name: bool(node._ExecuteLocal__respawn) for name, node in actions.items()}
        assert flags == {
            "openvla_node": expected,
            "action_to_twist": False,
            "servo_starter": False,
        }


def test_topics_are_remapped_only_when_given(launch_file, monkeypatch: pytest.MonkeyPatch) -> None:
    node = nodes(started(launch_file, monkeypatch))["openvla_node"]
    assert set(remappings(node)) == {"image", "image/compressed"}
    topics = {"twist": "/t", "pose": "/p", "ee_pose": "/e", "image": "/camera/image_raw"}
    node = nodes(started(launch_file, monkeypatch, **topics))["openvla_node"]
    assert remappings(node) == {
        "image": "/camera/image_raw",
        "image/compressed": "/camera/image_raw/compressed",
        "~/twist_cmd": "/t",
        "~/pose_cmd": "/p",
        "ee_pose": "/e",
    }


def test_servo_is_started_as_its_distribution_needs(
    launch_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openvla_ros.ros.servo_starter import STARTERS

    assert set(launch_file.SERVOS) == set(STARTERS)
    assert "servo_starter" not in nodes(started(launch_file, monkeypatch))
    starter = nodes(started(launch_file, monkeypatch, servo="jazzy"))["servo_starter"]
    assert starter._Node__arguments == ["jazzy", "--node", "/servo_node"]
    with pytest.raises(ConfigurationError, match="jazzy, humble"):
        started(launch_file, monkeypatch, servo="foxy")


def test_rviz_looks_from_the_base_of_the_robot(
    launch_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arguments(**given: str) -> list:
        return nodes(started(launch_file, monkeypatch, rviz="true", **given))[
            "rviz2"
        ]._Node__arguments

    assert arguments(robot="franka_servo")[2:] == ["-f", "fr3_link0"]
    assert arguments(robot="franka_servo", base_frame="world")[2:] == ["-f", "world"]
    assert arguments()[2:] == []
    assert Path(arguments()[1]).is_file()


# The demonstration --------------------------------------------------------------------------------


def test_the_mock_launch_moves_only_the_mock_robot(monkeypatch: pytest.MonkeyPatch) -> None:
    mock_file, main_file = load("openvla_mock.launch.py"), load(FILE.name)
    from launch.actions import IncludeLaunchDescription

    for split, twist in (("", "/openvla_node"), ("true", "/action_to_twist")):
        actions = started(mock_file, monkeypatch, split_streamer=split)
        robot = nodes(actions)["mock_robot"]
        assert remappings(robot)["twist_cmd"] == f"{twist}/twist_cmd"
        (include,) = (a for a in actions if isinstance(a, IncludeLaunchDescription))
        passed = dict(include.launch_arguments)
        assert (passed["robot"], passed["backend"]) == ("mock", "mock")
        assert "twist" not in passed, "the twist must not reach a real controller"
        assert set(passed) <= {*main_file.FORWARDED, *main_file.OTHERS}
    values = read_parameter_file(FILE.parents[1] / "config" / "robots" / "mock.yaml")
    assert values["base_frame"] == mock_file.BASE_FRAME


# MoveIt Servo ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["franka", "widowx"])
@pytest.mark.parametrize(
    ("servo", "program"), [("humble", "servo_node_main"), ("jazzy", "servo_node")]
)
def test_servo_gets_the_files_of_its_arm_and_is_started(
    arm: str, servo: str, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    servo_file = load("servo.launch.py")
    actions = nodes(started(servo_file, monkeypatch, arm=arm, servo=servo))
    assert set(actions) == {program, "servo_starter"}
    parameters = actions[program]._Node__parameters
    files = [Path(p.param_file[0].text) for p in parameters[:2]]
    assert [file.name for file in files] == [f"{arm}_servo_{servo}.yaml", f"{arm}_kinematics.yaml"]
    assert all(file.is_file() for file in files)
    assert parameter(actions[program], "use_sim_time") is False
    assert actions["servo_starter"]._Node__arguments == [servo]


def test_servo_is_refused_for_an_arm_that_has_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    servo_file = load("servo.launch.py")
    for given in ({"arm": "ur5", "servo": "jazzy"}, {"arm": "franka", "servo": "iron"}):
        with pytest.raises(ConfigurationError, match="is not one of"):
            started(servo_file, monkeypatch, **given)
