"""A service of another process is called, or it is said that it is not there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")
import rclpy
from rclpy.node import Node
from std_srvs.srv import Trigger

from openvla_ros.ros.monitor import spinning
from openvla_ros.ros.service_client import ServiceClient, ServiceError

pytestmark = pytest.mark.ros


@pytest.fixture
def node() -> Iterator[Node]:
    rclpy.init()
    made = Node("caller")
    server = Node("server")

    def answer(_: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = True, "here"
        return response

    server.create_service(Trigger, "/server/ask", answer)
    with spinning(made, server):
        yield made
    rclpy.try_shutdown()


def test_a_service_answers(node: Node) -> None:
    client = ServiceClient(node, Trigger, "/server/ask")
    for _ in range(2):
        assert client.call(Trigger.Request(), 30.0).message == "here"


def test_a_service_that_is_not_there_is_named(node: Node) -> None:
    with pytest.raises(ServiceError, match="/nowhere/ask to appear"):
        ServiceClient(node, Trigger, "/nowhere/ask").call(Trigger.Request(), 0.2)


def test_waiting_ends_when_the_check_says_so(node: Node) -> None:
    def check() -> None:
        raise RuntimeError("the process died")

    with pytest.raises(RuntimeError, match="died"):
        ServiceClient(node, Trigger, "/nowhere/ask").call(Trigger.Request(), 30.0, check)
