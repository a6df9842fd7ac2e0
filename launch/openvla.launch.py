"""Starts openvla_node and, unless told otherwise, configures and activates it.

An argument that is left empty keeps the value of the parameter files: config/openvla.yaml, then the
robot's, then `params_file`. Beside the node it starts, when asked: the streamer in a process of its
own, the start of MoveIt Servo, a recorder, rviz.
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
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.events import matches_action
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition

from openvla_ros.config import PARAMETERS
from openvla_ros.config.files import read_parameter_file
from openvla_ros.errors import ConfigurationError

# Parameters that differ per machine or per run; all others belong into a parameter file.
FORWARDED = (
    "backend",
    "checkpoint",
    "revision",
    "adapter",
    "unnorm_key",
    "quantization",
    "exactness",
    "device",
    "dtype",
    "local_files_only",
    "instruction",
    "image_transport",
    "motion_enabled",
    "output",
    "base_frame",
    "ee_frame",
    "ee_pose_source",
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
    "pose": ("", "topic for the target pose with output:=pose, e.g. /target_pose"),
    "gripper": ("", "gripper.backend: none, or where the command goes besides ~/gripper_cmd"),
    "ee_pose": ("", "topic of the measured pose, PoseStamped, e.g. /current_pose"),
    "namespace": ("", "namespace of the node"),
    "use_sim_time": ("", "true: take time from /clock"),
    "autostart": ("true", "configure and activate the node, once"),
    "respawn": ("false", "start a node that died again; it stays unconfigured, so nothing moves"),
    "split_streamer": ("false", "the twist comes from action_to_twist, a process without torch"),
    "servo": ("", "make MoveIt Servo take twists: jazzy (and later), or humble"),
    "servo_node": ("/servo_node", "name of Servo's node"),
    "record": ("", "record.launch.py beside it: true, or the folder of the bag"),
    "rviz": ("false", "rviz with config/layouts/openvla.rviz"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}
SERVOS = ("jazzy", "humble")
RESPAWN_DELAY_S = 2.0
# Up to Jazzy Fast DDS reads the first name, from Kilted on the second.
FASTDDS_PROFILES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


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
    files, overrides = _parameter_files(share, given), _overrides(given)
    actions: list = []
    if not any(os.environ.get(name) for name in FASTDDS_PROFILES):
        # Fast DDS drops best-effort camera images with its default shared memory segment.
        profiles = share / "config" / "fastdds_images.xml"
        actions += [SetEnvironmentVariable(name, str(profiles)) for name in FASTDDS_PROFILES]
    if _is_true(given["split_streamer"]):
        # Before the node: it streams zeros from its first moment on.
        given["twist"] = given["twist"] or _in(given["namespace"], "action_to_twist/twist_cmd")
        actions.append(_streamer(given, [*files, overrides]))
        overrides = {**overrides, "output": "none"}  # the node still looks who listens to the twist
    node = _node(given, [*files, overrides])
    actions.append(node)
    if _is_true(given["autostart"]):
        actions += _autostart(node)
    if _is_true(given["rviz"]):
        actions.append(_rviz(share, files, overrides))
    return actions + _companions(share, given)


def _in(namespace: str, name: str) -> str:
    return "/".join(["", *filter(None, namespace.split("/")), name])


def _is_true(text: str) -> bool:
    return bool(yaml.safe_load(text))


def _node(given: dict[str, str], parameters: list) -> LifecycleNode:
    remappings = [
        ("image", given["image"]),
        ("image/compressed", f"{given['image']}/compressed"),
    ]
    for name, topic in (("twist", "~/twist_cmd"), ("pose", "~/pose_cmd"), ("ee_pose", "ee_pose")):
        if given[name]:
            remappings.append((topic, given[name]))
    return LifecycleNode(
        package="openvla_ros",
        executable="openvla_node",
        name="openvla_node",
        namespace=given["namespace"],
        parameters=parameters,
        remappings=remappings,
        ros_arguments=["--log-level", given["log_level"]],
        output="screen",
        # The events of `autostart` happen once: a new process waits, unconfigured, for somebody to
        # configure and activate it. Whatever killed the last one, the arm does not move by itself.
        respawn=_is_true(given["respawn"]),
        respawn_delay=RESPAWN_DELAY_S,
    )


def _streamer(given: dict[str, str], parameters: list) -> Node:
    # Never respawned: it would follow the node, and move the arm, without anybody having asked.
    return Node(
        package="openvla_ros",
        executable="action_to_twist",
        name="action_to_twist",
        namespace=given["namespace"],
        parameters=parameters,
        remappings=[
            (topic, given[name])
            for name, topic in (("twist", "~/twist_cmd"), ("ee_pose", "ee_pose"))
            if given[name]
        ],
        ros_arguments=["--log-level", given["log_level"]],
        output="screen",
    )


def _companions(share: Path, given: dict[str, str]) -> list:
    """What runs beside the node when it is asked for."""
    actions: list = []
    if given["servo"]:
        if given["servo"] not in SERVOS:
            known = ", ".join(SERVOS)
            raise ConfigurationError(f"servo '{given['servo']}' is not one of: {known}.")
        actions.append(
            Node(
                package="openvla_ros",
                executable="servo_starter",
                name="servo_starter",
                arguments=[given["servo"], "--node", given["servo_node"]],
                output="screen",
            )
        )
    if given["record"] not in ("", "false"):
        bag = "" if given["record"] == "true" else given["record"]
        topics = {name: given[name] for name in ("image", "twist", "pose", "ee_pose", "namespace")}
        others = {name: given[name] for name in ("image_transport", "use_sim_time")}
        actions.append(
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(share / "launch" / "record.launch.py")),
                launch_arguments={**topics, **others, "bag": bag}.items(),
            )
        )
    return actions


def _rviz(share: Path, files: list[str], overrides: dict) -> Node:
    values: dict = {}
    for file in files:
        values |= read_parameter_file(file)
    frame = overrides.get("base_frame", values["base_frame"])
    fixed = ["-f", frame.value if isinstance(frame, ParameterValue) else frame] if frame else []
    layout = share / "config" / "layouts" / "openvla.rviz"
    return Node(package="rviz2", executable="rviz2", arguments=["-d", str(layout), *fixed])


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
    if given["gripper"]:
        backend = PARAMETERS["gripper.backend"].check(given["gripper"])
        values["gripper.backend"] = ParameterValue(backend, value_type=str)
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
