"""Servo's start: the right service per distribution, and words for everything that goes wrong."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`")
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_srvs.srv import Trigger

from openvla_ros.ros import servo_starter

pytestmark = pytest.mark.ros
NODE = "/servo_node"


class Servo:
    """A node that offers one service and writes down what it is asked."""

    def __init__(self, kind: Any, name: str, *, succeeds: bool) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = Node("servo_node", context=self.context)
        self.requests: list[Any] = []

        def answer(request: Any, response: Any) -> Any:
            self.requests.append(request)
            response.success = succeeds
            return response

        self.node.create_service(kind, f"~/{name}", answer)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._is_over = False
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._is_over:
            self._executor.spin_once(timeout_sec=0.05)

    def close(self) -> None:
        self._is_over = True
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def servos() -> Iterator[list[Servo]]:
    made: list[Servo] = []
    try:
        yield made
    finally:
        for servo in made:
            servo.close()


def test_humble_is_started(servos: list[Servo]) -> None:
    servos.append(Servo(Trigger, "start_servo", succeeds=True))
    assert servo_starter.main(["humble", "--timeout", "30"]) == 0
    assert len(servos[0].requests) == 1


def test_jazzy_is_switched_to_twists(servos: list[Servo]) -> None:
    kinds = pytest.importorskip(
        "moveit_msgs.srv", reason="moveit_msgs comes with an apt ROS, not with wheels"
    )
    servos.append(Servo(kinds.ServoCommandType, "switch_command_type", succeeds=True))
    assert servo_starter.main(["jazzy", "--timeout", "30"]) == 0
    assert [request.command_type for request in servos[0].requests] == [1]


def test_a_servo_that_refuses_is_an_error(
    servos: list[Servo], capfd: pytest.CaptureFixture[str]
) -> None:
    servos.append(Servo(Trigger, "start_servo", succeeds=False))
    assert servo_starter.main(["humble", "--timeout", "30"]) == 1
    assert "start_servo refuses" in capfd.readouterr().err


def test_a_servo_that_is_not_there_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert servo_starter.main(["humble", "--node", "/nobody", "--timeout", "0"]) == 1
    assert "no service /nobody/start_servo" in capfd.readouterr().err


def test_without_moveit_msgs_the_package_is_named(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "moveit_msgs.srv", None)
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert servo_starter.main(["jazzy", "--timeout", "0"]) == 1
    said = capfd.readouterr().err
    assert "ros-jazzy-moveit-msgs" in said and "servo:=humble" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_without_a_traceback(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "openvla_ros.ros.servo_starter", "humble", "--node", "/nobody"]
    waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = waiting.stderr.readline()
        assert "waiting for /nobody/start_servo" in said
        waiting.send_signal(number)
        _, rest = waiting.communicate(timeout=30)
    finally:
        waiting.kill()
    assert waiting.returncode == 1
    assert "Traceback" not in rest, rest
