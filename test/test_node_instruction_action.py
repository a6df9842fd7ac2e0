"""~/run_instruction over real DDS: begins, counts, ends, and always leaves the arm at rest."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

from action_msgs.msg import GoalStatus
from node_cell import MOVING, NAME, Cell
from openvla_ros.action import ExecuteInstruction
from rclpy.action import ActionClient
from test_instruction_entrances import BAD

from openvla_ros.control.states import Reason, State
from openvla_ros.ros.instruction_action import HELD_LIMIT_S

pytestmark = pytest.mark.ros

Goal, Result = ExecuteInstruction.Goal, ExecuteInstruction.Result
CUP = "pick up the cup"


class Tree:
    """A behaviour tree's side of the action."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.feedback: list[Any] = []
        self._client = ActionClient(
            cell.peer, ExecuteInstruction, f"{NAME}/run_instruction", callback_group=cell._group
        )
        cell.wait(self._client.server_is_ready, "the action server")

    def send(self, text: str = CUP, max_duration: float = 600.0, max_steps: int = 0) -> Any:
        """Return the goal handle; `accepted` says whether it began."""
        goal = Goal(instruction=text, max_duration=max_duration, max_steps=max_steps)
        future = self._client.send_goal_async(
            goal, feedback_callback=lambda message: self.feedback.append(message.feedback)
        )
        self.cell.wait(future.done, "an answer to the goal")
        return future.result()

    def begin(self, **goal: Any) -> Any:
        """Send a goal and wait until the node follows it."""
        handle = self.send(**goal)
        assert handle.accepted
        self.cell.wait(lambda: self.cell.node._inputs.instruction == CUP, "the instruction")
        return handle

    def end(self, handle: Any) -> tuple[int, Result]:
        """Return status and result, once the instruction is empty."""
        future = handle.get_result_async()
        self.cell.wait(future.done, "the result")
        answer = future.result()
        return answer.status, answer.result


def assert_idle(cell: Cell) -> None:
    assert cell.node._inputs.instruction == ""
    cell.wait_status(State.IDLE, Reason.NO_INSTRUCTION)
    cell.wait_zero()


def test_a_goal_ends_after_its_steps_and_the_arm_stops() -> None:
    with Cell(**MOVING) as cell:
        tree = Tree(cell.start(""))
        handle = tree.begin(max_steps=2)
        for _ in range(2):
            assert cell.answer().executed
        status, result = tree.end(handle)
        assert (status, result.reason) == (GoalStatus.STATUS_SUCCEEDED, Result.MAX_STEPS)
        assert result.success and not result.dry_run
        assert result.steps == 2
        assert_idle(cell)


def test_the_last_step_is_executed_whole_and_no_other() -> None:
    """It used to be easy to cut: ending the goal with its last answer takes the motion away."""
    with Cell(**MOVING, mock_action=[0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]) as cell:
        tree = Tree(cell.start(""))
        handle = tree.begin(max_steps=1)
        cell.answer()
        cell.drop()  # while the step is executed: no second answer
        _, result = tree.end(handle)
        assert result.steps == 1
        assert len([a for a in cell.actions if a.executed]) == 1
        cell.wait_zero()
        moved = sum(t.twist.linear.x for t in cell.twists) / 50.0  # stream_rate
        assert moved == pytest.approx(0.01, rel=0.1)


def test_a_goal_ends_with_its_time_by_the_steady_clock() -> None:
    with Cell(**MOVING) as cell:
        tree = Tree(cell.start(""))
        handle = tree.begin(max_duration=300.0)
        cell.answer()
        cell.steady.jump(301.0)
        status, result = tree.end(handle)
        assert (status, result.reason) == (GoalStatus.STATUS_SUCCEEDED, Result.MAX_DURATION)
        assert 301.0 <= result.duration < 400.0
        assert_idle(cell)


def test_time_without_a_single_step_is_no_success() -> None:
    with Cell(**MOVING) as cell:
        tree = Tree(cell.start(""))
        handle = tree.begin(max_duration=300.0)
        cell.steady.jump(301.0)
        status, result = tree.end(handle)
        assert (status, result.reason) == (GoalStatus.STATUS_ABORTED, Result.NO_STEPS)
        assert not result.success and "NO_IMAGE" not in result.detail
        assert "no image" in result.detail


def test_cancel_stops_the_arm_and_leaves_room_for_the_next_goal() -> None:
    with Cell(**MOVING, **{"limits.linear_speed": 0.005}) as cell:
        tree = Tree(cell.start(""))
        handle = tree.begin()
        cell.answer()
        cell.wait_moving()
        future = handle.cancel_goal_async()
        cell.wait(future.done, "an answer to the cancel")
        following = tree.begin()  # at once: the place is free when the cancel is answered
        status, result = tree.end(handle)
        assert (status, result.reason) == (GoalStatus.STATUS_CANCELED, Result.CANCELED)
        assert not result.success
        cell.answer()
        cell.wait_moving()
        cell.wait(following.cancel_goal_async().done, "an answer to the cancel")
        cell.wait_zero()


def test_a_goal_that_fails_after_one_that_succeeds_leaves_the_node_well() -> None:
    with Cell(**MOVING) as cell:
        tree = Tree(cell.start(""))
        first = tree.begin(max_steps=1)
        cell.answer()
        assert tree.end(first)[1].success
        second = tree.begin()
        cell.instruct("something else")
        assert tree.end(second)[0] == GoalStatus.STATUS_ABORTED
        cell.answer()
        assert cell.node.verdict().state is State.RUNNING


def test_a_dry_run_counts_steps_and_says_that_nothing_moved() -> None:
    with Cell() as cell:
        tree = Tree(cell.start(""))
        handle = tree.begin(max_steps=1)
        assert not cell.answer().executed
        _, result = tree.end(handle)
        assert result.success and result.dry_run and result.steps == 1


@pytest.mark.parametrize(
    ("goal", "why"),
    [
        ({"text": ""}, "its instruction is empty"),
        ({"text": "pick\nup"}, "at position 4"),
        ({"max_duration": 0.0}, "max_duration is 0.0 s"),
        ({"max_duration": float("nan")}, "max_duration is nan s"),
        ({"max_duration": 4000.0}, "max_duration is 4000.0 s"),
        *(({"text": text}, "instruction") for text in BAD.values()),
    ],
)
def test_an_unusable_goal_is_refused_with_the_reason(
    goal: dict[str, Any], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with Cell(**MOVING) as cell:
        tree = Tree(cell.start(""))
        assert not tree.send(**goal).accepted
        assert why in capfd.readouterr().err
        assert cell.node._inputs.instruction == ""


def test_a_node_that_is_not_active_or_was_stopped_or_is_in_fault_refuses() -> None:
    with Cell(**MOVING) as cell:
        tree = Tree(cell)
        assert not tree.send().accepted  # unconfigured
        cell.start("")
        cell.trigger("stop")
        assert not tree.send().accepted
        cell.trigger("start")
        cell.node.stop_for("a test")
        assert not tree.send().accepted
        cell.trigger("reset")
        assert tree.send().accepted


def test_a_second_goal_is_refused_while_one_runs() -> None:
    with Cell(**MOVING) as cell:
        tree = Tree(cell.start(""))
        tree.begin()
        assert not tree.send("put it down").accepted
        assert cell.node._inputs.instruction == CUP


def test_another_instruction_on_the_topic_ends_the_goal_and_is_followed() -> None:
    with Cell(**MOVING) as cell:
        tree = Tree(cell.start(""))
        handle = tree.begin()
        cell.instruct("put it down")
        status, result = tree.end(handle)
        assert (status, result.reason) == (GoalStatus.STATUS_ABORTED, Result.INSTRUCTION_CHANGED)
        assert "put it down" in result.detail
        assert cell.answer().instruction == "put it down"


@pytest.mark.parametrize(
    ("disturb", "reason"),
    [
        (lambda cell: cell.trigger("stop"), Result.STOPPED),
        (lambda cell: cell.node.stop_for("a test"), Result.FAULT),
        (lambda cell: cell.change("deactivate"), Result.INACTIVE),
    ],
    ids=["stop", "fault", "deactivate"],
)
def test_whatever_takes_the_arm_ends_the_goal_and_its_instruction(
    disturb: Any, reason: int
) -> None:
    with Cell(**MOVING) as cell:
        tree = Tree(cell.start(""))
        handle = tree.begin()
        cell.answer()
        disturb(cell)
        status, result = tree.end(handle)
        assert (status, result.reason) == (GoalStatus.STATUS_ABORTED, reason)
        assert cell.node._inputs.instruction == ""  # nothing goes on by itself after ~/start


def test_a_camera_that_stays_away_ends_the_goal_and_a_short_gap_does_not() -> None:
    with Cell(**MOVING) as cell:
        tree = Tree(cell.start(""))
        handle = tree.begin()
        cell.answer()
        cell.steady.jump(5.1)  # image_timeout of the cell
        cell.wait_status(State.HOLD, Reason.STALE_IMAGE)
        cell.wait(
            lambda: tree.feedback and tree.feedback[-1].reason == Reason.STALE_IMAGE, "feedback"
        )
        assert cell.node._inputs.instruction == CUP
        cell.steady.jump(HELD_LIMIT_S)
        status, result = tree.end(handle)
        assert (status, result.reason) == (GoalStatus.STATUS_ABORTED, Result.HELD)
        assert "STALE_IMAGE" in result.detail


def test_feedback_tells_steps_time_and_state() -> None:
    with Cell(**MOVING) as cell:
        tree = Tree(cell.start(""))
        tree.begin()
        cell.answer()
        last = cell.wait(
            lambda: next((f for f in tree.feedback if f.steps == 1), None), "feedback of a step"
        )
        assert last.state == State.RUNNING and last.elapsed > 0.0
        assert 0.0 <= last.latency < 60.0


def test_stop_is_answered_while_a_goal_runs() -> None:
    """A goal occupies no thread of the executor, however many callbacks wait."""
    with Cell(**MOVING) as cell:
        tree = Tree(cell.start(""))
        tree.begin()
        threads = cell._executor._executor._max_workers
        for _ in range(threads + 1):
            assert cell.trigger("start").success
        assert cell.trigger("stop").success
