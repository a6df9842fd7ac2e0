"""openvla_node: camera and instruction in, actions, Cartesian twist and gripper command out.

A lifecycle node that moves messages to a `Session` and back. It decides nothing about motion and
touches no pixel. Threads: see `main` in process.py; the policy has a thread of its own.
"""

from __future__ import annotations

import gc
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from openvla_ros.config import NodeConfig
from openvla_ros.config.policy import ModelConfig
from openvla_ros.control.states import Reason, State
from openvla_ros.control.supervisor import Verdict
from openvla_ros.errors import ConfigurationError, OpenVLAError
from openvla_ros.messages import check_instruction
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.ros.controller_watch import ControllerWatch
from openvla_ros.ros.debug_views import DebugViews
from openvla_ros.ros.diagnostics import Diagnostics
from openvla_ros.ros.ee_pose import EndEffector
from openvla_ros.ros.frames import Clocks
from openvla_ros.ros.gripper_connection import GripperConnection
from openvla_ros.ros.guards import (
    guarded_callback,
    guarded_transition,
    refuse_wrong_transitions,
)
from openvla_ros.ros.inference import empty_gpu_cache, is_out_of_memory
from openvla_ros.ros.inputs import Inputs
from openvla_ros.ros.instruction_action import InstructionAction
from openvla_ros.ros.opening import open_session
from openvla_ros.ros.operator_inputs import OperatorInputs
from openvla_ros.ros.parameters import changed_config, declare_parameters, read_config
from openvla_ros.ros.policies import load_policy
from openvla_ros.ros.process import run
from openvla_ros.ros.publishers import Publishers
from openvla_ros.ros.services import OperatorServices
from openvla_ros.ros.session import Session
from openvla_ros.types import Policy

STATUS_PERIOD_S = 0.5
LAST_ZEROS = 5  # on deactivate: one could be lost on its way

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class OpenVLANode(LifecycleNodeMixin, Node):
    """The node; its interface is described in the README and in config/openvla.yaml.

    Attributes:
        fatal: Why the process must end, or "".
    """

    def __init__(
        self,
        *,
        steady_clock: Callable[[], float] = time.monotonic,
        load: Callable[[ModelConfig], Policy] | None = None,
        streams_in_ros_time: bool = False,
        **node_arguments: Any,
    ) -> None:
        """Create the node, unconfigured.

        Args:
            steady_clock: Seconds; time-outs and streaming use it, so tests can stop time.
            load: Model parameters → policy; None = the policy that they name.
            streams_in_ros_time: For a simulation that is faster or slower than life: its /clock
                paces the twist too.
            node_arguments: For `rclpy.node.Node`, e.g. `parameter_overrides`.
        """
        Node.__init__(self, "openvla_node", **node_arguments)
        # A group of its own: get_state must be answered while change_state loads a model.
        self._slow_services = ReentrantCallbackGroup()
        LifecycleNodeMixin.__init__(
            self, enable_communication_interface=True, callback_group=self._slow_services
        )
        refuse_wrong_transitions(self)
        self.fatal = ""
        self._steady_s = steady_clock
        self._load = load or partial(load_policy, log=self.get_logger().info)
        self._session: Session | None = None
        self._stopping = threading.Lock()
        self._config = NodeConfig()
        self._ready = Verdict(State.READY)
        self._resting = Verdict(State.UNCONFIGURED)  # what the status says while inactive
        declare_parameters(self)
        self._out = Publishers(self, lambda: self._config)
        self._inputs = Inputs(self, lambda: self._session, self._announce)
        # Steady: a bag that stops playing stops ROS time, and must not stop the zeros.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer_clock = self.get_clock() if streams_in_ros_time else steady
        self._create_timers()
        self._attach()
        try:
            self._inputs.instruction = check_instruction(self.get_parameter("instruction").value)
            self._config = read_config(self)
        except OpenVLAError as error:  # configure will say it again, and fail
            self.get_logger().error(str(error))
        self.add_on_set_parameters_callback(self._on_parameters)
        self._announce(self._inputs.instruction)

    def _attach(self) -> None:
        """Add what works beside the node: everything here sees it through the session."""
        OperatorServices(self, lambda: self._session, self._slow_services)
        OperatorInputs(self, lambda: self._session)
        self.ee_pose = EndEffector(self, self._steady_s)
        self._controller = ControllerWatch(self, lambda: self._session, self._timer_clock)
        self._gripper = GripperConnection(self, self._steady_s)
        self._out.gripper_listeners.append(lambda command: self._gripper.command(command.opening))
        self._instruction_action = InstructionAction(
            self,
            lambda: self._session,
            follow=self._inputs.set_instruction,
            followed=lambda: self._inputs.instruction,
            steady_s=self._steady_s,
        )
        self._debug_views = DebugViews(
            self, lambda: self._session, base_frame=lambda: self._config.motion.base_frame
        )
        self._out.answer_listeners += [self._instruction_action.answer, self._debug_views.answer]
        Diagnostics(
            self,
            lambda: self._session,
            verdict=self.verdict,
            config=lambda: self._config,
            steady_s=self._steady_s,
            gripper_trouble=lambda: self._gripper.trouble,
        )

    def _create_timers(self) -> None:
        self._stream_timer: Any = None
        self.create_timer(
            STATUS_PERIOD_S,
            guarded_callback(self, self._publish_status),
            MutuallyExclusiveCallbackGroup(),
            clock=self._timer_clock,
        )

    # Lifecycle ----------------------------------------------------------------------------------

    @guarded_transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and test the policy. FAILURE, with the reason in the status, leaves it retryable."""
        self._rest(Verdict(State.LOADING, Reason.OK, "loading the policy."))
        try:
            self._config = read_config(self)
            self._gripper.connect(self._config.gripper)
            self.ee_pose.use(self._config)
            self._session, warning = open_session(
                self._config,
                load=self._load,
                clocks=Clocks(lambda: self.get_clock().now().nanoseconds, self._steady_s),
                on_answer=self._out.answer,
                log=self.get_logger(),
                ee_pose=self.ee_pose,
                look_at_controller=self._controller.look,
            )
        except Exception as error:
            if not isinstance(error, OpenVLAError):
                self.get_logger().error(traceback.format_exc())
            self._free()
            self._rest(Verdict(State.UNCONFIGURED, _reason_of(error), str(error) or repr(error)))
            return FAILURE
        self._inputs.subscribe(self._config)
        self._out.use_output(self._config.operation.output)
        self._ready = Verdict(State.READY, Reason.OK, warning)
        self._rest(self._ready)
        return super().on_configure(state)

    @guarded_transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Answer frames and stream the twist."""
        session = self._session
        if session is None or session.is_closed:
            self.get_logger().error("the policy is being freed: clean up again, then configure.")
            return FAILURE
        obstacle = self._controller.obstacle(self._config)
        if obstacle is not None:
            self._rest(obstacle)
            return FAILURE
        result = super().on_activate(state)
        if result is not SUCCESS:
            return result
        self._resting = self._ready
        session.begin()
        session.set_instruction(self._inputs.instruction)
        self._stream_timer = self.create_timer(
            1.0 / self._config.motion.stream_rate,
            guarded_callback(self, self._stream),
            # A group of its own each time: if a timer is destroyed while the executor takes it,
            # some rclpy versions leave its group blocked for ever.
            MutuallyExclusiveCallbackGroup(),
            clock=self._timer_clock,
        )
        self._publish_status()
        return SUCCESS

    @guarded_transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop: the last thing on the wire is a zero twist, or a pose where the arm is."""
        self.stop_streaming()
        if self._session is not None and not self._session.wait_until_idle():
            self.get_logger().warning("the policy is still busy; its answer will be dropped.")
        result = super().on_deactivate(state)
        self._publish_status()
        return result

    @guarded_transition
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the policy and its memory; FAILURE while it is still busy."""
        if not self._free():
            self.get_logger().error("the policy is still busy; clean up again later.")
            return FAILURE
        self._rest(Verdict(State.UNCONFIGURED))
        return super().on_cleanup(state)

    @guarded_transition
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free whatever state the node is in."""
        self.stop_streaming()
        self._free()
        self._rest(Verdict(State.UNCONFIGURED, Reason.OK, "shut down."))
        return super().on_shutdown(state)

    @guarded_transition
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free, so that configure can be tried again."""
        self.stop_streaming()
        self._free()
        self._rest(Verdict(State.UNCONFIGURED, Reason.MODEL_ERROR, "a transition failed: see log."))
        return SUCCESS

    def stop_streaming(self) -> None:
        """End motion: the last twist is zero, or the last pose is where the arm is.

        Does nothing when inactive.
        """
        with self._stopping:  # who comes second waits until the zeros of the first are out
            session = self._session
            if session is None or not session.is_active:
                return
            self.destroy_timer(self._stream_timer)
            last = session.end()
            self._publish_status()  # with output none, what stops the process that streams
            for _ in range(LAST_ZEROS):
                self._out.tick(last)
                time.sleep(1.0 / self._config.motion.stream_rate)
            self._out.wait_for_last_command()

    def _free(self) -> bool:
        """Drop the policy; return False when it is still computing."""
        self._gripper.close()
        if self._session is not None:
            if not self._session.close():
                return False
            self._session = None
            gc.collect()  # the model sits in reference cycles; the GPU must be empty for the next
            empty_gpu_cache()
        return True

    def destroy_node(self) -> None:
        """Destroy the node, and the lifecycle services too.

        rclpy leaves those to the garbage collector: until it comes, a dead node still offers them,
        and whoever looks for the services of the next node of that name does not find them.
        """
        self._debug_views.close()
        self._instruction_action.destroy()
        super().destroy_node()
        destroy = getattr(self._state_machine, "destroy_when_not_in_use", None)
        if destroy is not None:
            destroy()

    @property
    def is_policy_stuck(self) -> bool:
        """True when a thread still computes, so that the interpreter could not end by itself."""
        return self._session is not None or self._resting.state is State.LOADING

    def stop_for(self, detail: str) -> None:
        """Stop the arm until ~/reset, because something broke."""
        if self._session is not None:
            self._session.fail(Reason.MODEL_ERROR, detail)

    # Parameters and output ------------------------------------------------------------------------

    def _on_parameters(self, changes: list[RosParameter]) -> SetParametersResult:
        try:
            is_unconfigured = self._resting.state is State.UNCONFIGURED
            config = changed_config(self, changes, is_unconfigured=is_unconfigured)
            texts = [check_instruction(c.value) for c in changes if c.name == "instruction"]
            if config is not None:
                self._use(config)
            for text in texts:
                self._inputs.set_instruction(text)
        except OpenVLAError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _use(self, config: NodeConfig) -> None:
        session = self._session
        if session is not None:
            if config.motion.motion_enabled and not self._config.motion.motion_enabled:
                obstacle = session.obstacle_to_motion(config)
                if obstacle:
                    raise ConfigurationError(f"motion stays disabled: {obstacle}")
            session.configure(config)
            if isinstance(session.policy, MockPolicy):
                session.policy.fault = config.model.mock_fault
        self._config = config

    def _stream(self) -> None:
        session = self._session
        if session is None or not session.is_active:
            return
        verdict = session.tick(self._out.tick)
        if verdict.reason is Reason.MODEL_HANG:
            self.fatal = verdict.detail
        if self._out.is_news(verdict):
            self._publish_status()

    def _announce(self, instruction: str) -> None:
        self._out.instruction(instruction)
        self._publish_status()

    def _rest(self, verdict: Verdict) -> None:
        self._resting = verdict
        self._publish_status()

    def _publish_status(self) -> None:
        self._out.status(self.verdict(), self._session, self._inputs.instruction, self._steady_s())

    def verdict(self) -> Verdict:
        """What the node does now, and why; active or not."""
        session = self._session
        is_active = session is not None and session.is_active
        return session.verdict() if is_active else self._resting


def _reason_of(error: Exception) -> Reason:
    if isinstance(error, ConfigurationError):
        return Reason.BAD_PARAMETER
    return Reason.GPU_OOM if is_out_of_memory(error) else Reason.MODEL_ERROR


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT, SIGTERM or SIGHUP; return the exit code."""
    return run(OpenVLANode, args)


if __name__ == "__main__":
    raise SystemExit(main())
