"""`openvla-ros replay --live`: a bag through the real node over DDS, which drops frames as in life.

Two processes: the bag player with /clock, and openvla_node on simulated time in dry run. This one
drives the node's lifecycle and keeps what it answers. Nothing here can move an arm: the node never
leaves dry run, and the bag's commands are played below /recorded.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rclpy
import yaml
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from openvla_ros.control.states import Drop, Reason, State
from openvla_ros.data.bag_file import COMPRESSED_IMAGE, IMAGE_TYPES, open_bag
from openvla_ros.errors import ConfigurationError, OpenVLAError
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.evaluation.replay.live_result import LIVE_FILE, LiveAnswer, LiveResult, live_result
from openvla_ros.messages import stamp_ns
from openvla_ros.msg import VLAAction, VLAStatus
from openvla_ros.ros import qos
from openvla_ros.ros.child_processes import ChildProcesses
from openvla_ros.ros.demo_environment import demo_environment
from openvla_ros.ros.lifecycle_client import LifecycleClient, LifecycleError
from openvla_ros.ros.monitor import spinning
from openvla_ros.ros.monitor_view import enum_names

NODE_NAME = "openvla_node"
LISTENER_WAIT_S = 60.0
TRANSITION_S = 20.0


class LiveReplayError(OpenVLAError):
    """The live replay did not come to its end; the text says which part failed."""


@dataclass(frozen=True)
class LiveOptions:
    """What is replayed, and how.

    Attributes:
        bag: rosbag2 folder, or one .mcap or .db3 file.
        image_topic: Topic in the bag.
        instruction_topic: Topic of std_msgs/String in the bag, or "".
        instruction: Text for the whole bag where it has no such topic.
        parameters: Of openvla_node: checkpoint, unnorm_key, quantization, ...; dry run and
            simulated time are added.
        rate: Seconds of the bag per second; 1 is what tells about latency.
        load_timeout_s: How long loading may take.
    """

    bag: Path
    image_topic: str
    instruction_topic: str = ""
    instruction: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1.0
    load_timeout_s: float = 1800.0


def run_live_replay(
    options: LiveOptions,
    records: Sequence[EpisodeRecord],
    out: Path,
    tell: Callable[[str], None] = lambda text: None,
) -> LiveResult:
    """Play the bag once; write `out`/live.json and return what it holds.

    Args:
        options: What is replayed.
        records: The offline answers to the same bag; () compares with nothing.
        out: Folder for live.json, the parameters and the logs.
        tell: Called with what happens, in words.

    Raises:
        LiveReplayError: A process died, or the node refused a transition.
        ConfigurationError: The bag has no such image topic, or there is no instruction.
    """
    topic_type, images = _image_topic(options)
    if not options.instruction_topic and not options.instruction:
        raise ConfigurationError(
            f"{options.bag} has no instruction topic and none was given: a node without an "
            "instruction answers nothing. Name the topic or the text in the topic file."
        )
    out.mkdir(parents=True, exist_ok=True)
    os.environ.update(demo_environment(os.environ))
    parameters = out / "live_parameters.yaml"
    given = {**_parameters(options, topic_type), "use_sim_time": True}
    parameters.write_text(yaml.safe_dump({NODE_NAME: {"ros__parameters": given}}), encoding="utf-8")
    answers, states, received = _play(options, topic_type, parameters, out, tell)
    result = live_result(
        answers, records, images_in_bag=images, images_received=received, states=states
    )
    aside = out / f".{LIVE_FILE}"
    aside.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    aside.replace(out / LIVE_FILE)
    return result


class LiveListener(Node):
    """Keeps every answer of the node and counts what it says about itself."""

    def __init__(self) -> None:
        """Subscribe; something else must spin this node."""
        super().__init__("openvla_monitor_live")
        self.answers: list[LiveAnswer] = []
        self.states: Counter[str] = Counter()
        self.detail = ""
        self.images_received = 0
        self._drops, self._states, self._reasons = map(enum_names, (Drop, State, Reason))
        self.create_subscription(VLAAction, f"{NODE_NAME}/action", self._on_action, 1000)
        self.create_subscription(VLAStatus, f"{NODE_NAME}/status", self._on_status, qos.LATCHED)

    def _on_action(self, message: Any) -> None:
        taken_ns = stamp_ns(message.header.stamp)
        self.answers.append(
            LiveAnswer(
                stamp_ns=taken_ns,
                instruction=message.instruction,
                token_ids=tuple(int(i) for i in message.token_ids),
                action=tuple(float(x) for x in message.raw),
                age_s=(stamp_ns(message.inference_end) - taken_ns) * 1e-9,
                inference_ms=float(message.inference_ms),
                drop_reason=self._drops.get(message.drop_reason, str(message.drop_reason)),
            )
        )

    def _on_status(self, message: Any) -> None:
        self.states[f"{self._states[message.state]} {self._reasons[message.reason]}"] += 1
        self.detail = message.detail
        self.images_received = max(self.images_received, message.frames_received)


def _play(
    options: LiveOptions,
    topic_type: str,
    parameters: Path,
    out: Path,
    tell: Callable[[str], None],
) -> tuple[list[LiveAnswer], Counter[str], int]:
    """Run node and player; return the answers, the states that were seen, and the frames heard."""
    entrance = "image/compressed" if topic_type == COMPRESSED_IMAGE else "image"
    remaps = {entrance: options.image_topic}
    if options.instruction_topic:
        remaps["instruction"] = options.instruction_topic
    arguments = ["--ros-args", "--params-file", str(parameters)]
    for name, topic in remaps.items():
        arguments += ["-r", f"{name}:={topic}"]
    logs = out / "live_logs"
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        listener = LiveListener()
        with (
            ChildProcesses(os.environ, logs) as node,
            ChildProcesses(os.environ, logs) as player,
            spinning(listener),
        ):
            node.start("node", "openvla_ros.ros.node", arguments)
            tell("loading the policy in openvla_node ...")
            _bring_up(listener, node, options.load_timeout_s)
            tell(f"playing {options.bag.name} at {options.rate:g} x ...")
            player.start("player", "openvla_ros.ros.bag_player", _player_arguments(options))
            _wait_for_the_end(player, node)
            LifecycleClient(listener, NODE_NAME).change("deactivate", TRANSITION_S, node.check)
        return list(listener.answers), listener.states, listener.images_received
    except LifecycleError as error:
        raise LiveReplayError(f"{error} Logs: {logs}") from error
    finally:
        rclpy.try_shutdown()


def _bring_up(listener: LiveListener, node: ChildProcesses, timeout_s: float) -> None:
    lifecycle = LifecycleClient(listener, NODE_NAME)
    try:
        lifecycle.change("configure", timeout_s, node.check)
        lifecycle.change("activate", TRANSITION_S, node.check)
    except LifecycleError as error:
        said = f" It says: {listener.detail}" if listener.detail else ""
        raise LiveReplayError(f"{error}{said}\n{node.log_tail('node')}") from error


def _player_arguments(options: LiveOptions) -> list[str]:
    keep = [options.instruction_topic] if options.instruction_topic else []
    arguments = [str(options.bag), "--rate", str(options.rate), "--wait", str(LISTENER_WAIT_S)]
    return [*arguments, "--keep", options.image_topic, *keep]


def _wait_for_the_end(player: ChildProcesses, node: ChildProcesses) -> None:
    (process,) = player.processes
    while process.poll() is None:
        node.check()
        time.sleep(0.05)
    if process.returncode != 0:
        raise LiveReplayError(f"the bag player failed.\n{player.log_tail('player')}")


def _image_topic(options: LiveOptions) -> tuple[str, int]:
    """Return the message type and the number of messages of the image topic."""
    with open_bag(options.bag) as reader:
        found = {c.topic: c for c in reader.connections if c.msgtype in IMAGE_TYPES}
        if options.image_topic not in found:
            raise ConfigurationError(
                f"{options.bag} has no image topic {options.image_topic!r}; image topics: "
                f"{', '.join(sorted(found)) or 'none'}."
            )
        connection = found[options.image_topic]
        return connection.msgtype, connection.msgcount


def _parameters(options: LiveOptions, topic_type: str) -> dict[str, Any]:
    transport = "compressed" if topic_type == COMPRESSED_IMAGE else "raw"
    fixed = {"motion_enabled": False, "image_transport": transport}
    text = {"instruction": options.instruction} if options.instruction else {}
    return {**options.parameters, **text, **fixed}
