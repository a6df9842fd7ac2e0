"""Starts MoveIt Servo for an arm of config/servo, and makes it take twists.

The arm's own driver and controller must run already: Servo takes robot_description from their
robot_state_publisher. Not tried with a MoveIt installation; see docs/robots.md.
"""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import Command, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from openvla_ros.errors import ConfigurationError

#: Servo's program in each distribution; Kilted and later are like Jazzy.
PROGRAMS = {"humble": "servo_node_main", "jazzy": "servo_node"}


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument("arm", description="franka or widowx"),
            DeclareLaunchArgument("servo", description="jazzy (and later), or humble"),
            DeclareLaunchArgument(
                "use_sim_time",
                default_value="false",
                description="as for the node: a stamp of another clock never goes stale",
            ),
            OpaqueFunction(function=_start),
        ]
    )


def _start(context: LaunchContext) -> list:
    arm, servo, sim = (
        LaunchConfiguration(name).perform(context) for name in ("arm", "servo", "use_sim_time")
    )
    share = Path(get_package_share_directory("openvla_ros")) / "config" / "servo"
    semantic = _semantic(share, arm)
    if servo not in PROGRAMS:
        raise ConfigurationError(f"servo '{servo}' is not one of: {', '.join(PROGRAMS)}.")
    description = "/wx250s/robot_description" if arm == "widowx" else "/robot_description"
    return [
        Node(
            package="moveit_servo",
            executable=PROGRAMS[servo],
            name="servo_node",
            parameters=[
                str(share / f"{arm}_servo_{servo}.yaml"),
                str(share / f"{arm}_kinematics.yaml"),
                {
                    "robot_description_semantic": ParameterValue(semantic, value_type=str),
                    "use_sim_time": sim == "true",
                },
            ],
            remappings=[("robot_description", description)],
            output="screen",
        ),
        Node(
            package="openvla_ros",
            executable="servo_starter",
            name="servo_starter",
            arguments=[servo],
            output="screen",
        ),
    ]


def _semantic(share: Path, arm: str) -> Command:
    """The SRDF of an arm: what `xacro` prints."""
    if arm == "franka":
        return Command(["xacro ", str(share / "fr3_tcp.srdf.xacro")])
    if arm == "widowx":
        folder = FindPackageShare("interbotix_xsarm_moveit")
        file = PathJoinSubstitution([folder, "config", "srdf", "wx250s.srdf.xacro"])
        return Command(["xacro ", file, " robot_name:=wx250s"])
    raise ConfigurationError(f"arm '{arm}' is not one of: franka, widowx.")
