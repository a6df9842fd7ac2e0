"""A bag through the real node, live: bag player with /clock, openvla_node in dry run on that clock.

What the node says is below /openvla_eval, what the bag commanded below /recorded: nothing that
moves an arm listens to either. Ends with the bag. `openvla-ros replay --live` does the same and
compares the answers with the offline ones.
"""

from __future__ import annotations

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.event_handlers import OnStateTransition

from openvla_ros.errors import ConfigurationError

ARGUMENTS = {
    "bag": ("", "rosbag2 folder, or one .mcap or .db3 file"),
    "image": ("/camera/color/image_raw", "image topic in the bag, without /compressed"),
    "image_transport": ("raw", "raw, or compressed: then <image>/compressed is played"),
    # Not `instruction`: that is the text, and openvla.launch.py has it.
    "instruction_topic": ("/instruction", "topic of std_msgs/String in the bag"),
    "instruction": ("", "text for the whole bag, where it has no such topic"),
    "rate": ("1.0", "seconds of the bag per second"),
    "player": ("python", "python, or rosbag2: `ros2 bag play`"),
    "checkpoint": ("", "folder, or Hugging Face id, of the checkpoint"),
    "revision": ("", "hub commit"),
    "adapter": ("", "PEFT adapter: folder or hub id"),
    "unnorm_key": ("", "action statistics of the checkpoint"),
    "quantization": ("", "none, fp8, int8, int4, nf4 or bnb_int8"),
    "exactness": ("", "self, hf or approx"),
    "device": ("", "auto, cpu, cuda, cuda:N"),
    "backend": ("", "openvla, or mock"),
    "robot": ("", "name of a file in config/robots"),
    "params_file": ("", "your own parameter file"),
    "record": ("", "record a bag of the answers: true, or its folder"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}
#: Arguments of openvla.launch.py that are passed on.
PASSED = (
    "image",
    "image_transport",
    "instruction",
    "checkpoint",
    "revision",
    "adapter",
    "unnorm_key",
    "quantization",
    "exactness",
    "device",
    "backend",
    "robot",
    "params_file",
    "record",
    "log_level",
)
NAMESPACE = "openvla_eval"
PLAYERS = ("python", "rosbag2")
CLOCK_HZ = "200"  # `ros2 bag play` gives 40 by default: less than there are twists


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start)])


def _start(context: LaunchContext) -> list:
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    given |= {name: default for name, (default, _) in ARGUMENTS.items() if not given[name]}
    if not given["bag"]:
        raise ConfigurationError("bag:= is empty: name the rosbag2 to replay.")
    if given["player"] not in PLAYERS:
        raise ConfigurationError(f"player '{given['player']}' is none of: {', '.join(PLAYERS)}.")
    player = _python_player(given) if given["player"] == "python" else _rosbag2_player(given)
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(Path(__file__).with_name("openvla.launch.py"))),
        launch_arguments={
            **{name: given[name] for name in PASSED},
            "namespace": NAMESPACE,
            "use_sim_time": "true",
            "motion_enabled": "false",  # whatever a parameter file says: this is a replay
        }.items(),
    )
    return [
        # The first frames are not for a model that is still loading.
        RegisterEventHandler(OnStateTransition(goal_state="active", entities=[player])),
        RegisterEventHandler(
            OnProcessExit(
                target_action=player, on_exit=[EmitEvent(event=Shutdown(reason="the bag is over"))]
            )
        ),
        node,
    ]


def _inputs(given: dict[str, str]) -> tuple[str, str]:
    """Topic of the images and of the instructions in the bag."""
    suffix = "/compressed" if given["image_transport"] == "compressed" else ""
    return given["image"] + suffix, given["instruction_topic"]


def _python_player(given: dict[str, str]) -> Node:
    # With a text for the whole bag, its own instructions go below /recorded like the rest.
    keep = [] if given["instruction"] else ["--keep", given["instruction_topic"]]
    return Node(
        package="openvla_ros",
        executable="bag_player",
        arguments=[given["bag"], "--rate", given["rate"], *keep],
        remappings=[(given["instruction_topic"], f"/{NAMESPACE}/instruction")],
        output="screen",
    )


def _rosbag2_player(given: dict[str, str]) -> ExecuteProcess:
    image, instruction = _inputs(given)
    command = ["ros2", "bag", "play", given["bag"], "--clock", CLOCK_HZ, "--rate", given["rate"]]
    # Only what the policy takes in: the commands of the bag are not played at all.
    command += ["--topics", image, instruction]
    command += ["--remap", f"{instruction}:=/{NAMESPACE}/instruction"]
    return ExecuteProcess(cmd=command, output="screen")
