"""The main job over real DDS: camera process -> node process with the real network -> twist.

This process is camera, operator and robot; the node is another process that loads a checkpoint.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from openvla_ros.policy import OpenVLAPolicy
from openvla_ros.ros.frame_sources import shared_data_folder
from openvla_ros.sim import table_scene

pytestmark = pytest.mark.ros

INSTRUCTION = "put the carrot in the bowl"
UNNORM_KEY = "bridge_orig"
PATIENCE_S = 60.0  # a limit for a broken test, not a measurement


def frames(data: Path | None, count: int = 12) -> list[np.ndarray]:
    """Real robot frames where there are any, else rendered ones: (H, W, 3) uint8 RGB."""
    if data is not None:
        files = sorted((data / "bridge_v2_frames100" / "images").glob("*.jpg"))
        if files:
            return [np.array(Picture.open(path).convert("RGB")) for path in files[::7][:count]]
    return [table_scene.render(index * 0.7) for index in range(count)]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return frames(shared_data_folder())


class Robot:
    """Camera, operator and arm in one: publishes frames, hears everything the node says."""

    def __init__(self) -> None:
        import rclpy
        from geometry_msgs.msg import TwistStamped
        from lifecycle_msgs.srv import ChangeState
        from openvla_ros.msg import VLAAction, VLAStatus
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import Image
        from std_msgs.msg import String

        from openvla_ros.ros import qos

        rclpy.init()
        self.node = rclpy.create_node("robot")
        self.answers: dict[int, VLAAction] = {}
        self.statuses: list[VLAStatus] = []
        self.twists: list[TwistStamped] = []
        self.active: list[str] = []
        self.camera = self.node.create_publisher(Image, "image", qos.IMAGE)
        self.operator = self.node.create_publisher(String, "instruction", qos.INSTRUCTION)
        listen = self.node.create_subscription
        listen(VLAAction, "openvla_node/action", self._on_answer, qos.ACTION)
        listen(VLAStatus, "openvla_node/status", self.statuses.append, qos.LATCHED)
        listen(TwistStamped, "openvla_node/twist_cmd", self.twists.append, qos.TWIST)
        listen(
            String,
            "openvla_node/active_instruction",
            lambda message: self.active.append(message.data),
            qos.LATCHED,
        )
        self.lifecycle = self.node.create_client(ChangeState, "openvla_node/change_state")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self.executor.spin, daemon=True)
        self.thread.start()

    def _on_answer(self, message) -> None:
        stamp = message.header.stamp
        self.answers[stamp.sec * 10**9 + stamp.nanosec] = message

    def publish(self, image: np.ndarray, encoding: str = "rgb8") -> int:
        """Publish one frame; return its stamp in nanoseconds, which the answer carries."""
        from sensor_msgs.msg import Image

        message = Image()
        now = self.node.get_clock().now()
        message.header.stamp = now.to_msg()
        message.header.frame_id = "camera_color_optical_frame"
        message.height, message.width = image.shape[:2]
        message.encoding, message.step = encoding, 3 * image.shape[1]
        message.data = image.tobytes()
        self.camera.publish(message)
        return now.nanoseconds

    def ask(self, image: np.ndarray, encoding: str = "rgb8"):
        """Publish one frame and return its answer: the pace of the camera is the node's."""
        stamp = self.publish(image, encoding)
        wait_for(lambda: stamp in self.answers, "the answer to a frame")
        return self.answers[stamp]

    def change_state(self, transition: int) -> None:
        from lifecycle_msgs.srv import ChangeState

        wait_for(self.lifecycle.service_is_ready, "the lifecycle service")
        request = ChangeState.Request()
        request.transition.id = transition
        future = self.lifecycle.call_async(request)
        wait_for(future.done, f"transition {transition}")
        assert future.result().success, self.statuses[-1].detail if self.statuses else "no status"

    def instruct(self, text: str) -> None:
        from std_msgs.msg import String

        wait_for(lambda: self.operator.get_subscription_count() > 0, "an instruction subscriber")
        self.operator.publish(String(data=text))
        wait_for(lambda: text in self.active, "the active instruction")

    def close(self) -> None:
        import rclpy

        self.executor.shutdown()
        self.thread.join(10.0)
        self.node.destroy_node()
        rclpy.try_shutdown()


def wait_for(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s for {what}"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def robot(tiny_checkpoint: Path) -> Iterator[Robot]:
    from lifecycle_msgs.msg import Transition

    parameters = {
        "checkpoint": str(tiny_checkpoint),
        "unnorm_key": UNNORM_KEY,
        "device": "cpu",
        "base_frame": "base",
        "motion_enabled": "false",
        # Nothing here is about being late: a loaded machine must not change what is answered.
        "policy_rate": "30.0",
        "image_max_age": "5.0",
        "image_timeout": "5.0",
        "max_action_age": "60.0",
        "inference_timeout": "60.0",
        "hang_timeout": "600.0",
    }
    arguments = [part for item in parameters.items() for part in ("-p", "{}:={}".format(*item))]
    command = [sys.executable, "-m", "openvla_ros.ros.node", "--ros-args", *arguments]
    process = subprocess.Popen(command)
    robot = Robot()
    try:
        robot.change_state(Transition.TRANSITION_CONFIGURE)
        robot.change_state(Transition.TRANSITION_ACTIVATE)
        wait_for(lambda: robot.camera.get_subscription_count() > 0, "an image subscriber")
        robot.instruct(INSTRUCTION)
        yield robot
        process.terminate()
        assert process.wait(10.0) == 0
    finally:
        process.kill()
        process.wait()
        robot.close()


@pytest.fixture(scope="module")
def policy(tiny_checkpoint: Path) -> OpenVLAPolicy:
    return OpenVLAPolicy.from_pretrained(tiny_checkpoint, device="cpu", unnorm_key=UNNORM_KEY)


def test_every_action_equals_the_policy_on_the_same_pixels(
    robot: Robot, policy: OpenVLAPolicy, images: list[np.ndarray]
) -> None:
    for image in images:
        answer = robot.ask(image)
        expected = policy.predict_action(image, INSTRUCTION)
        assert list(answer.token_ids) == expected.token_ids
        assert list(answer.raw) == expected.action.tolist()
        assert list(answer.normalized) == expected.normalized.tolist()
        assert answer.prompt == expected.prompt
        assert answer.instruction == INSTRUCTION
        assert answer.is_valid
        assert answer.unnorm_key == UNNORM_KEY


def test_different_frames_get_different_tokens(robot: Robot, images: list[np.ndarray]) -> None:
    sequences = {tuple(robot.ask(image).token_ids) for image in images}
    assert len(sequences) >= 5, f"{len(sequences)} distinct answers to {len(images)} frames"


def test_swapped_colours_change_the_tokens_and_a_right_encoding_restores_them(
    robot: Robot, images: list[np.ndarray]
) -> None:
    changed = 0
    for image in images[:6]:
        swapped = np.ascontiguousarray(image[..., ::-1])
        right = robot.ask(image).token_ids
        changed += list(robot.ask(swapped).token_ids) != list(right)
        assert list(robot.ask(swapped, "bgr8").token_ids) == list(right)
    assert changed >= 4, f"the tokens of {changed} of 6 frames changed"


def test_every_received_frame_is_answered_or_counted_as_dropped(
    robot: Robot, images: list[np.ndarray]
) -> None:
    before = robot.statuses[-1]
    for _ in range(4):  # faster than any answer: all but the newest must be dropped, none lost
        for image in images:
            robot.publish(image)
    final = robot.ask(images[0])  # a frame of its own at the end, so that the burst is over

    def settled() -> bool:
        status = robot.statuses[-1]
        return status.frames_in_flight == 0 and status.actions >= final.sequence

    wait_for(settled, "a status after the burst")
    status = robot.statuses[-1]
    assert status.frames_received == status.actions + status.frames_dropped
    assert status.actions == len(robot.answers) == final.sequence
    assert status.frames_received > before.frames_received


def test_a_dry_run_streams_zero_twists_and_shows_the_real_motion(
    robot: Robot, images: list[np.ndarray]
) -> None:
    from openvla_ros.msg import VLAAction

    wait_for(lambda: len(robot.twists) > 0, "a twist")
    answer = robot.ask(images[0])
    assert answer.drop_reason == VLAAction.DRY_RUN
    assert not answer.executed
    delta = answer.delta_position
    assert (delta.x, delta.y, delta.z) != (0.0, 0.0, 0.0)
    for message in list(robot.twists):
        linear, angular = message.twist.linear, message.twist.angular
        assert [linear.x, linear.y, linear.z, angular.x, angular.y, angular.z] == [0.0] * 6
        assert message.header.frame_id == "base"
