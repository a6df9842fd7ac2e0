"""~/run_instruction: one instruction for a while, as an action that behaviour trees can call.

No thread waits for a goal: an executor thread inside a goal would be missing for ~/stop, and a
coroutine that waits is polled by rclpy's multi-threaded executor ever more slowly (rclpy #1452). So
a goal is a record here; a timer watches it, and only its end is handed to rclpy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from openvla_ros.action import ExecuteInstruction
from openvla_ros.control.states import Drop, Reason, State
from openvla_ros.control.supervisor import Verdict
from openvla_ros.errors import InstructionError
from openvla_ros.messages import check_instruction
from openvla_ros.ros.frames import Answer
from openvla_ros.ros.guards import guarded_callback
from openvla_ros.ros.session import Session

Goal, Result = ExecuteInstruction.Goal, ExecuteInstruction.Result
WATCH_PERIOD_S = 0.05
FEEDBACK_PERIOD_S = 0.5
HELD_LIMIT_S = 5.0  # a camera that comes back within this time does not end a goal
LAST_ACTION_S = 2.0  # longest wait for the last of max_steps actions to be executed
MIN_DURATION_S, MAX_DURATION_S = 0.1, 3600.0
SUCCESSES = (Result.MAX_STEPS, Result.MAX_DURATION)

#: A person has taken the arm: the goal ends at once, and none begins.
TAKEN = (Reason.OPERATOR, Reason.DEADMAN, Reason.TELEOPERATION)


@dataclass
class Run:
    """One goal from its acceptance to its end.

    Attributes:
        handle: rclpy's handle.
        begin_s: Steady time of acceptance.
        steps: Actions executed; in a dry run, those that would have been.
        held_since_s: Steady time at which the node stopped answering frames; None while it does.
        last_step_s: Steady time of the last of max_steps; None before.
        fed_back_s: Steady time of the last feedback.
        result: Set when the goal has ended.
    """

    handle: Any
    begin_s: float
    steps: int = 0
    dry_run: bool = False
    held_since_s: float | None = None
    last_step_s: float | None = None
    fed_back_s: float = float("-inf")
    result: Result | None = None

    @property
    def goal(self) -> Goal:
        """What was asked for."""
        return self.handle.request

    def end(self, reason: int, detail: str, now_s: float) -> None:
        """Fill in the result."""
        self.result = Result(
            success=reason in SUCCESSES,
            reason=reason,
            detail=detail,
            steps=self.steps,
            duration=now_s - self.begin_s,
            dry_run=self.dry_run,
        )


class _ActionServer(ActionServer):
    """Begins goals at once, and runs the callback that ends them only when told to."""

    def notify_execute(self, goal_handle: Any, execute_callback: Callable | None) -> None:
        """Do nothing: rclpy calls this when the goal begins."""

    def finish(self, goal_handle: Any, result_of: Callable[[Any], Result]) -> None:
        """Let `result_of` end the goal, in a task of the executor."""
        super().notify_execute(goal_handle, result_of)


class InstructionAction:
    """The action server ~/run_instruction of a node."""

    def __init__(
        self,
        node: Node,
        session: Callable[[], Session | None],
        *,
        follow: Callable[[str], None],
        followed: Callable[[], str],
        steady_s: Callable[[], float],
    ) -> None:
        """Offer the action.

        Args:
            node: The node.
            session: Returns the current session, or None.
            follow: Sets the node's instruction; "" stops the arm.
            followed: Returns the node's instruction.
            steady_s: Steady seconds.
        """
        self._node = node
        self._session = session
        self._follow = follow
        self._followed = followed
        self._steady_s = steady_s
        self._lock = threading.Lock()  # never held while the session is asked: it has a lock too
        self._run: Run | None = None
        self._ended: list[Run] = []
        # One group: between the cancel callback and rclpy's own book-keeping the watch must wait.
        group = MutuallyExclusiveCallbackGroup()
        self._server = _ActionServer(
            node,
            ExecuteInstruction,
            "~/run_instruction",
            _never,
            callback_group=group,
            goal_callback=self._judge,
            handle_accepted_callback=self._begin,
            cancel_callback=self._cancel,
        )
        self._timer = node.create_timer(
            WATCH_PERIOD_S,
            guarded_callback(node, self._watch),
            group,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        self._timer.cancel()  # runs only while there is a goal

    def answer(self, answer: Answer) -> None:
        """Count an answer as a step. Called under the session's lock: returns at once."""
        if answer.drop not in (Drop.NONE, Drop.DRY_RUN):
            return
        with self._lock:
            run = self._run
            if run is None or answer.frame.instruction != run.goal.instruction:
                return
            run.steps += 1
            run.dry_run |= answer.drop is Drop.DRY_RUN
            run.fed_back_s = float("-inf")  # the next watch tells the client
            is_last = run.steps == run.goal.max_steps
            if is_last:
                run.last_step_s = self._steady_s()
        session = self._session()
        if is_last and session is not None:
            session.finish_instruction()

    def destroy(self) -> None:
        """Take the action off the graph; rclpy's destroy_node leaves that to garbage collection."""
        self._server.destroy()

    # Called by rclpy ------------------------------------------------------------------------------

    def _judge(self, goal: Goal) -> GoalResponse:
        obstacle = self._obstacle(goal)
        if obstacle:  # the protocol carries no text back to the client
            self._node.get_logger().warning(f"goal of ~/run_instruction refused: {obstacle}")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _obstacle(self, goal: Goal) -> str:
        """Why a goal cannot begin, in words; "" when it can."""
        if self._run is not None:
            return f"'{self._run.goal.instruction}' is being followed; cancel that goal first."
        if not MIN_DURATION_S <= goal.max_duration <= MAX_DURATION_S:
            return (
                f"max_duration is {goal.max_duration} s; it must be within "
                f"{MIN_DURATION_S:g} … {MAX_DURATION_S:g} s."
            )
        try:
            if not check_instruction(goal.instruction):
                return "its instruction is empty."
        except InstructionError as error:
            return str(error)
        session = self._session()
        if session is None or not session.is_active:
            return "the node is not active: configure and activate it first."
        verdict = session.verdict()
        if verdict.state is State.FAULT or verdict.reason in TAKEN:
            return f"the node is in {verdict.state.name} {verdict.reason.name}: {verdict.detail}"
        return ""

    def _begin(self, handle: Any) -> None:
        session = self._session()
        is_dry = session is not None and not session.config.motion.motion_enabled
        handle.execute()
        with self._lock:
            self._run = Run(handle, self._steady_s(), dry_run=is_dry)
        self._node.get_logger().info(f"~/run_instruction begins: '{handle.request.instruction}'")
        self._follow(handle.request.instruction)
        self._timer.reset()

    def _cancel(self, handle: Any) -> CancelResponse:
        run = self._run
        if run is None or run.handle.goal_id != handle.goal_id:
            return CancelResponse.REJECT  # it has just ended by itself
        self._end(run, Result.CANCELED, "the client cancelled.")
        return CancelResponse.ACCEPT

    @staticmethod
    def _result_of(run: Run, handle: Any) -> Result:
        assert run.result is not None
        if handle.is_cancel_requested:
            handle.canceled()
        elif run.result.success:
            handle.succeed()
        else:
            handle.abort()
        return run.result

    # The watch ------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while self._ended:
            ended = self._ended.pop()
            self._server.finish(ended.handle, partial(self._result_of, ended))
        run = self._run
        if run is None:
            self._timer.cancel()
            return
        session, now_s = self._session(), self._steady_s()
        if session is None or not session.is_active:
            self._end(run, Result.INACTIVE, "the node was deactivated.")
            return
        verdict = session.verdict()
        ending = self._ending(run, session, verdict, now_s)
        if ending is not None:
            self._end(run, *ending)
        elif now_s - run.fed_back_s >= FEEDBACK_PERIOD_S:
            run.fed_back_s = now_s
            run.handle.publish_feedback(_feedback(run, session, verdict, now_s))

    def _ending(
        self, run: Run, session: Session, verdict: Verdict, now_s: float
    ) -> tuple[int, str] | None:
        """Why the goal ends now, and in words; None when it goes on."""
        goal = run.goal
        if run.last_step_s is not None:
            late = now_s - run.last_step_s > LAST_ACTION_S
            if late or not session.is_moving:
                return Result.MAX_STEPS, f"{run.steps} actions were executed."
        if self._followed() != goal.instruction:
            return Result.INSTRUCTION_CHANGED, f"now followed: '{self._followed()}'"
        if verdict.state is State.FAULT:
            return Result.FAULT, f"{verdict.reason.name}: {verdict.detail}"
        if verdict.reason in TAKEN:
            return Result.STOPPED, f"{verdict.reason.name}: {verdict.detail}"
        run.dry_run |= not session.config.motion.motion_enabled
        if now_s - run.begin_s >= goal.max_duration:
            if run.steps:
                return Result.MAX_DURATION, f"{goal.max_duration:g} s are over."
            return (
                Result.NO_STEPS,
                f"no action in {goal.max_duration:g} s. {verdict.detail}".strip(),
            )
        if verdict.state is State.RUNNING:
            run.held_since_s = None
            return None
        run.held_since_s = now_s if run.held_since_s is None else run.held_since_s
        if now_s - run.held_since_s < HELD_LIMIT_S:
            return None
        name = f"{verdict.state.name} {verdict.reason.name}"
        return Result.HELD, f"{name} for {HELD_LIMIT_S:g} s: {verdict.detail}"

    def _end(self, run: Run, reason: int, detail: str) -> None:
        """Stop the arm and free the place; the next watch tells the client."""
        with self._lock:
            if run.result is not None:
                return
            run.end(reason, detail, self._steady_s())
            self._run = None
        if self._followed() == run.goal.instruction:
            self._follow("")
        self._ended.append(run)
        log = self._node.get_logger()
        text = f"~/run_instruction ends after {run.steps} steps: {detail}"
        # Two calls: rclpy refuses another severity from a line that has logged before.
        if run.result.success or reason == Result.CANCELED:
            log.info(text)
        else:
            log.warning(text)


def _never(handle: Any) -> Result:
    raise AssertionError("rclpy runs a goal although `_ActionServer` does not let it")


def _feedback(
    run: Run, session: Session, verdict: Verdict, now_s: float
) -> ExecuteInstruction.Feedback:
    return ExecuteInstruction.Feedback(
        steps=run.steps,
        elapsed=now_s - run.begin_s,
        latency=session.ledger.last_latency_s,
        state=int(verdict.state),
        reason=int(verdict.reason),
        detail=verdict.detail,
    )
