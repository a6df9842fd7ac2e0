"""A demonstration without GPU and without robot: camera, openvla_node, mock robot, rviz if wanted.

The frames are rendered (or from `bag`), the policy is the mock (or, with backend:=openvla, your
checkpoint), and the robot is a pose that takes twists as MoveIt Servo would. Motion is enabled: the
only consumer is that pose.
"""

from __future__ import annotations

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

ARGUMENTS = {
    "instruction": ("pick up the cup", "what the camera node sends; empty = what the bag says"),
    "bag": ("", "rosbag2 to take the frames from; empty = rendered frames"),
    "rate": ("5.0", "frames per second"),
    "backend": ("mock", "mock, or openvla with checkpoint:="),
    "checkpoint": ("", "folder, or Hugging Face id, of the checkpoint"),
    "unnorm_key": ("", "action statistics of the checkpoint"),
    "mock_action": ("", "what the mock answers: [x, y, z, roll, pitch, yaw, gripper]"),
    "mock_latency_s": ("0.15", "seconds one answer takes"),
    "mock_fault": ("", "what goes wrong with every frame"),
    "motion_enabled": ("true", "false: dry run"),
    "split_streamer": ("false", "the twist comes from action_to_twist, a process without torch"),
    "record": ("", "record a bag: true, or its folder"),
    "rviz": ("false", "rviz with config/layouts/openvla.rviz"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}
BASE_FRAME = "base_link"  # of config/robots/mock.yaml
#: Arguments of openvla.launch.py that are passed on.
PASSED = (
    "backend",
    "checkpoint",
    "unnorm_key",
    "mock_action",
    "mock_latency_s",
    "mock_fault",
    "motion_enabled",
    "split_streamer",
    "record",
    "rviz",
    "log_level",
)


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start)])


def _start(context: LaunchContext) -> list:
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    is_split = given["split_streamer"] == "true"
    twist = "/action_to_twist/twist_cmd" if is_split else "/openvla_node/twist_cmd"
    camera = ["--rate", given["rate"]]
    camera += ["--bag", given["bag"]] if given["bag"] else []
    camera += ["--instruction", given["instruction"]] if given["instruction"] else []
    actions: list = [
        Node(package="openvla_ros", executable="camera_node", arguments=camera, output="screen"),
        Node(
            package="openvla_ros",
            executable="mock_robot",
            arguments=["--base-frame", BASE_FRAME],
            remappings=[("twist_cmd", twist), ("gripper_cmd", "/openvla_node/gripper_cmd")],
            output="screen",
        ),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(Path(__file__).with_name("openvla.launch.py"))),
            launch_arguments={
                **{name: given[name] for name in PASSED},
                "robot": "mock",
                "base_frame": BASE_FRAME,
            }.items(),
        ),
    ]
    if given["rviz"] == "true":
        # The mock robot has no tf; rviz wants its fixed frame to exist.
        frames = ["--frame-id", "world", "--child-frame-id", BASE_FRAME]
        actions.append(
            Node(package="tf2_ros", executable="static_transform_publisher", arguments=frames)
        )
    return actions
