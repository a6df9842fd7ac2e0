"""What moves real fingers: one goal or command per change, sent when its server is there.

A backend is told the wanted opening again and again (`command`), only while the arm may move. It
sends what is new, once: an action that is rejected or aborted is a warning, not a reason to try
again, because a gripper that keeps squeezing at 1 Hz breaks things. The next change is a new try.
A server that went away knows nothing of what it was told, so it is told again when it returns.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from action_msgs.msg import GoalStatus

from openvla_ros.config.motion import GripperConfig
from openvla_ros.control.gripper import (
    GripperGoal,
    franka_grasp_goal,
    franka_move_goal,
    gap_m,
    gripper_command_goal,
)

OPEN_ABOVE = 0.5
STOP_ANSWER_S = 2.0  # Franka's stop answers when the fingers stand still
PWM_RELEASE_S = 1.0  # as long as Interbotix's own `release` waits for open fingers

#: Name of an action, and its goal.
Order = tuple[str, Any]


class GripperBackend(ABC):
    """Remembers what the gripper was told, and tells it what it does not know yet."""

    def __init__(self, config: GripperConfig, log: Any) -> None:
        """Send nothing until `command`.

        Args:
            config: Widths, force and names.
            log: A logger with `info` and `warning`.
        """
        self._config = config
        self._log = log
        self._lock = threading.RLock()
        self._told: bool | None = None  # True = open
        self._orders = 0  # counts changes: an answer to an older one no longer matters
        self._trouble = ""
        self._is_closed = False

    @property
    def trouble(self) -> str:
        """Why the gripper may not be where it should be, in words; "" when nothing is known."""
        return self._trouble

    def command(self, opening: float) -> None:
        """Want the fingers open (1) or closed (0); returns at once, and may be repeated."""
        is_open = opening > OPEN_ABOVE
        with self._lock:
            if self._is_closed or not self._still_there() or is_open == self._told:
                return
            self._told = is_open
            self._orders += 1
            self._send(is_open, self._orders)

    def watch(self) -> None:
        """Notice a server that went away. Call it a few times per second."""
        with self._lock:
            if self._told is not None and not self._is_closed:
                self._still_there()

    def close(self) -> None:
        """Leave the fingers as they are, and be silent from now on."""
        with self._lock:
            self._is_closed = True
            self._orders += 1

    def _still_there(self) -> bool:
        missing = self._missing()
        if missing:
            self._told = None
            self._orders += 1
            self._complain(f"{missing}: the gripper does not move")
        return not missing

    @abstractmethod
    def _missing(self) -> str:
        """Which server is not there, in words; "" when all are."""

    @abstractmethod
    def _send(self, is_open: bool, order: int) -> None:
        """Open or close; the order's number tells whether a later answer still matters."""

    def _is_newest(self, order: int) -> bool:
        return order == self._orders

    def _complain(self, text: str) -> None:
        if text != self._trouble:
            self._trouble = text
            self._log.warning(f"gripper: {text}")

    def _succeeded(self) -> None:
        if self._trouble:
            self._log.info("gripper: works again")
        self._trouble = ""


class ActionGripper(GripperBackend):
    """Turns a change into one goal of an action server."""

    def __init__(
        self,
        config: GripperConfig,
        log: Any,
        *,
        clients: Mapping[str, Any],
        order_of: Callable[[bool], Order],
    ) -> None:
        """Use action clients by name; `order_of` says which goal opens or closes, and whose it is.

        Args:
            config: Widths, force and names.
            log: A logger.
            clients: Action name to `rclpy.action.ActionClient`.
            order_of: True for open → the action's name and its goal.
        """
        super().__init__(config, log)
        self._clients = dict(clients)
        self._order_of = order_of

    def _missing(self) -> str:
        gone = [name for name, client in self._clients.items() if not client.server_is_ready()]
        return f"no action server {' and '.join(gone)}" if gone else ""

    def _send(self, is_open: bool, order: int) -> None:
        name, goal = self._order_of(is_open)
        future = self._clients[name].send_goal_async(goal)
        future.add_done_callback(partial(self._on_accepted, name, order))

    def _on_accepted(self, name: str, order: int, future: Any) -> None:
        with self._lock:
            if not self._is_newest(order):
                return
            handle = future.result()
            if handle is None or not handle.accepted:
                self._complain(f"{name} rejected the goal; the next change is tried again")
                return
        result = handle.get_result_async()
        result.add_done_callback(partial(self._on_result, name, order))

    def _on_result(self, name: str, order: int, future: Any) -> None:
        with self._lock:
            if not self._is_newest(order):
                return
            answer = future.result()
            status = GoalStatus.STATUS_UNKNOWN if answer is None else answer.status
            if status == GoalStatus.STATUS_SUCCEEDED:
                self._succeeded()
                return
            words = {
                GoalStatus.STATUS_ABORTED: "aborted the goal",
                GoalStatus.STATUS_CANCELED: "cancelled the goal",
            }
            why = str(getattr(getattr(answer, "result", None), "error", ""))
            text = f"{name} {words.get(status, 'lost the goal')}{f' ({why})' if why else ''}"
            self._complain(f"{text}; the next change is tried again")


class FrankaGripper(ActionGripper):
    """Franka Hand: stops what the hand does before it gets a new goal.

    The server of franka_gripper accepts every goal and runs each in a thread of its own: without
    the stop, an opening would wait behind a grasp, or fight with it.
    """

    def __init__(
        self,
        config: GripperConfig,
        log: Any,
        *,
        clients: Mapping[str, Any],
        order_of: Callable[[bool], Order],
        stop: Any,
        stop_request: Any,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """As `ActionGripper`; `stop` is the service client of `~/stop`, `clock` steady seconds."""
        super().__init__(config, log, clients=clients, order_of=order_of)
        self._stop = stop
        self._stop_request = stop_request
        self._clock = clock
        self._stop_since_s: float | None = None

    def watch(self) -> None:
        """Notice a server that went away, and a stop that is not answered."""
        super().watch()
        with self._lock:
            since = self._stop_since_s
            if since is not None and self._clock() - since > STOP_ANSWER_S:
                self._stop_since_s = None
                self._orders += 1  # an answer that comes later must not move the fingers
                self._complain("the hand does not answer `stop`; the next change is tried again")

    def _missing(self) -> str:
        return super()._missing() or ("" if self._stop.service_is_ready() else "no service stop")

    def _send(self, is_open: bool, order: int) -> None:
        self._stop_since_s = self._clock()
        future = self._stop.call_async(self._stop_request)
        future.add_done_callback(partial(self._on_stopped, is_open, order))

    def _on_stopped(self, is_open: bool, order: int, _: Any) -> None:
        # Refused or not: a hand that stands still has nothing to stop.
        with self._lock:
            if self._is_newest(order):
                self._stop_since_s = None
                super()._send(is_open, order)


class InterbotixGripper(GripperBackend):
    """Gripper motor of an Interbotix arm: the gap in linear position mode, or PWM.

    With `gripper.pwm` positive opens, and ends after `PWM_RELEASE_S`, so that the motor does not
    push against its stop for ever; negative closes and goes on: it holds what is between the
    fingers. A motor in linear position mode that gets a PWM number would take it for metres.

    Source: interbotix_ros_toolboxes @ humble, xs_hardware_interface.cpp (the gap is twice the
    finger's position) and xs_robot/gripper.py (signs of PWM, one second).
    """

    def __init__(
        self,
        config: GripperConfig,
        log: Any,
        *,
        publisher: Any,
        message_type: type,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Publish `message_type` (JointSingleCommand) with `publisher`; `clock`: steady seconds."""
        super().__init__(config, log)
        self._publisher = publisher
        self._message_type = message_type
        self._clock = clock
        self._release_ends_s: float | None = None

    def watch(self) -> None:
        """Notice a driver that went away, and end an opening."""
        super().watch()
        with self._lock:
            ends = self._release_ends_s
            if ends is not None and self._clock() >= ends:
                self._end_release()

    def close(self) -> None:
        """End an opening; a closed gripper keeps holding."""
        with self._lock:
            super().close()
            if self._release_ends_s is not None:
                self._end_release()

    def _missing(self) -> str:
        is_heard = self._publisher.get_subscription_count() > 0
        return "" if is_heard else f"nobody listens to {self._publisher.topic_name}"

    def _send(self, is_open: bool, order: int) -> None:
        pwm = self._config.pwm
        if pwm:
            self._publish(pwm if is_open else -pwm)
            self._release_ends_s = self._clock() + PWM_RELEASE_S if is_open else None
        else:
            self._publish(_wanted_gap_m(self._config, is_open))
        self._succeeded()

    def _end_release(self) -> None:
        self._release_ends_s = None
        self._publish(0)

    def _publish(self, command: float) -> None:
        joint = self._config.joint or "gripper"
        self._publisher.publish(self._message_type(name=joint, cmd=float(command)))


# Goals: which message says what, and nothing is decided ------------------------------------------


def _wanted_gap_m(config: GripperConfig, is_open: bool) -> float:
    opening = 1.0 if is_open else 0.0
    return gap_m(opening, open_m=config.open_position, closed_m=config.closed_position)


def command_goal(config: GripperConfig, is_open: bool) -> GripperGoal:
    """Return the goal of a ros2_control gripper controller."""
    return gripper_command_goal(
        _wanted_gap_m(config, is_open),
        is_closing=not is_open,
        max_effort_n=config.max_effort,
        takes_half_width=config.half_width,
    )


def gripper_command(goal_type: type, config: GripperConfig, is_open: bool) -> Any:
    """Return a goal of control_msgs/action/GripperCommand."""
    wanted, goal = command_goal(config, is_open), goal_type()
    goal.command.position = wanted.width_m
    goal.command.max_effort = wanted.force_n
    return goal


def parallel_gripper_command(goal_type: type, config: GripperConfig, is_open: bool) -> Any:
    """Return a goal of control_msgs/action/ParallelGripperCommand: one joint, position, effort."""
    wanted, goal = command_goal(config, is_open), goal_type()
    goal.command.name = [config.joint]
    goal.command.position = [wanted.width_m]
    goal.command.effort = [wanted.force_n]
    return goal


def franka_move(goal_type: type, config: GripperConfig) -> Any:
    """Return a goal of franka_msgs/action/Move that opens."""
    wanted, goal = franka_move_goal(config.open_position, speed_m_s=config.speed), goal_type()
    goal.width, goal.speed = wanted.width_m, wanted.speed_m_s
    return goal


def franka_grasp(goal_type: type, config: GripperConfig) -> Any:
    """Return a goal of franka_msgs/action/Grasp that closes on whatever is there."""
    wanted = franka_grasp_goal(
        closed_m=config.closed_position,
        open_m=config.open_position,
        force_n=config.max_effort,
        speed_m_s=config.speed,
    )
    goal = goal_type()
    goal.width, goal.speed, goal.force = wanted.width_m, wanted.speed_m_s, wanted.force_n
    goal.epsilon.inner, goal.epsilon.outer = wanted.epsilon_inner_m, wanted.epsilon_outer_m
    return goal
