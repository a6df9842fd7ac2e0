"""Plays a rosbag2 with /clock, without rosbag2: serialised messages as they were recorded.

For replays of a policy: images and camera infos keep their topics, and what `--keep` names.
Everything else, commands above all, is published below /recorded, where no controller listens;
texts too, for some drivers run programs that arrive as std_msgs/String. Remap with `--ros-args -r`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from rosgraph_msgs.msg import Clock

from openvla_ros.data.bag_file import IMAGE_TYPES, open_bag
from openvla_ros.errors import ConfigurationError, OpenVLAError

CLOCK_HZ = 200.0  # four per twist at 50 Hz; `ros2 bag play --clock` gives 40
RECORDED = "/recorded"
#: What cameras say and no robot obeys; a topic of another type keeps its name only when asked for.
INPUT_TYPES = (*IMAGE_TYPES, "sensor_msgs/msg/CameraInfo")
LINGER_S = 2.0  # of bag time: the answer to the last image is still on its way
DEPTH = 10


@dataclass(frozen=True)
class PlayedTopic:
    """One topic of the bag.

    Attributes:
        recorded: Its name in the bag.
        name: Where it is published.
        message_type: Such as "std_msgs/msg/String".
        is_latched: It was offered to late subscribers.
    """

    recorded: str
    name: str
    message_type: str
    is_latched: bool = False

    @property
    def qos(self) -> QoSProfile:
        """Images as a camera offers them; the rest reliable, for every kind of subscriber."""
        if self.message_type in IMAGE_TYPES:
            return QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.BEST_EFFORT)
        durability = (
            DurabilityPolicy.TRANSIENT_LOCAL if self.is_latched else DurabilityPolicy.VOLATILE
        )
        return QoSProfile(depth=DEPTH, durability=durability)


class BagPlayer(Node):
    """Publishes the messages of one bag in the order and at the pace in which they were recorded.

    Attributes:
        topics: By their name in the bag.
        skipped: Topics whose message type is not installed here.
    """

    def __init__(
        self,
        bag: Path,
        *,
        rate: float = 1.0,
        keep: Sequence[str] = (),
        steady_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        **node_arguments: Any,
    ) -> None:
        """Look at the bag, and offer its topics.

        Args:
            bag: rosbag2 folder, or one .mcap or .db3 file.
            rate: Seconds of the bag per second.
            keep: Topics that keep their names although their type is not one of `INPUT_TYPES`.
            steady_s: Steady clock, seconds.
            sleep: Waits that many seconds.
            node_arguments: For `rclpy.node.Node`.

        Raises:
            ConfigurationError: The bag cannot be read, is empty, or lacks a topic of `keep`.
            DependencyError: `rosbags` is not installed.
        """
        with open_bag(bag) as reader:
            connections = [c for c in reader.connections if c.msgcount]
        if not connections:
            raise ConfigurationError(f"{bag} holds no messages.")
        absent = sorted(set(keep) - {c.topic for c in connections})
        if absent:
            raise ConfigurationError(
                f"{bag} has no topic {', '.join(absent)}; it has "
                f"{', '.join(sorted(c.topic for c in connections))}."
            )
        super().__init__("openvla_bag_player", **node_arguments)
        self._bag, self._rate = bag, rate
        self._steady_s, self._sleep = steady_s, sleep
        self._clock_publisher = self.create_publisher(Clock, "/clock", DEPTH)
        self.topics: dict[str, PlayedTopic] = {}
        self.skipped: list[str] = []
        self._outputs: dict[str, Any] = {}
        for connection in connections:
            self._offer(connection, set(keep))

    def _offer(self, connection: Any, keep: set[str]) -> None:
        is_input = connection.msgtype in INPUT_TYPES or connection.topic in keep
        topic = PlayedTopic(
            connection.topic,
            connection.topic if is_input else f"{RECORDED}{connection.topic}",
            connection.msgtype,
            any(
                q.durability.name == "TRANSIENT_LOCAL" for q in connection.ext.offered_qos_profiles
            ),
        )
        try:
            message_class = _message_class(connection.msgtype)
        except (ImportError, AttributeError):
            self.skipped.append(connection.topic)
            self.get_logger().warning(
                f"{connection.topic} is not played: no {connection.msgtype} is installed here"
            )
            return
        self.topics[connection.topic] = topic
        self._outputs[connection.topic] = self.create_publisher(
            message_class, topic.name, topic.qos
        )

    def has_listeners(self) -> bool:
        """Return whether somebody listens to an image topic, or to any topic without images."""
        images = [n for n, t in self.topics.items() if t.message_type in IMAGE_TYPES]
        return any(self._outputs[n].get_subscription_count() for n in images or self.topics)

    def play(self) -> dict[str, int]:
        """Publish everything, then let the clock run on for `LINGER_S`; return counts by topic.

        Raises:
            ConfigurationError: The bag breaks off; what came before has been published.
        """
        counts = dict.fromkeys(self.topics, 0)
        begin_s, first_ns, last_ns = self._steady_s(), None, 0
        with open_bag(self._bag) as reader:
            wanted = [c for c in reader.connections if c.topic in self.topics]
            for connection, stamp_ns, raw in reader.messages(wanted):
                first_ns = stamp_ns if first_ns is None else first_ns
                self._run_clock(begin_s, first_ns, max(last_ns, first_ns), stamp_ns)
                last_ns = max(last_ns, stamp_ns)
                if not self.context.ok():
                    return counts
                self._outputs[connection.topic].publish(bytes(raw))
                counts[connection.topic] += 1
        if first_ns is not None:
            self._run_clock(begin_s, first_ns, last_ns, last_ns + round(LINGER_S * 1e9))
        return counts

    def _run_clock(self, begin_s: float, first_ns: int, from_ns: int, to_ns: int) -> None:
        """Publish /clock until the bag's time is `to_ns`, which is published last."""
        step_ns = round(1e9 * self._rate / CLOCK_HZ)
        for now_ns in (*range(from_ns + step_ns, to_ns, step_ns), to_ns):
            left_s = begin_s + (now_ns - first_ns) * 1e-9 / self._rate - self._steady_s()
            if left_s > 0.0:
                self._sleep(left_s)
            if not self.context.ok():
                return
            self._clock_publisher.publish(Clock(clock=Time(nanoseconds=now_ns).to_msg()))


def _message_class(message_type: str) -> type:
    package, kind, name = message_type.split("/")
    return getattr(importlib.import_module(f"{package}.{kind}"), name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play a bag once; returns a process exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bag", type=Path, help="rosbag2 folder, or one .mcap or .db3 file")
    parser.add_argument("--rate", type=float, default=1.0, help="seconds of the bag per second")
    parser.add_argument(
        "--keep", nargs="*", default=[], help="topics to play under their own name, beside images"
    )
    parser.add_argument("--wait", type=float, default=0.0, help="wait for a listener, seconds")
    own, ros = parser.parse_known_args(arguments)
    if own.rate <= 0.0:
        print(f"bag_player: --rate is {own.rate}; it must be positive", file=sys.stderr)
        return 2
    rclpy.init(args=ros)
    try:
        player = BagPlayer(own.bag, rate=own.rate, keep=own.keep)
        _wait_for_listeners(player, own.wait)
        counts = player.play()
        print(", ".join(f"{player.topics[t].name}: {n}" for t, n in counts.items()), flush=True)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except OpenVLAError as error:
        print(f"bag_player: {error}", file=sys.stderr)
        return 1
    finally:
        with suppress(Exception):
            rclpy.try_shutdown()
    return 0


def _wait_for_listeners(player: BagPlayer, patience_s: float) -> None:
    deadline_s = time.monotonic() + patience_s
    while not player.has_listeners() and time.monotonic() < deadline_s and rclpy.ok():
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
