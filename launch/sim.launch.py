"""The simulated cell and openvla_node: an instruction moves an arm, without robot and without GPU.

The node's twist and gripper command go into the cell; the cell's pictures go into the node. Motion
is enabled: the only consumer is the simulation. Without a checkpoint the mock policy answers, which
moves the arm and follows no instruction.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

ARGUMENTS = {
    "arm": ("viperx", "viperx, or panda"),
    "task": ("reach", "reach, push, pick or place"),
    "target": ("", "colour of the block the task is about; empty = drawn"),
    "seed": ("0", "decides the scene"),
    "instruction": ("", "sent instead of the task's own; none = the cell sends nothing"),
    "camera_rate": ("10.0", "pictures per second"),
    "backend": ("", "openvla, or mock; empty = openvla when there is a checkpoint"),
    "checkpoint": ("", "folder, or Hugging Face id, of the checkpoint"),
    "adapter": ("", "fine-tuned adapter"),
    "unnorm_key": ("", "action statistics of the checkpoint"),
    "device": ("", "where the model runs"),
    "mock_action": ("", "what the mock answers: [x, y, z, roll, pitch, yaw, gripper]"),
    "mock_latency_s": ("", "seconds one answer of the mock takes"),
    "motion_enabled": ("true", "false: dry run"),
    "split_streamer": ("false", "the twist comes from action_to_twist, a process without torch"),
    "simulated_time": ("false", "the cell publishes /clock, and the node follows it"),
    "record": ("", "record a bag: true, or its folder"),
    "rviz": ("false", "rviz with config/layouts/openvla.rviz"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}
BASE_FRAME = "base_link"
#: Arguments of openvla.launch.py that are passed on.
PASSED = (
    "checkpoint",
    "adapter",
    "unnorm_key",
    "device",
    "mock_action",
    "mock_latency_s",
    "motion_enabled",
    "split_streamer",
    "record",
    "rviz",
    "log_level",
)
#: Parameters of the cell that are texts whatever they look like.
TEXTS = ("arm", "task", "target", "instruction")


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start)])


def _start(context: LaunchContext) -> list:
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    is_split = given["split_streamer"] == "true"
    is_simulated_time = bool(yaml.safe_load(given["simulated_time"]))
    parameters = {name: ParameterValue(given[name], value_type=str) for name in TEXTS}
    parameters |= {
        "base_frame": BASE_FRAME,
        "seed": int(given["seed"]),
        "camera_rate": float(given["camera_rate"]),
        "publish_clock": is_simulated_time,
    }
    twist = "/action_to_twist/twist_cmd" if is_split else "/openvla_node/twist_cmd"
    return [
        Node(
            package="openvla_ros",
            executable="sim_cell",
            name="sim_cell",
            parameters=[parameters],
            remappings=[("twist_cmd", twist), ("gripper_cmd", "/openvla_node/gripper_cmd")],
            output="screen",
        ),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(Path(__file__).with_name("openvla.launch.py"))),
            launch_arguments={
                **{name: given[name] for name in PASSED},
                "backend": given["backend"] or ("openvla" if given["checkpoint"] else "mock"),
                "robot": "sim",
                "base_frame": BASE_FRAME,
                "ee_pose_source": "topic",
                "gripper": "none",  # the cell listens to ~/gripper_cmd itself
                "use_sim_time": "true" if is_simulated_time else "",
            }.items(),
        ),
    ]
