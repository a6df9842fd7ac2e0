"""Everything the node publishes, in one object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.duration import Duration
from std_msgs.msg import String

from openvla_ros.config import NodeConfig
from openvla_ros.control.states import Reason, State
from openvla_ros.control.supervisor import Verdict
from openvla_ros.msg import GripperCommand, VLAAction, VLAStatus
from openvla_ros.ros import outgoing, qos
from openvla_ros.ros.frames import Answer, Tick
from openvla_ros.ros.session import Session

ACKNOWLEDGE_S = 0.2  # longest wait until the last zero has been received


class Publishers:
    """The topics that go out. Status and instruction always; the rest only while active.

    Attributes:
        answer_listeners: Called with every answer that was published, in the policy's thread and
            under the session's lock: store it and return.
        gripper_listeners: Called with every gripper command that was published, in the thread of
            the stream: hand it on and return.
    """

    def __init__(self, node: Any, config: Callable[[], NodeConfig]) -> None:
        """Create the publishers of a lifecycle node; `config` returns its current parameters."""
        self._node = node
        self._config = config
        self._reported: tuple[State, Reason, bool] | None = None
        self.answer_listeners: list[Callable[[Answer], None]] = []
        self.gripper_listeners: list[Callable[[GripperCommand], None]] = []
        self._status = node.create_publisher(VLAStatus, "~/status", qos.LATCHED)
        self._instruction = node.create_publisher(String, "~/active_instruction", qos.LATCHED)
        create = node.create_lifecycle_publisher
        self._action = create(VLAAction, "~/action", qos.ACTION)
        self._gripper = create(GripperCommand, "~/gripper_cmd", qos.GRIPPER)
        self._output = "none"
        self._command: Any = None  # publishes twists, or poses, or is None

    def use_output(self, output: str) -> None:
        """Offer the topic that moves the arm, and no other: a silent publisher looks like a rival.

        Args:
            output: twist, pose or none.
        """
        if output == self._output:
            return  # kept over cleanup
        if self._command is not None:
            self._node.destroy_lifecycle_publisher(self._command)
        self._output, self._command = output, None
        create = self._node.create_lifecycle_publisher
        if output == "twist":
            self._command = create(TwistStamped, "~/twist_cmd", qos.TWIST)
        elif output == "pose":
            self._command = create(PoseStamped, "~/pose_cmd", qos.POSE)

    def tick(self, tick: Tick) -> None:
        """Publish a twist or a pose, stamped now, and the gripper command if there is one."""
        config, now = self._config(), self._node.get_clock().now().to_msg()
        frame = config.motion.base_frame
        if self._output == "twist":
            self._command.publish(outgoing.twist_message(tick.twist, now, frame))
        elif self._output == "pose" and tick.target is not None:
            self._command.publish(outgoing.pose_message(tick.target, now, frame))
        if tick.gripper_opening is not None:
            command = outgoing.gripper_message(tick.gripper_opening, now, config.gripper)
            self._gripper.publish(command)
            for listener in self.gripper_listeners:
                listener(command)

    def wait_for_last_command(self) -> None:
        """Return when every subscriber has the last twist or pose, or after a moment.

        With output none it is the status that stops the arm.
        """
        last = self._status if self._command is None else self._command
        last.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE_S))

    def answer(self, answer: Answer) -> None:
        """Publish an answer of the policy."""
        self._action.publish(outgoing.action_message(answer, self._config().motion.base_frame))
        for listener in self.answer_listeners:
            listener(answer)

    def instruction(self, text: str) -> None:
        """Publish the active instruction."""
        self._instruction.publish(String(data=text))

    def is_news(self, verdict: Verdict) -> bool:
        """True when the last status said something else."""
        return self._summary(verdict) != self._reported

    def status(
        self, verdict: Verdict, session: Session | None, instruction: str, now_s: float
    ) -> None:
        """Publish the status, and log it when state or reason changed."""
        message = outgoing.status_message(
            verdict,
            self._node.get_clock().now().to_msg(),
            self._config(),
            None if session is None else session.policy.info,
            instruction,
        )
        if session is not None:
            outgoing.fill_numbers(message, session.ledger, session.image_age_s(), now_s)
            outgoing.fill_interventions(message, session.report())
        self._status.publish(message)
        if self.is_news(verdict):
            self._reported = self._summary(verdict)
            self._log(verdict)

    def _summary(self, verdict: Verdict) -> tuple[State, Reason, bool]:
        # Who streams in our place must hear at once that motion is disabled.
        return verdict.state, verdict.reason, self._config().motion.motion_enabled

    def _log(self, verdict: Verdict) -> None:
        text = f"{verdict.state.name} {verdict.reason.name} {verdict.detail}".rstrip()
        log = self._node.get_logger()
        if verdict.state is State.FAULT:
            log.error(text)
        elif verdict.reason in (Reason.OK, Reason.OPERATOR) or verdict.state is State.IDLE:
            log.info(text)
        else:
            log.warning(text)
