"""Starts openvla_node and, unless told otherwise, configures and activates it.

An argument that is left empty keeps the value of the parameter files: config/openvla.yaml, then the
robot's, then `params_file`.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition

from openvla_ros.config import PARAMETERS
from openvla_ros.errors import ConfigurationError

# Parameters that differ per machine or per run; all others belong into a parameter file.
FORWARDED = (
    "backend",
    "checkpoint",
    "revision",
    "adapter",
    "unnorm_key",
    "quantization",
    "device",
    "dtype",
    "local_files_only",
    "instruction",
    "image_transport",
    "motion_enabled",
    "base_frame",
    "action_hz",
    "speed_scale",
    "mock_action",
    "mock_latency_s",
    "mock_fault",
)
OTHERS = {
    "robot": ("", "name of a file in config/robots, e.g. mock or franka_servo"),
    "params_file": ("", "your own parameter file"),
    "image": ("image", "camera topic; with image_transport:=compressed its /compressed"),
    "twist": ("", "topic for the twist, e.g. /servo_node/delta_twist_cmds"),
    "namespace": ("", "namespace of the node"),
    "use_sim_time": ("", "true: take time from /clock"),
    "autostart": ("true", "configure and activate the node, once"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}
FASTDDS_PROFILES = "FASTRTPS_DEFAULT_PROFILES_FILE"


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value="", description=_described(name))
        for name in FORWARDED
    ]
    arguments += [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in OTHERS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start)])


def _described(name: str) -> str:
    parameter = PARAMETERS[name]
    allowed = f" ({parameter.range_text})" if parameter.range_text else ""
    return f"{parameter.description}{allowed}"


def _start(context: LaunchContext) -> list:
    given = {name: LaunchConfiguration(name).perform(context) for name in (*FORWARDED, *OTHERS)}
    # Empty is also what a launch file that includes this one passes for "not set".
    given |= {name: default for name, (default, _) in OTHERS.items() if not given[name]}
    share = Path(get_package_share_directory("openvla_ros"))
    remappings = [
        ("image", given["image"]),
        ("image/compressed", f"{given['image']}/compressed"),
    ]
    if given["twist"]:
        remappings.append(("~/twist_cmd", given["twist"]))
    node = LifecycleNode(
        package="openvla_ros",
        executable="openvla_node",
        name="openvla_node",
        namespace=given["namespace"],
        parameters=[*_parameter_files(share, given), _overrides(given)],
        remappings=remappings,
        ros_arguments=["--log-level", given["log_level"]],
        output="screen",
    )
    actions: list = []
    if FASTDDS_PROFILES not in os.environ:
        # Fast DDS drops best-effort camera images with its default shared memory segment.
        profiles = share / "config" / "fastdds_images.xml"
        actions.append(SetEnvironmentVariable(FASTDDS_PROFILES, str(profiles)))
    actions.append(node)
    if yaml.safe_load(given["autostart"]):
        actions += _autostart(node)
    return actions


def _parameter_files(share: Path, given: dict[str, str]) -> list[str]:
    files = [share / "config" / "openvla.yaml"]
    if given["robot"]:
        robots = share / "config" / "robots"
        files.append(robots / f"{given['robot']}.yaml")
        if not files[-1].is_file():
            known = ", ".join(sorted(path.stem for path in robots.glob("*.yaml")))
            raise ConfigurationError(f"robot '{given['robot']}' is not one of: {known}.")
    if given["params_file"]:
        files.append(Path(given["params_file"]))
        if not files[-1].is_file():
            raise ConfigurationError(f"params_file {given['params_file']} does not exist.")
    return [str(path) for path in files]


def _overrides(given: dict[str, str]) -> dict:
    values: dict = {}
    if given["use_sim_time"]:
        values["use_sim_time"] = bool(yaml.safe_load(given["use_sim_time"]))
    for name in FORWARDED:
        if not given[name]:
            continue
        parameter = PARAMETERS[name]
        if parameter.type_name == "string":
            # Without the type, launch would read "pick: the cup" or "1" as YAML.
            text = parameter.check(given[name])
            values[name] = ParameterValue(text, value_type=str)
        else:
            value = parameter.check(yaml.safe_load(given[name]))
            values[name] = list(value) if isinstance(value, tuple) else value
    return values


def _autostart(node: LifecycleNode) -> list:
    # By events, because LifecycleNode(autostart=...) does not exist on Humble.
    def change(transition: int) -> EmitEvent:
        return EmitEvent(
            event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition)
        )

    activate_when_configured = OnStateTransition(
        target_lifecycle_node=node,
        start_state="configuring",
        goal_state="inactive",
        entities=[change(Transition.TRANSITION_ACTIVATE)],
        # Once: an operator who cleans up and configures again decides when the arm moves again.
        handle_once=True,
    )
    return [
        RegisterEventHandler(activate_when_configured),
        change(Transition.TRANSITION_CONFIGURE),
    ]
