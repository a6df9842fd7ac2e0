"""Makes MoveIt Servo take twists, once, and ends; `servo:=jazzy` of the launch file runs it.

Up to Humble Servo waits for `~/start_servo`. Later ones run at once, but take joint commands until
`~/switch_command_type` says twist. A Servo that restarts is not started again: that is for whoever
restarted it to decide.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from std_srvs.srv import Trigger

from openvla_ros.errors import ConfigurationError, OpenVLAError

ANSWER_S = 10.0
POLL_S = 0.5
SAY_AFTER_S = 5.0


class ServoError(OpenVLAError):
    """Servo is not there, does not answer, or refuses."""


def start_humble(node: Node, servo_node: str, timeout_s: float) -> None:
    """Return when Servo of Humble runs.

    Raises:
        ServoError: It is not there, does not answer, or refuses.
    """
    _call(node, Trigger, f"{servo_node}/start_servo", Trigger.Request(), timeout_s)


def switch_to_twist(node: Node, servo_node: str, timeout_s: float) -> None:
    """Return when Servo of Jazzy or later takes twists.

    Raises:
        ConfigurationError: moveit_msgs is not installed.
        ServoError: Servo is not there, does not answer, or refuses.
    """
    try:
        kind: Any = importlib.import_module("moveit_msgs.srv").ServoCommandType
    except (ImportError, AttributeError) as error:
        distribution = os.environ.get("ROS_DISTRO", "jazzy")
        raise ConfigurationError(
            f"switching MoveIt Servo needs moveit_msgs/srv/ServoCommandType ({error}): install "
            f"ros-{distribution}-moveit-msgs, or run this where MoveIt is; Humble has "
            "another service: servo:=humble."
        ) from error
    request = kind.Request(command_type=kind.Request.TWIST)
    _call(node, kind, f"{servo_node}/switch_command_type", request, timeout_s)


#: `servo:=` → what starts that Servo.
STARTERS: dict[str, Callable[[Node, str, float], None]] = {
    "jazzy": switch_to_twist,
    "humble": start_humble,
}


def _call(node: Node, kind: Any, name: str, request: Any, timeout_s: float) -> None:
    client = node.create_client(kind, name)
    begin = time.monotonic()
    is_said = False
    while not client.wait_for_service(timeout_sec=POLL_S):
        waited = time.monotonic() - begin
        if waited > timeout_s:
            raise ServoError(f"no service {name} within {timeout_s:g} s: is Servo running?")
        if waited > SAY_AFTER_S and not is_said:
            is_said = True
            node.get_logger().info(f"waiting for {name}")
    future = client.call_async(request)
    rclpy.spin_until_future_complete(node, future, timeout_sec=ANSWER_S)
    if not future.done():
        raise ServoError(f"{name} does not answer within {ANSWER_S:g} s.")
    answer: Any = future.result()
    if answer is None or not answer.success:
        why = getattr(answer, "message", "") or "it says no more"
        raise ServoError(f"{name} refuses: {why}.")
    node.get_logger().info(f"{name}: done, Servo takes twists")


def main(arguments: Sequence[str] | None = None) -> int:
    """Start Servo; return 0 when it takes twists, and 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("servo", choices=sorted(STARTERS), help="jazzy: also Kilted and later")
    parser.add_argument("--node", default="/servo_node", help="name of Servo's node")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for it")
    own, ros = parser.parse_known_args(arguments)
    rclpy.init(args=ros)
    node = Node("servo_starter")
    try:
        STARTERS[own.servo](node, own.node, own.timeout)
    except OpenVLAError as error:
        node.get_logger().error(str(error))
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        return 1
    except RuntimeError:  # of rclpy's C layer, when SIGTERM ends the context inside a call
        if rclpy.ok():
            raise
        return 1
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
