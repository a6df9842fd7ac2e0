"""Robot profiles and the Servo files beside them agree with each other and with our limits."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

from openvla_ros.action_specs import load_action_spec
from openvla_ros.config import NodeConfig
from openvla_ros.config.files import read_parameter_file
from openvla_ros.control.motion import complete_spec
from openvla_ros.errors import ConfigurationError

CONFIG = Path(__file__).resolve().parents[1] / "config"
PROFILES = sorted(path.stem for path in (CONFIG / "robots").glob("*.yaml"))
SERVO = sorted((CONFIG / "servo").glob("*_servo_*.yaml"))


def profile(name: str) -> NodeConfig:
    return NodeConfig.from_values(read_parameter_file(CONFIG / "robots" / f"{name}.yaml"))


def servo(path: Path) -> dict[str, Any]:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tree["/**"]["ros__parameters"]["moveit_servo"]


def arm_of(path: Path) -> NodeConfig:
    return profile(path.stem.rpartition("_")[0])


def test_the_promised_profiles_are_there() -> None:
    assert {"franka_servo", "franka_pose_crisp", "widowx_servo", "sim", "mock"} <= set(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_a_real_arm_starts_at_half_size_and_keeps_its_checks(name: str) -> None:
    config = profile(name)
    is_real = name not in ("mock", "sim")
    assert config.motion.speed_scale == (0.5 if is_real else 1.0)
    assert not config.motion.motion_enabled
    assert config.operation.require_controller
    if is_real:
        assert config.motion.has_workspace, "an arm on a table needs a floor"
        assert config.gripper.backend != "none"
        assert config.operation.ee_frame


@pytest.mark.parametrize("name", PROFILES)
def test_every_value_of_a_profile_says_where_it_is_from(name: str) -> None:
    """A comment covers what follows it, up to the next group."""
    is_covered, bare = False, []
    for line in (CONFIG / "robots" / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("#"):
            is_covered = line.startswith(" ")  # the head of the file explains no value
            was_comment = True
            continue
        if text.endswith(":"):
            is_covered = is_covered and was_comment
        elif text and not is_covered:
            bare.append(text)
        was_comment = False
    assert not bare, f"{name}.yaml: no comment for {bare}"


def test_a_pose_controller_gets_poses() -> None:
    config = profile("franka_pose_crisp")
    assert config.operation.output == "pose"
    assert config.operation.ee_pose_source == "topic"


def test_bridge_statistics_fit_the_widowx_and_those_of_droid_do_not() -> None:
    expected = profile("widowx_servo").profile.expected()
    complete_spec(load_action_spec("bridge_orig"), {}, expected)
    with pytest.raises(ConfigurationError, match=r"kind.*action_hz"):
        complete_spec(load_action_spec("droid"), {}, expected)


def test_there_is_a_servo_file_for_each_distribution() -> None:
    assert [path.stem for path in SERVO] == [
        "franka_servo_humble",
        "franka_servo_jazzy",
        "widowx_servo_humble",
        "widowx_servo_jazzy",
    ]


@pytest.mark.parametrize("path", SERVO, ids=lambda path: path.stem)
def test_servo_takes_our_twist_as_it_is(path: Path) -> None:
    values, motion = servo(path), arm_of(path).motion
    assert values["command_in_type"] == "speed_units"
    assert values["scale"]["linear"] >= motion.linear_speed, "Servo would shorten the twist"
    assert values["scale"]["rotational"] >= max(1.25, motion.angular_speed)
    assert values["incoming_command_timeout"] == 0.1
    assert values["incoming_command_timeout"] >= 3.0 / motion.stream_rate


@pytest.mark.parametrize("path", SERVO, ids=lambda path: path.stem)
def test_servo_turns_about_the_point_that_the_profile_calls_end_effector(path: Path) -> None:
    values, config = servo(path), arm_of(path)
    if path.stem.endswith("jazzy"):
        assert values["apply_twist_commands_about_ee_frame"] is True
    else:
        assert values["planning_frame"] == config.motion.base_frame
        assert values["robot_link_command_frame"] == config.motion.base_frame
        assert values["ee_frame_name"] == config.operation.ee_frame


def test_the_added_group_of_the_franka_ends_between_the_fingers() -> None:
    config = profile("franka_servo")
    (group,) = ET.parse(CONFIG / "servo" / "fr3_tcp.srdf.xacro").getroot().iter("group")
    chain = group.find("chain")
    assert chain is not None
    assert chain.attrib == {
        "base_link": config.motion.base_frame,
        "tip_link": config.operation.ee_frame,
    }
    for path in SERVO:
        if path.stem.startswith("franka"):
            assert servo(path)["move_group_name"] == group.attrib["name"]


@pytest.mark.parametrize("path", SERVO, ids=lambda path: path.stem)
def test_the_group_of_servo_has_a_solver(path: Path) -> None:
    """Servo asks it for the planning frame, and refuses every twist when there is none."""
    file = path.with_name(f"{path.stem.partition('_')[0]}_kinematics.yaml")
    kinematics = yaml.safe_load(file.read_text(encoding="utf-8"))["/**"]["ros__parameters"]
    assert list(kinematics["robot_description_kinematics"]) == [servo(path)["move_group_name"]]
