"""What the node does while a policy is loaded: commands in, twists out. No rclpy in here.

Callbacks only store; the policy's thread answers (`Answering`); `tick` is called at the stream
rate. One lock guards what they share, and nothing slow happens while it is held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from openvla_ros.config import NodeConfig
from openvla_ros.control.motion import MotionStage, complete_spec
from openvla_ros.control.pose import EndEffectorPose, pose_problem
from openvla_ros.control.safety import SafetyReport
from openvla_ros.control.states import Reason, State
from openvla_ros.control.supervisor import Supervisor, Verdict
from openvla_ros.ros.answering import Answering
from openvla_ros.ros.decoding import Decoder
from openvla_ros.ros.frames import Answer, Clocks, PoseSource, Tick, UnknownPose, age_s
from openvla_ros.ros.ledger import Ledger
from openvla_ros.ros.shared_state import SharedState
from openvla_ros.ros.streaming import Streaming
from openvla_ros.types import Policy


class Session:
    """Owns the policy, its thread and the motion stage between configure and cleanup."""

    def __init__(
        self,
        policy: Policy,
        config: NodeConfig,
        *,
        decode: Decoder,
        clocks: Clocks,
        on_answer: Callable[[Answer], None],
        log: Any,
        ee_pose: PoseSource | None = None,
        look_at_controller: Callable[[NodeConfig], tuple[str, str]] = lambda _: ("", ""),
    ) -> None:
        """Start the policy's thread; nothing is answered before `begin`.

        Args:
            policy: Loaded and self-tested.
            config: Checked parameters.
            decode: Message → (H, W, 3) uint8 RGB.
            clocks: Time, from outside.
            on_answer: Publishes an answer; called in the policy's thread.
            log: A logger with `error` and `warning`.
            ee_pose: Where the end effector is; None = that stays unknown.
            look_at_controller: Returns why nobody follows the command, and who else gives one, in
                words; "" when all is well.

        Raises:
            ConfigurationError: The robot expects other actions than the policy gives.
        """
        self.policy = policy
        self._ee_pose = ee_pose or UnknownPose()
        self._look_at_controller = look_at_controller
        spec = complete_spec(
            policy.action_spec, config.action.overrides(), config.profile.expected()
        )
        self._shared = SharedState(
            config,
            clocks,
            Supervisor(config),
            MotionStage(spec, config.motion, config.gripper),
            log,
        )
        self._answering = Answering(
            policy,
            self._shared,
            decode=decode,
            on_answer=on_answer,
            ee_pose=self._ee_pose.read,
            judge=lambda: self._judge(self._ee_pose.read(), None),
        )
        self._streaming = Streaming(self._shared)
        self.image = self._answering.image
        self.image_age_s = self._answering.image_age_s
        self.predict_once = self._answering.predict_once
        self.view = self._answering.view
        self.ee_pose = self._ee_pose.read
        self.wait_until_idle = self._answering.wait_until_idle

    # Commands -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Activate: count from zero and answer frames; who stopped or steered the arm keeps it."""
        shared = self._shared
        with shared.lock:
            shared.ledger = Ledger()
            shared.supervisor.begin()
            shared.stage.reset()
            self._streaming.reset()
            self._answering.forget_image()
            shared.is_active = True

    def end(self) -> Tick:
        """Deactivate: when this returns, no twist and no answer leaves any more.

        Returns:
            What must be published last: it stops the arm.
        """
        shared = self._shared
        with shared.lock:
            shared.is_active = False
            shared.activation += 1  # an answer in flight belongs to the past
            last = self._streaming.last_tick(self._ee_pose.read(), shared.clocks.steady_s())
            shared.stage.reset()
            self._answering.drop_waiting()
            return last

    def close(self) -> bool:
        """End the thread; return False when the policy is still busy after a while."""
        self.end()
        return self._answering.close()

    @property
    def is_active(self) -> bool:
        """True between `begin` and `end`."""
        return self._shared.is_active

    @property
    def is_closed(self) -> bool:
        """True once `close` was called: this session answers nothing any more."""
        return self._answering.is_closed

    @property
    def is_moving(self) -> bool:
        """True while some displacement is left to execute, or the last twist was not zero."""
        with self._shared.lock:
            return self._shared.stage.is_moving

    @property
    def ledger(self) -> Ledger:
        """What has passed since activation."""
        return self._shared.ledger

    @property
    def config(self) -> NodeConfig:
        """The parameters in force."""
        return self._shared.config

    def configure(self, config: NodeConfig) -> None:
        """Use new limits and thresholds from now on.

        Raises:
            ConfigurationError: The robot expects other actions; everything stays as it was.
        """
        shared = self._shared
        spec = complete_spec(
            self.policy.action_spec, config.action.overrides(), config.profile.expected()
        )
        with shared.lock:
            shared.config = config
            shared.supervisor.config = config
            self._answering.set_rate(config.timing.policy_rate)
            shared.stage.spec = spec
            shared.stage.configure(config.motion, config.gripper)
            if not config.motion.motion_enabled:
                shared.stage.stop()

    def set_instruction(self, text: str) -> None:
        """Follow another instruction; answers to the old one are dropped."""
        shared = self._shared
        with shared.lock:
            is_same = text == shared.supervisor.instruction
            shared.supervisor.instruct(text)
            if is_same:
                return
            self._answering.drop_waiting()
            if shared.config.operation.on_instruction_change == "restart":
                shared.stage.fade(shared.clocks.steady_s())

    def finish_instruction(self) -> None:
        """Execute what has been answered, and no later answer to this instruction."""
        with self._shared.lock:
            self._shared.supervisor.finish_instruction()
            self._answering.drop_waiting()

    def refuse_instruction(self, why: str) -> None:
        """The operator wanted something that cannot be used: hold until the next instruction."""
        with self._shared.lock:
            self._shared.supervisor.refuse_instruction(why)
            self._answering.drop_waiting()

    def hold(self) -> None:
        """The operator stops the arm: zero from the next tick on."""
        with self._shared.lock:
            self._shared.supervisor.hold()
            self._shared.stage.stop()

    def release(self) -> str:
        """The operator lets the policy move the arm again; return why it cannot, or ""."""
        self.check_controller()
        with self._shared.lock:
            self._shared.supervisor.release()
            self._streaming.teleoperation.forget()
            verdict = self.verdict()
            is_refused = verdict.state is State.FAULT or verdict.reason is Reason.NO_CONTROLLER
            return verdict.detail if is_refused else ""

    def steer(self, twist: np.ndarray, frame: str, stamp: int) -> str:
        """Somebody steers the arm from now until `release`; return why it does not follow, or "".

        Args:
            twist: (6,) m/s and rad/s, axes of `frame`.
            frame: Must be base_frame.
            stamp: When it was sent, nanoseconds of ROS time.
        """
        shared = self._shared
        with shared.lock:
            if not shared.is_active:
                return "the node is not active."
            shared.supervisor.steer()
            if shared.config.operation.output == "none":
                return "output is 'none': steer the process that streams the twist."
            return self._streaming.teleoperation.receive(
                twist,
                frame,
                age_s(stamp, shared.clocks.ros_ns()),
                shared.clocks.steady_s(),
                shared.config.motion.base_frame,
            )

    def switch_deadman(self, is_pressed: bool) -> None:
        """The dead-man switch says that it is held down, or that it is not."""
        with self._shared.lock:
            self._shared.supervisor.switch_deadman(is_pressed, self._shared.clocks.steady_s())

    def check_controller(self) -> None:
        """Look whether somebody follows the command, and nobody else gives one."""
        config = self._shared.config
        is_needed = config.motion.motion_enabled
        missing, rival = self._look_at_controller(config) if is_needed else ("", "")
        with self._shared.lock:
            self._shared.supervisor.controller_checked(missing, rival)

    def reset(self) -> str:
        """Clear a fault, what is known of the camera, and the gripper's memory.

        Returns:
            Why there is a fault again, or "".
        """
        with self._shared.lock:
            self._shared.supervisor.reset()
            self._shared.stage.reset()
            self._streaming.forget_gripper()
            self.check_controller()  # at once: the arm must not move until the next look
            verdict = self.verdict()
            return verdict.detail if verdict.state is State.FAULT else ""

    def fail(self, reason: Reason, detail: str) -> None:
        """Stop until `reset`: something broke outside the policy."""
        with self._shared.lock:
            self._shared.supervisor.fail(reason, detail)
            self._shared.stage.stop()

    def clock_jumped(self) -> None:
        """ROS time jumped: drop what belongs to the old time."""
        with self._shared.lock:
            self._shared.supervisor.clock_jumped()
            self._answering.drop_waiting()
            self._shared.stage.stop()

    def obstacle_to_motion(self, config: NodeConfig) -> str:
        """Why motion cannot be enabled with these parameters, in words; "" when it can."""
        with self._shared.lock:
            verdict = self.verdict()
            if verdict.state is State.FAULT:
                return verdict.detail
            obstacle = self._shared.stage.obstacle()
        if obstacle or not self.is_active:
            return obstacle
        missing, rival = self._look_at_controller(config)
        return rival or missing

    # Output -------------------------------------------------------------------------------------

    def verdict(self) -> Verdict:
        """What the node does now, and why."""
        with self._shared.lock:
            return self._judge(self._ee_pose.read(), self._answering.busy_since_s)

    def tick(self, publish: Callable[[Tick], None]) -> Verdict:
        """Publish what belongs to this moment and return the verdict it rests on.

        `publish` runs under the lock: no twist can slip out after `end` or `hold` has returned.
        """
        shared = self._shared
        with shared.lock:
            now_s, pose = shared.clocks.steady_s(), self._ee_pose.read()
            verdict = self._judge(pose, self._answering.busy_since_s)
            if not shared.is_active:
                return verdict
            shared.ledger.commands.mark(now_s)
            publish(self._streaming.tick(verdict, pose, now_s))
            return verdict

    def report(self) -> SafetyReport:
        """What limits and stops have changed since activation."""
        with self._shared.lock:
            return self._shared.stage.report(self._shared.clocks.steady_s())

    def _judge(self, pose: EndEffectorPose | None, busy_since_s: float | None) -> Verdict:
        shared = self._shared
        now_s = shared.clocks.steady_s()
        shared.supervisor.ros_time(shared.clocks.ros_ns(), now_s)
        verdict = shared.supervisor.assess(now_s, busy_since_s)
        if verdict.reason is Reason.TELEOPERATION:
            return self._steering(verdict, pose)
        if verdict.state is not State.RUNNING:
            return verdict
        if not shared.config.motion.motion_enabled:
            return Verdict(State.RUNNING, Reason.OK, "dry run: motion_enabled is false.")
        obstacle = shared.stage.obstacle()
        if obstacle:
            return Verdict(State.HOLD, Reason.MOTION_UNKNOWN, obstacle)
        lost = self._pose_obstacle(pose)
        if lost:
            return Verdict(State.HOLD, Reason.TF_UNAVAILABLE, lost)
        if self._streaming.is_at_edge(now_s):
            return Verdict(
                State.RUNNING,
                Reason.WORKSPACE,
                "the arm is at the edge of its workspace (limits.workspace_min and _max): what "
                "points out of it is removed.",
            )
        return verdict

    def _steering(self, verdict: Verdict, pose: EndEffectorPose | None) -> Verdict:
        """The verdict while somebody steers, with why the arm does not follow."""
        config = self._shared.config
        why = self._streaming.teleoperation.refusal
        if not config.motion.motion_enabled:
            why = "motion_enabled is false."
        elif not why and (config.motion.has_workspace or config.operation.output == "pose"):
            why = pose_problem(pose)
        return (
            replace(verdict, detail=f"{verdict.detail} It does not follow: {why}")
            if why
            else (verdict)
        )

    def _pose_obstacle(self, pose: EndEffectorPose | None) -> str:
        """Why the arm must not move on this pose, in words; "" when it may."""
        lost = self._shared.stage.pose_obstacle(pose)
        if not lost and self._shared.config.operation.output == "pose":
            problem = pose_problem(pose)
            lost = f"{problem}; it is needed because output is 'pose'." if problem else ""
        why = self._ee_pose.problem if pose is None else ""
        return f"{why}: {lost}" if lost and why else lost
