"""A robot that exists only as a pose: takes twists as MoveIt Servo would, publishes `ee_pose`.

Subscribes `twist_cmd` (TwistStamped) and `gripper_cmd` (openvla_ros/GripperCommand); publishes
`ee_pose` (PoseStamped) and `gripper_opening` (Float64, 0 closed ... 1 open).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from rclpy.time import Time
from std_msgs.msg import Float64

from openvla_ros.control.pose import Pose, rotation_to_quaternion
from openvla_ros.msg import GripperCommand
from openvla_ros.ros.spinning import spin_until_shutdown
from openvla_ros.sim.kinematic_arm import KinematicArm

RATE_HZ = 50.0
START_POSITION_M = (0.30, -0.09, 0.26)  # where OpenVLA's Bridge evaluation starts
START_ROTATION = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))  # tool z axis down


class MockRobotNode(Node):
    """Moves a `KinematicArm` at 50 Hz of ROS time."""

    def __init__(self, base_frame: str) -> None:
        """Stand at the start pose; twists in another frame than `base_frame` are refused."""
        super().__init__("openvla_mock_robot")
        start = Pose(np.array(START_POSITION_M), np.array(START_ROTATION))
        self.arm = KinematicArm(start, base_frame=base_frame)
        self._base_frame = base_frame
        self._warned: set[str] = set()
        self.create_subscription(TwistStamped, "twist_cmd", self._on_twist, 1)
        self.create_subscription(GripperCommand, "gripper_cmd", self._on_gripper, 1)
        self._pose_publisher = self.create_publisher(PoseStamped, "ee_pose", 1)
        self._gripper_publisher = self.create_publisher(Float64, "gripper_opening", 1)
        self.create_timer(1.0 / RATE_HZ, self._step)

    def _on_twist(self, message: TwistStamped) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        refusal = self.arm.command_twist(
            np.array([linear.x, linear.y, linear.z]),
            np.array([angular.x, angular.y, angular.z]),
            frame_id=message.header.frame_id,
            stamp_s=Time.from_msg(message.header.stamp).nanoseconds * 1e-9,
            now_s=self._now_s(),
        )
        if refusal and refusal not in self._warned:
            self._warned.add(refusal)
            self.get_logger().warning(f"twist refused: {refusal} (said once)")

    def _on_gripper(self, message: GripperCommand) -> None:
        self.arm.command_gripper(message.opening)

    def _step(self) -> None:
        pose = self.arm.step(self._now_s())
        message = PoseStamped()
        message.header.stamp = self.get_clock().now().to_msg()
        message.header.frame_id = self._base_frame
        position, orientation = message.pose.position, message.pose.orientation
        position.x, position.y, position.z = map(float, pose.position)
        orientation.x, orientation.y, orientation.z, orientation.w = map(
            float, rotation_to_quaternion(pose.rotation)
        )
        self._pose_publisher.publish(message)
        self._gripper_publisher.publish(Float64(data=self.arm.gripper_opening))

    def _now_s(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node until it is interrupted; returns a process exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-frame", default="base_link", help="frame of the twists")
    own, ros = parser.parse_known_args(arguments)
    rclpy.init(args=ros)
    return spin_until_shutdown(lambda: MockRobotNode(own.base_frame))


if __name__ == "__main__":
    sys.exit(main())
