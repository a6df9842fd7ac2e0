"""A cell for node tests: the node under test, and one peer that is camera, operator and robot.

Everything goes over DDS, inside one process. Nothing sleeps and hopes: the peer waits for a message
or a state with a deadline that only a broken node reaches.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from openvla_ros.msg import GripperCommand, VLAAction, VLAStatus
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.context import Context
from rclpy.executors import Executor, MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from openvla_ros.config.policy import ModelConfig
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.ros import qos, streaming
from openvla_ros.ros.node import OpenVLANode
from openvla_ros.ros.process import EXECUTOR_THREADS
from openvla_ros.types import PRIMARY, Observation, Prediction

PATIENCE_S = 60.0  # a limit for a broken test, not a measurement
RESEND_S = 2.0
RENEW_S = 5.0
POLL_S = 0.01  # shorter, and the other threads get no turn
NAME = "/openvla_node"
PATIENT = {
    "backend": "mock",
    "policy_rate": 30.0,
    "image_max_age": 5.0,
    "image_timeout": 5.0,
    "max_action_age": 30.0,
    "inference_timeout": 5.0,
}
MOVING = {"motion_enabled": True, "base_frame": "base_link", "speed_scale": 1.0}


class SteadyClock:
    """Steady seconds that run as usual, and jump ahead when a test says so."""

    def __init__(self) -> None:
        self._offset_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self._offset_s

    def jump(self, seconds: float) -> None:
        self._offset_s += seconds


class GatedPolicy(MockPolicy):
    """A mock that shows what it is given, and answers each camera frame only when it may."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model.mock_action, fault=model.mock_fault)
        self.seen: list[Observation] = []
        self.began = threading.Semaphore(0)
        self.may_answer = threading.Semaphore(0)

    def predict(self, observation: Observation) -> Prediction:
        if observation.stamp_ns:
            self.seen.append(observation)
            self.began.release()
            assert self.may_answer.acquire(timeout=PATIENCE_S)
        return super().predict(observation)


class Cell:
    """Node, peer and the thread that spins both. Use as a context manager."""

    def __init__(
        self, *, load: Callable | None = None, late_tick_s: float = 1e9, **parameters: Any
    ) -> None:
        """Create the node unconfigured, with backend mock unless told otherwise.

        The time-outs are long, so that a busy machine does not change what a test sees.
        """
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(streaming, "LATE_TICK_S", late_tick_s)
        gc.collect()  # contexts of earlier tests end now: their nodes must not be seen by this one
        parameters = {**PATIENT, **parameters}
        self.context = Context()
        rclpy.init(context=self.context)
        self.steady = SteadyClock()
        extra = {} if load is None else {"load": load}
        self.node = OpenVLANode(
            steady_clock=self.steady,
            context=self.context,
            parameter_overrides=[Parameter(k, value=v) for k, v in parameters.items()],
            **extra,
        )
        self.peer = Node("peer", context=self.context)
        self._changed = threading.Condition()
        self._group = ReentrantCallbackGroup()
        self.actions: list[VLAAction] = []
        self.twists: list[TwistStamped] = []
        self.statuses: list[VLAStatus] = []
        self.grippers: list[GripperCommand] = []
        self.hear(VLAAction, f"{NAME}/action", self.actions, 100)
        self.twist_ear = self.hear(TwistStamped, f"{NAME}/twist_cmd", self.twists, 100)
        self.hear(GripperCommand, f"{NAME}/gripper_cmd", self.grippers, 100)
        self.hear(VLAStatus, f"{NAME}/status", self.statuses, qos.LATCHED)
        self._image_publishers: dict[str, Any] = {}
        self._clients: dict[str, Any] = {}
        self._renew_at: dict[str, float] = {}
        self._instruction = self.peer.create_publisher(String, "instruction", 1)
        # Two executors: one that holds both nodes lets messages wait for half a second (rclpy 7.1).
        self._executor = MultiThreadedExecutor(EXECUTOR_THREADS, context=self.context)
        self._executor.add_node(self.node)
        ears = SingleThreadedExecutor(context=self.context)
        ears.add_node(self.peer)
        self._is_over = False
        self._threads = [
            threading.Thread(target=self._spin, args=[executor], daemon=True)
            for executor in (self._executor, ears)
        ]
        for thread in self._threads:
            thread.start()

    def _spin(self, executor: Executor) -> None:
        while not self._is_over:
            executor.spin_once(timeout_sec=0.05)

    def __enter__(self) -> Cell:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        session = self.node._session
        if session is not None and isinstance(session.policy, MockPolicy):
            session.policy.release()
            if isinstance(session.policy, GatedPolicy):
                session.policy.may_answer.release(1000)
        self.node.stop_streaming()
        if session is not None:
            session.close()
        self._is_over = True
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self._executor.shutdown()
        self._executor._executor.shutdown(wait=True)
        self.peer.destroy_node()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)
        self._patch.undo()

    # Hearing ------------------------------------------------------------------------------------

    def hear(self, kind: type, topic: str, heard: list, profile: QoSProfile | int) -> Subscription:
        """Append every message of a topic to a list, and wake who waits."""

        def store(message: Any) -> None:
            with self._changed:
                heard.append(message)
                self._changed.notify_all()

        return self.peer.create_subscription(
            kind, topic, store, profile, callback_group=self._group
        )

    def wait(self, is_true: Callable[[], Any], what: str = "") -> Any:
        """Return the first true value; fail after a long time, saying what the node said last."""
        with self._changed:
            deadline = time.monotonic() + PATIENCE_S
            while not (value := is_true()):
                self._changed.wait(POLL_S)  # not every condition is a message
                if time.monotonic() > deadline:
                    last = self.statuses[-1] if self.statuses else None
                    raise AssertionError(f"waited in vain for {what or is_true}; status: {last}")
            return value

    def wait_status(self, state: int, reason: int) -> VLAStatus:
        """Return the first status from now on with this state and reason."""
        begin = max(len(self.statuses) - 1, 0)

        def found() -> VLAStatus | None:
            matching = [s for s in self.statuses[begin:] if (s.state, s.reason) == (state, reason)]
            return matching[-1] if matching else None

        return self.wait(found, f"state {state} reason {reason}")

    def wait_twists(self, count: int) -> list[TwistStamped]:
        """Return the next twists."""
        begin = len(self.twists)
        self.wait(lambda: len(self.twists) >= begin + count, f"{count} twists")
        return self.twists[begin : begin + count]

    def wait_zero(self) -> None:
        """Return when zeros arrive, and check that they stay zero."""
        self.wait(lambda: self.twists and is_zero(self.twists[-1]), "a zero twist")
        assert all(is_zero(t) for t in self.wait_twists(5))

    def wait_moving(self) -> None:
        """Return when a twist that is not zero arrives."""
        begin = len(self.twists)
        self.wait(lambda: any(not is_zero(t) for t in self.twists[begin:]), "a moving twist")

    # Doing --------------------------------------------------------------------------------------

    def call(self, kind: type, name: str, request: Any) -> Any:
        """Call a service of the node and return its response."""
        future = self._ready_client(kind, name).call_async(request)
        self.wait(future.done, f"an answer of {name}")
        return future.result()

    def _ready_client(self, kind: type, name: str) -> Any:
        """Return a client that sees its service; a new one when the old one does not.

        A node of an earlier test that still lingers hides the services of this one.
        """

        def ready() -> Any:
            if name not in self._clients or time.monotonic() > self._renew_at[name]:
                if name in self._clients:
                    self.peer.destroy_client(self._clients[name])
                self._clients[name] = self.peer.create_client(
                    kind, f"{NAME}/{name}", callback_group=self._group
                )
                self._renew_at[name] = time.monotonic() + RENEW_S
            client = self._clients[name]
            return client if client.service_is_ready() else None

        if name in self._clients:
            self._renew_at[name] = time.monotonic() + RENEW_S
        return self.wait(ready, f"service {name}")

    def trigger(self, name: str) -> Trigger.Response:
        """Call a Trigger service."""
        return self.call(Trigger, name, Trigger.Request())

    def enable_motion(self, enabled: bool) -> SetBool.Response:
        """Call ~/set_motion_enabled."""
        return self.call(SetBool, "set_motion_enabled", SetBool.Request(data=enabled))

    def change(self, transition: str) -> bool:
        """Make a lifecycle transition over its service; return its success."""
        request = ChangeState.Request()
        request.transition.id = getattr(Transition, f"TRANSITION_{transition.upper()}")
        return self.call(ChangeState, "change_state", request).success

    def state(self) -> str:
        """The lifecycle state, over its service."""
        return self.call(GetState, "get_state", GetState.Request()).current_state.label

    def start(self, instruction: str = "pick up the cup") -> Cell:
        """Configure, activate, and give an instruction."""
        assert self.change("configure"), self.statuses[-1]
        assert self.change("activate"), self.statuses[-1]
        if instruction:
            self.instruct(instruction)
        return self

    def instruct(self, text: str) -> None:
        """Send an instruction and wait until the node follows it."""
        self.wait(lambda: self._instruction.get_subscription_count(), "the node's subscription")
        self._instruction.publish(String(data=text))
        self.wait(lambda: self.statuses and self.statuses[-1].instruction == text, f"'{text}'")

    def image(self, pixels: np.ndarray | None = None, **changes: Any) -> Image:
        """Publish an rgb8 image, stamped now, and return the message."""
        pixels = np.zeros((4, 6, 3), np.uint8) if pixels is None else pixels
        message = Image(
            height=pixels.shape[0],
            width=pixels.shape[1],
            encoding="rgb8",
            step=pixels.shape[1] * 3,
        )
        message.data = pixels.tobytes()
        message.header.stamp = self.node.get_clock().now().to_msg()
        for name, value in changes.items():
            setattr(message.header if name == "stamp" else message, name, value)
        self.deliver("image", message)
        return message

    def deliver(self, topic: str, message: Any, profile: QoSProfile | None = None) -> None:
        """Publish an image until the node has it: best effort means that one may be lost."""
        ledger = self.node._session.ledger
        received = ledger.received
        deadline = time.monotonic() + PATIENCE_S
        while ledger.received == received:
            assert time.monotonic() < deadline, f"no image arrives on {topic}"
            self.publish(topic, message, profile)
            sent = time.monotonic()
            while ledger.received == received and time.monotonic() < sent + RESEND_S:
                time.sleep(POLL_S)

    def publish(self, topic: str, message: Any, profile: QoSProfile | None = None) -> None:
        """Publish on a topic once the node listens to it."""
        if topic not in self._image_publishers:
            reliable = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
            self._image_publishers[topic] = self.peer.create_publisher(
                type(message), topic, profile or reliable
            )
        publisher = self._image_publishers[topic]
        self.wait(publisher.get_subscription_count, f"a subscription to {topic}")
        publisher.publish(message)

    @contextmanager
    def repeated(
        self, kind: type, topic: str, make: Callable[[], Any], rate_hz: float = 50.0
    ) -> Iterator[None]:
        """Publish what `make` returns, again and again, while the context lasts."""
        publisher = self.peer.create_publisher(kind, topic, 10)
        self.wait(publisher.get_subscription_count, f"a subscription to {topic}")
        group = MutuallyExclusiveCallbackGroup()
        timer = self.peer.create_timer(1.0 / rate_hz, lambda: publisher.publish(make()), group)
        try:
            yield
        finally:
            self.peer.destroy_timer(timer)

    def arm_at(
        self, x: float = 0.0, y: float = 0.0, z: float = 0.0, frame: str = "base_link"
    ) -> AbstractContextManager[None]:
        """Publish where the end effector is, while the context lasts."""

        def pose() -> PoseStamped:
            message = PoseStamped()
            message.header.frame_id = frame
            message.header.stamp = self.node.get_clock().now().to_msg()
            position = message.pose.position
            position.x, position.y, position.z = x, y, z
            return message

        return self.repeated(PoseStamped, "ee_pose", pose)

    def answer(self, **changes: Any) -> VLAAction:
        """Publish an image and return the answer to it."""
        count = len(self.actions)
        self.image(**changes)
        self.wait(lambda: len(self.actions) > count, "an answer")
        return self.actions[count]

    def drop(self, **changes: Any) -> None:
        """Publish an image and wait until the node has counted it as dropped."""
        dropped = self.node._session.ledger.dropped
        self.image(**changes)
        self.wait(lambda: self.node._session.ledger.dropped > dropped, "a dropped frame")


def latched(depth: int = 1) -> QoSProfile:
    """A latched publisher's profile."""
    return QoSProfile(depth=depth, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def is_zero(twist: TwistStamped) -> bool:
    """True when the twist is exactly zero."""
    v, w = twist.twist.linear, twist.twist.angular
    return not any((v.x, v.y, v.z, w.x, w.y, w.z))


def pixels_seen(observation: Observation) -> np.ndarray:
    """The image that the policy was given."""
    return observation.images[PRIMARY]
