"""A real WebSocket client sees the topics of the ROS graph, and only what it asks for is sent."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")
pytest.importorskip("foxglove", reason="needs foxglove-sdk: pip install foxglove-sdk")

import rclpy
from openvla_ros.msg import VLAStatus
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from websockets.sync.client import ClientConnection, connect

from openvla_ros.cli import main
from openvla_ros.errors import ConfigurationError
from openvla_ros.ros import qos
from openvla_ros.ros.foxglove_bridge import FoxgloveBridge

pytestmark = pytest.mark.ros

PROTOCOL = "foxglove.sdk.v1"
PATIENCE_S = 30.0
HEADER_BYTES = 13  # opcode, subscription id, time stamp


class Graph:
    """A bridge and a peer that publishes, both spinning."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.bridge = FoxgloveBridge("127.0.0.1", 0, context=self.context)
        self.peer = Node("peer", context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.bridge)
        self._executor.add_node(self.peer)
        self._is_over = False
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._is_over:
            self._executor.spin_once(timeout_sec=0.05)

    def close(self) -> None:
        self._is_over = True
        self._thread.join(PATIENCE_S)
        self._executor.shutdown()
        self.bridge.destroy_node()
        self.peer.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def graph() -> Iterator[Graph]:
    graph = Graph()
    try:
        yield graph
    finally:
        graph.close()


@contextmanager
def viewer(graph: Graph) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{graph.bridge.port}", subprotocols=[PROTOCOL]) as client:  # type: ignore[list-item]
        yield client


def channel_of(client: ClientConnection, topic: str) -> dict[str, Any]:
    """Return what the server advertises for a topic; it may find the topic later."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        text = client.recv(timeout=PATIENCE_S)
        message = json.loads(text) if isinstance(text, str) else {}
        for channel in message.get("channels", []):
            if channel["topic"] == topic:
                return channel
    raise AssertionError(f"{topic} was not advertised")


def subscribe(graph: Graph, client: ClientConnection, channel: dict[str, Any]) -> int:
    """Ask for a channel and return the id of the subscription.

    Again and again: the server refuses who asks in the moment between its advertisement and its
    own book-keeping.
    """
    wait(lambda: channel["topic"] in graph.bridge.bridged, "the bridge's own entry")
    bridged = graph.bridge.bridged[channel["topic"]]
    deadline = time.monotonic() + PATIENCE_S
    for number in range(1, 1000):
        wanted = {"id": number, "channelId": channel["id"]}
        client.send(json.dumps({"op": "subscribe", "subscriptions": [wanted]}))
        again = time.monotonic() + 2.0
        while time.monotonic() < again:
            if bridged.channel.has_sinks():
                return number
            time.sleep(0.01)
        assert time.monotonic() < deadline, "the server does not take the subscription"
    raise AssertionError("unreachable")


def wait(is_true: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def test_a_viewer_receives_a_message_as_it_was_published(graph: Graph) -> None:
    publisher = graph.peer.create_publisher(VLAStatus, "/openvla_node/status", qos.LATCHED)
    sent = VLAStatus(state=VLAStatus.HOLD, detail="the camera is silent", image_age=1.25)
    publisher.publish(sent)  # before anybody looks: it is latched
    with viewer(graph) as client:
        channel = channel_of(client, "/openvla_node/status")
        assert (channel["encoding"], channel["schemaEncoding"]) == ("cdr", "ros2msg")
        assert channel["schemaName"] == "openvla_ros/msg/VLAStatus"
        assert "uint8 HOLD=5" in channel["schema"]
        assert "MSG: std_msgs/Header" in channel["schema"]
        subscribe(graph, client, channel)
        data = client.recv(timeout=PATIENCE_S)
        while isinstance(data, str):
            data = client.recv(timeout=PATIENCE_S)
        assert deserialize_message(data[HEADER_BYTES:], VLAStatus) == sent


def test_a_topic_is_subscribed_to_only_while_a_viewer_shows_it(graph: Graph) -> None:
    publisher = graph.peer.create_publisher(VLAStatus, "/openvla_node/status", 1)
    with viewer(graph) as client:
        channel = channel_of(client, "/openvla_node/status")
        assert publisher.get_subscription_count() == 0
        number = subscribe(graph, client, channel)
        wait(lambda: publisher.get_subscription_count() == 1, "the bridge's subscription")
        client.send(json.dumps({"op": "unsubscribe", "subscriptionIds": [number]}))
        wait(lambda: publisher.get_subscription_count() == 0, "the end of the subscription")


def test_a_viewer_cannot_command_anything(graph: Graph) -> None:
    with viewer(graph) as client:
        info = json.loads(client.recv(timeout=PATIENCE_S))
    assert info["op"] == "serverInfo"
    assert info["capabilities"] == []


def test_a_port_in_use_is_said_with_what_to_do(graph: Graph) -> None:
    with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{graph.bridge.port}.*--port"):
        FoxgloveBridge("127.0.0.1", graph.bridge.port, context=graph.context)


def test_the_command_says_where_to_connect_and_the_missing_library(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["monitor", "--foxglove", "--port", "0", "--duration", "0.5"]
    main(arguments)  # nobody is heard, which is another matter
    assert "ws://127.0.0.1:" in capsys.readouterr().out
    monkeypatch.delitem(sys.modules, "openvla_ros.ros.foxglove_bridge")
    monkeypatch.setitem(sys.modules, "foxglove", None)
    assert main(arguments) == 1
    assert "pip install '.[foxglove]'" in capsys.readouterr().err
