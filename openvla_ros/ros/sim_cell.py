"""The simulated cell as a robot with a camera: takes twists as MoveIt Servo would.

Subscribes `twist_cmd` (TwistStamped) and `gripper_cmd` (openvla_ros/GripperCommand). Publishes
`image` (Image) or `image/compressed`, `camera_info`, `joint_states`, `ee_pose` (PoseStamped),
`gripper_opening` (Float64, 0 closed ... 1 open), `task_done` (Bool), and what is to be done on
`instruction` (String); when asked for, `/clock` and a larger picture for people on
`view/compressed`; the camera's tf where tf2_msgs is installed.
`~/reset` draws the scene of the parameters `task`, `target`, `instruction` and `seed` again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import TwistStamped
from rclpy.clock import Clock as NodeClock
from rclpy.clock import ClockType
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.node import Node
from rclpy.time import Time
from std_srvs.srv import Trigger

from openvla_ros.errors import ConfigurationError, OpenVLAError
from openvla_ros.msg import GripperCommand
from openvla_ros.ros import qos
from openvla_ros.ros.sim_cell_topics import CellPublishers
from openvla_ros.ros.spinning import spin_until_shutdown
from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.scene import COLOURS
from openvla_ros.sim.tasks import read_task
from openvla_ros.sim.twist_gate import TwistGate

STEP_S = 0.02  # physics between two looks at the commands; the state is published as often
INSTRUCTION_REPEAT_S = 1.0  # `instruction` is volatile: a node that starts late hears the next one
BEHIND_S = 0.5  # more than this behind the clock, and the cell lets time pass instead
# With a clock of its own the cell makes up for what a picture takes, and no more: twists that wait
# for their callback meanwhile must not be too old for the steps that follow.
CATCH_UP_S = 0.1
REPORT_S = 10.0
ROUNDING_S = 1e-6
PARAMETERS: dict[str, Any] = {
    "arm": "viperx",
    "task": "reach",  # reach, push, pick or place
    "target": "",  # colour of the block; "" draws one
    "seed": 0,
    "instruction": "",  # replaces the task's, and is the task if the cell knows it; none = silence
    "base_frame": "base_link",
    "camera_rate": 10.0,  # Hz
    "width": 224,
    "height": 224,
    "image_transport": "raw",  # raw or compressed
    "view_size": 0,  # pixels: a larger picture for people, on view/compressed; 0 = none
    "view_rate": 5.0,  # Hz
    "shadows": False,
    "publish_clock": False,  # simulated time, for nodes with use_sim_time
    "real_time_factor": 1.0,  # simulated seconds per second, with publish_clock
}


class SimCellNode(Node):
    """Lets a `SimCell` run along with the clock.

    Attributes:
        cell: What is simulated.
        gate: Which twist counts.
    """

    def __init__(self, *, is_paced: bool = True, **options: Any) -> None:
        """Read the parameters, draw the first scene, start.

        Args:
            is_paced: False: time passes only in `advance`, for tests that are faster than life.
            options: For `rclpy.node.Node`.

        Raises:
            OpenVLAError: A parameter is not usable, or what the cell needs is not installed.
        """
        super().__init__("sim_cell", **options)
        for name, value in PARAMETERS.items():
            try:
                self.declare_parameter(name, value)
            except InvalidParameterTypeException as error:
                raise ConfigurationError(
                    f"{error}: {name} is a {type(value).__name__}, as in {name}:={value}."
                ) from error
        self._has_clock = bool(self._value("publish_clock")) or not is_paced
        for name in ("camera_rate", "view_rate", "real_time_factor"):
            _require(self._value(name) > 0, name, self._value(name), "> 0")
        factor = self._value("real_time_factor")
        self.cell = SimCell(self._value("arm"), has_shadows=self._value("shadows"))
        self.gate = TwistGate(self._value("base_frame"))
        self._warned: set[str] = set()
        self._opening = 1.0
        self._topics = CellPublishers(
            self,
            self.cell,
            base_frame=self._value("base_frame"),
            size=(self._value("width"), self._value("height")),
            transport=self._value("image_transport"),
            has_clock=self._has_clock,
        )
        # Simulated time starts at 1 s: a stamp of 0 means "not set".
        self._now_ns = 1_000_000_000 if self._has_clock else self._clock_ns()
        self._steps = 0
        self._report = (time.monotonic(), self._steps)
        self.reset()
        self.create_subscription(
            TwistStamped, "twist_cmd", self._on_twist, 1, event_callbacks=qos.NO_EVENTS
        )
        self.create_subscription(GripperCommand, "gripper_cmd", self._on_gripper, 1)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self._begin_s = time.monotonic() - self.now_s / factor  # when simulated time was 0
        if is_paced:
            period_s = STEP_S / factor if self._has_clock else STEP_S
            steady = NodeClock(clock_type=ClockType.STEADY_TIME)
            self.create_timer(period_s, self._run, clock=steady)

    @property
    def now_s(self) -> float:
        """Time up to which the cell has been simulated, as in the stamps it publishes."""
        return self._now_ns * 1e-9

    def reset(self) -> None:
        """Draw the scene of the parameters, and let no earlier command count.

        Raises:
            ConfigurationError: Unknown task, or no block of the wanted colour in this scene.
        """
        told = read_task(self._value("instruction"), COLOURS)
        kind, target = (
            (told.kind, told.target) if told else (self._value("task"), self._value("target"))
        )
        task = self.cell.reset(self._value("seed"), kind, target)
        if told:
            task = self.cell.task = told
        self.gate.forget()
        self._opening = 1.0
        self._frame_ns = self._view_ns = self._instruction_ns = 0  # all at once
        self._topics.publish_camera_frame(self._stamp())
        self.get_logger().info(f"seed {self._value('seed')}: {task.instruction}")

    def advance(self, duration_s: float) -> None:
        """Simulate in steps of 20 ms, and publish what is due."""
        for _ in range(round(duration_s / STEP_S)):
            self.cell.step(self.gate.twist_at(self.now_s), self._opening, STEP_S)
            self._now_ns += round(STEP_S * 1e9)
            self._steps += 1
            self._publish()

    def _run(self) -> None:
        behind_s = self._behind_own_clock_s() if self._has_clock else self._behind_clock_s()
        while behind_s >= STEP_S:
            self.advance(STEP_S)
            behind_s -= STEP_S
        self._report_speed()

    def _behind_own_clock_s(self) -> float:
        factor = self._value("real_time_factor")
        behind_s = (time.monotonic() - self._begin_s) * factor - self.now_s
        if behind_s > CATCH_UP_S:  # simulated time goes slower
            self._begin_s += (behind_s - CATCH_UP_S) / factor
        return min(behind_s, CATCH_UP_S) + ROUNDING_S

    def _behind_clock_s(self) -> float:
        behind_s = (self._clock_ns() - self._now_ns) * 1e-9
        if not -BEHIND_S < behind_s < BEHIND_S:  # a halt of the machine, or a set clock
            self._now_ns = self._clock_ns()
            behind_s = STEP_S
        return behind_s

    def _publish(self) -> None:
        stamp = self._stamp()
        self._topics.publish_state(stamp)
        if self._now_ns - self._frame_ns >= 1e9 / self._value("camera_rate") - 1e6:
            self._frame_ns = self._now_ns
            self._topics.publish_picture(stamp)
        size = self._value("view_size")
        if size and self._now_ns - self._view_ns >= 1e9 / self._value("view_rate") - 1e6:
            self._view_ns = self._now_ns
            self._topics.publish_view(stamp, size)
        if self._now_ns - self._instruction_ns >= INSTRUCTION_REPEAT_S * 1e9:
            self._instruction_ns = self._now_ns
            text = self._value("instruction") or self.cell.task.instruction
            if text != "none":
                self._topics.publish_instruction(text)

    def _on_twist(self, message: TwistStamped) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        axes = np.array([linear.x, linear.y, linear.z]), np.array([angular.x, angular.y, angular.z])
        stamp_s = Time.from_msg(message.header.stamp).nanoseconds * 1e-9
        now_s = self.now_s if self._has_clock else self._clock_ns() * 1e-9
        refusal = self.gate.refusal(*axes, message.header.frame_id, stamp_s, now_s)
        if not refusal:
            self.gate.take(*axes, stamp_s)
        elif refusal not in self._warned:
            self._warned.add(refusal)
            self.get_logger().warning(f"twist refused: {refusal} (said once)")

    def _on_gripper(self, message: GripperCommand) -> None:
        if np.isfinite(message.opening):
            self._opening = float(np.clip(message.opening, 0.0, 1.0))

    def _on_reset(self, _: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        try:
            self.reset()
        except OpenVLAError as error:
            answer.success, answer.message = False, str(error)
        else:
            answer.success, answer.message = True, self.cell.task.instruction
        return answer

    def _report_speed(self) -> None:
        now_s, (then_s, steps) = time.monotonic(), self._report
        if now_s - then_s < REPORT_S:
            return
        factor = (self._steps - steps) * STEP_S / (now_s - then_s)  # what was left out is no step
        self._report = (now_s, self._steps)
        self.get_logger().info(
            f"real-time factor {factor:.2f}, pictures by {self.cell.renderer or 'nothing yet'}"
        )

    def _clock_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    def _stamp(self) -> Any:
        return Time(nanoseconds=self._now_ns).to_msg()

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value


def _require(is_met: bool, name: str, value: Any, allowed: str) -> None:
    if not is_met:
        raise ConfigurationError(f"{name} is {value}; it must be {allowed}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node until it is interrupted; returns a process exit code."""
    rclpy.init(args=arguments)
    return spin_until_shutdown(SimCellNode)


if __name__ == "__main__":
    sys.exit(main())
