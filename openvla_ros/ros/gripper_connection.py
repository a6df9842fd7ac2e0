"""`gripper.backend` → a backend with real clients, or an error that says what to install.

Message packages of grippers are imported here, and only the one that was asked for.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionClient
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from std_srvs.srv import Trigger

from openvla_ros.config.motion import GripperConfig
from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.gripper_backends import (
    ActionGripper,
    FrankaGripper,
    GripperBackend,
    InterbotixGripper,
    franka_grasp,
    franka_move,
    gripper_command,
    parallel_gripper_command,
)

WATCH_PERIOD_S = 0.2

#: Backend → what `gripper.name` is when it is empty.
USUAL_NAMES = {
    "gripper_command": "gripper_controller/gripper_cmd",
    "parallel_gripper_command": "gripper_controller/gripper_cmd",
    "franka": "franka_gripper",
    "interbotix": "commands/joint_single",
}


class GripperConnection:
    """A backend, the clients it uses, and the timer that watches its servers."""

    def __init__(self, node: Node, clock: Callable[[], float] = time.monotonic) -> None:
        """Do nothing until `connect`. `clock` is steady seconds."""
        self._node = node
        self._clock = clock
        self._group = ReentrantCallbackGroup()
        self._owned: list[Callable[[], Any]] = []
        self.backend: GripperBackend | None = None

    def connect(self, config: GripperConfig) -> None:
        """Use what `gripper.backend` names, in place of what was there; "none" is nothing.

        Raises:
            ConfigurationError: A message package is not installed, or a name is missing.
        """
        self.close()
        backend = self._connected(config)
        if backend is None:
            return
        timer = self._node.create_timer(
            WATCH_PERIOD_S,
            backend.watch,
            self._group,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        self._owned.append(lambda: self._node.destroy_timer(timer))
        name = config.name or USUAL_NAMES[config.backend]
        self._node.get_logger().info(f"gripper: {config.backend} at {name}")
        self.backend = backend

    @property
    def trouble(self) -> str:
        """Why the gripper may not be where it should be; "" when nothing is known."""
        backend = self.backend
        return "" if backend is None else backend.trouble

    def command(self, opening: float) -> None:
        """Want the fingers open (1) or closed (0)."""
        backend = self.backend  # cleanup in another thread may take it away
        if backend is not None:
            backend.command(opening)

    def close(self) -> None:
        """Leave the fingers as they are, and free the clients."""
        backend, self.backend = self.backend, None
        if backend is not None:
            backend.close()
        while self._owned:
            self._owned.pop()()

    def _connected(self, config: GripperConfig) -> GripperBackend | None:
        if config.backend == "none":
            return None
        name = config.name or USUAL_NAMES[config.backend]
        log = self._node.get_logger()
        if config.backend == "franka":
            return self._franka(config, name)
        if config.backend == "interbotix":
            message_type = _imported(config, "interbotix_xs_msgs", "msg", "JointSingleCommand")
            publisher = self._node.create_publisher(message_type, name, 1)
            self._owned.append(lambda: self._node.destroy_publisher(publisher))
            return InterbotixGripper(
                config, log, publisher=publisher, message_type=message_type, clock=self._clock
            )
        return self._control_msgs(config, name)

    def _control_msgs(self, config: GripperConfig, name: str) -> ActionGripper:
        if config.backend == "gripper_command":
            action, fill = (
                _imported(config, "control_msgs", "action", "GripperCommand"),
                gripper_command,
            )
        else:
            if not config.joint:
                raise ConfigurationError(
                    "gripper.backend is parallel_gripper_command and gripper.joint is empty: set "
                    "it to the joint that the controller names, e.g. robotiq_85_left_knuckle_joint."
                )
            action = _imported(config, "control_msgs", "action", "ParallelGripperCommand")
            fill = parallel_gripper_command
        return ActionGripper(
            config,
            self._node.get_logger(),
            clients={name: self._action_client(action, name)},
            order_of=lambda is_open: (name, fill(action.Goal, config, is_open)),
        )

    def _franka(self, config: GripperConfig, name: str) -> FrankaGripper:
        move = _imported(config, "franka_msgs", "action", "Move")
        grasp = _imported(config, "franka_msgs", "action", "Grasp")
        to_move, to_grasp = f"{name}/move", f"{name}/grasp"
        stop = self._node.create_client(Trigger, f"{name}/stop", callback_group=self._group)
        self._owned.append(lambda: self._node.destroy_client(stop))
        return FrankaGripper(
            config,
            self._node.get_logger(),
            clients={
                to_move: self._action_client(move, to_move),
                to_grasp: self._action_client(grasp, to_grasp),
            },
            order_of=lambda is_open: (
                (to_move, franka_move(move.Goal, config))
                if is_open
                else (to_grasp, franka_grasp(grasp.Goal, config))
            ),
            stop=stop,
            stop_request=Trigger.Request(),
            clock=self._clock,
        )

    def _action_client(self, action: type, name: str) -> ActionClient:
        client = ActionClient(self._node, action, name, callback_group=self._group)
        self._owned.append(client.destroy)
        return client


def _imported(config: GripperConfig, package: str, kind: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(f"{package}.{kind}"), name)
    except (ImportError, AttributeError) as error:
        distribution = os.environ.get("ROS_DISTRO", "jazzy")
        debian = f"ros-{distribution}-{package.replace('_', '-')}"
        raise ConfigurationError(
            f"gripper.backend is {config.backend}, which needs {package}/{kind}/{name} ({error}): "
            f"install {debian}, or build {package} in a workspace that you source; with "
            "gripper.backend none the command is still on ~/gripper_cmd."
        ) from error
