"""Records what replay and fine-tuning need, with `ros2 bag record`, into an MCAP bag.

Topics are those of openvla_node and what it was started with; one that nobody publishes costs
nothing and is taken up when it appears. How each is heard: config/record_qos.yaml.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import yaml
from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.substitutions import LaunchConfiguration

from openvla_ros.errors import ConfigurationError

ARGUMENTS = {
    "bag": ("", "folder to write; empty = a new one named by the time, in the current directory"),
    "namespace": ("", "namespace of the node"),
    "node": ("openvla_node", "name of the node"),
    "image": ("image", "camera topic"),
    "image_transport": ("raw", "raw, compressed (less disk), or both"),
    # Not `instruction`: openvla.launch.py calls its text so, and includes this file.
    "instruction_topic": ("instruction", "topic of the instruction"),
    "ee_pose": ("ee_pose", "topic of the measured pose"),
    "joint_states": ("/joint_states", "topic of the joints, arm and gripper"),
    "twist": ("", "topic of the twist, where the launch file of the node remapped it"),
    "pose": ("", "topic of the target pose, likewise"),
    "extra": ("", "more topics, separated by spaces, e.g. a wrist camera"),
    "storage": ("mcap", "storage plugin"),
    "max_bag_duration": ("0", "seconds per file; 0 = one file"),
    "use_sim_time": ("false", "true: stamp by /clock"),
}
#: Topics of the node that a replay or a fine-tuning reads; `~/teleop_twist` is what a person did.
NODE_TOPICS = ("action", "status", "active_instruction", "gripper_cmd", "teleop_twist")
GLOBAL_TOPICS = ("/tf", "/tf_static", "/diagnostics")
TRANSPORTS = ("raw", "compressed", "both")


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start)])


def _start(context: LaunchContext) -> list:
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    given |= {name: default for name, (default, _) in ARGUMENTS.items() if not given[name]}
    share = Path(get_package_share_directory("openvla_ros"))
    topics = recorded_topics(given)
    defaults = recorded_topics({name: default for name, (default, _) in ARGUMENTS.items()})
    qos = _qos_file(share / "config" / "record_qos.yaml", defaults, topics)
    return [ExecuteProcess(cmd=_command(given, topics, qos), output="screen")]


def recorded_topics(given: dict[str, str]) -> dict[str, str]:
    """Return what is recorded: its role → its topic."""
    root = "/" + given["namespace"].strip("/")
    root = root if root.endswith("/") else root + "/"
    node = f"{root}{given['node']}"
    image = _absolute(given["image"], root)
    if given["image_transport"] not in TRANSPORTS:
        known = ", ".join(TRANSPORTS)
        raise ConfigurationError(
            f"image_transport '{given['image_transport']}' is none of: {known}."
        )
    topics = {f"node/{name}": f"{node}/{name}" for name in NODE_TOPICS}
    topics["twist"] = _absolute(given["twist"], root) if given["twist"] else f"{node}/twist_cmd"
    topics["streamer"] = f"{root}action_to_twist/twist_cmd"
    topics["pose"] = _absolute(given["pose"], root) if given["pose"] else f"{node}/pose_cmd"
    if given["image_transport"] != "compressed":
        topics["image"] = image
    if given["image_transport"] != "raw":
        topics["image/compressed"] = f"{image}/compressed"
    # Beside the image, as drivers publish it: /camera/color/image_raw → /camera/color/camera_info.
    topics["camera_info"] = f"{image.rpartition('/')[0]}/camera_info"
    for name in ("instruction_topic", "ee_pose", "joint_states"):
        topics[name] = _absolute(given[name], root)
    topics |= {name: name for name in GLOBAL_TOPICS}
    return topics | {name: _absolute(name, root) for name in given["extra"].split()}


def _absolute(topic: str, root: str) -> str:
    return topic if topic.startswith("/") else root + topic


def _qos_file(path: Path, defaults: dict[str, str], topics: dict[str, str]) -> str:
    """Return a QoS file for the topics of this run: the shipped one when no name differs."""
    profiles = yaml.safe_load(path.read_text(encoding="utf-8"))
    renamed = {
        topic: profiles[default]
        for role, topic in topics.items()
        if (default := defaults.get(role, role)) in profiles
    }
    if renamed.keys() <= profiles.keys():
        return str(path)
    with tempfile.NamedTemporaryFile(
        "w", prefix="record_qos_", suffix=".yaml", delete=False
    ) as own:
        yaml.safe_dump(renamed, own)
    return own.name


def _command(given: dict[str, str], topics: dict[str, str], qos: str) -> list[str]:
    command = ["ros2", "bag", "record", "-s", given["storage"]]
    command += ["--qos-profile-overrides-path", qos]
    if given["bag"]:
        command += ["-o", given["bag"]]
    if given["max_bag_duration"] != "0":
        command += ["-d", given["max_bag_duration"]]
    if given["use_sim_time"] == "true":
        command.append("--use-sim-time")
    # Humble takes topics without a flag; from Kilted on that is deprecated.
    flag = [] if os.environ.get("ROS_DISTRO") == "humble" else ["--topics"]
    return [*command, *flag, *sorted(set(topics.values()))]
