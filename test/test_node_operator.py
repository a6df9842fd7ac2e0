"""What people do to a moving arm: let go of the switch, steer it by hand, say something else."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

from geometry_msgs.msg import TwistStamped
from node_cell import MOVING, NAME, Cell, GatedPolicy, is_zero
from openvla_ros.msg import VLAAction
from std_msgs.msg import Bool, String

from openvla_ros.control.states import Reason, State

pytestmark = pytest.mark.ros

SLOW_STEP = {"limits.linear_speed": 0.005}  # a step of 10 mm lasts 2 s: the arm moves mid-test
ENABLE, TELEOP = f"{NAME}/enable", f"{NAME}/teleop_twist"


# The dead-man switch ----------------------------------------------------------------------------


@pytest.fixture
def held() -> Iterator[Cell]:
    """A cell whose arm moves while the switch is held; its time-out is longer than any hiccup."""
    with Cell(**MOVING, **SLOW_STEP, deadman_required=True, deadman_timeout=2.0) as cell:
        cell.start()
        assert cell.answer().drop_reason == VLAAction.HOLD, "nobody holds the switch yet"
        assert "~/enable" in cell.wait_status(State.HOLD, Reason.DEADMAN).detail
        press(cell)
        assert cell.answer().executed
        cell.wait_moving()
        yield cell


def press(cell: Cell) -> None:
    cell.publish(ENABLE, Bool(data=True))
    cell.wait_status(State.RUNNING, Reason.OK)


def test_a_released_switch_is_zero_at_once_and_pressed_again_the_arm_goes_on(held: Cell) -> None:
    held.publish(ENABLE, Bool(data=False))
    held.wait_status(State.HOLD, Reason.DEADMAN)
    last_moving = [not is_zero(t) for t in held.twists][::-1].index(True)
    held.wait_zero()
    speeds = [t.twist.linear.x for t in held.twists if not is_zero(t)]
    assert speeds[-1] == pytest.approx(max(speeds)), f"ramped down, {last_moving} ticks ago"
    press(held)
    assert held.answer().executed
    held.wait_moving()


def test_a_silent_switch_is_a_released_one(held: Cell) -> None:
    held.steady.jump(2.1)
    held.wait_zero()
    assert "deadman_timeout" in held.wait_status(State.HOLD, Reason.DEADMAN).detail


def test_a_dry_run_needs_no_switch() -> None:
    with Cell(deadman_required=True) as cell:
        cell.start()
        assert cell.answer().drop_reason == VLAAction.DRY_RUN


# Teleoperation ----------------------------------------------------------------------------------


@pytest.fixture
def moving() -> Iterator[Cell]:
    """A cell whose arm moves along x."""
    with Cell(**MOVING, **SLOW_STEP) as cell:
        cell.start()
        assert cell.answer().executed
        cell.wait_moving()
        yield cell


def up(cell: Cell, speed: float = 0.004, frame: str = "base_link") -> TwistStamped:
    """A twist along z, stamped now."""
    message = TwistStamped()
    message.header.frame_id = frame
    message.header.stamp = cell.node.get_clock().now().to_msg()
    message.twist.linear.z = speed
    return message


def test_who_steers_takes_over_until_start(moving: Cell) -> None:
    with moving.repeated(TwistStamped, TELEOP, lambda: up(moving)):
        moving.wait_status(State.HOLD, Reason.TELEOPERATION)
        moving.wait(lambda: moving.twists[-1].twist.linear.z == 0.004, "the steered twist")
        assert moving.twists[-1].twist.linear.x == 0.0, "what was left of the action is dropped"
        assert moving.answer().drop_reason == VLAAction.HOLD
    moving.wait_zero()
    moving.wait_status(State.HOLD, Reason.TELEOPERATION)
    assert not moving.answer().executed, "the policy waits for ~/start"
    assert moving.trigger("start").success
    assert moving.answer().executed
    moving.wait_moving()
    assert moving.twists[-1].twist.linear.z == 0.0


def test_a_stop_lasts_over_deactivate_and_activate_until_start(moving: Cell) -> None:
    assert moving.trigger("stop").success
    assert moving.change("deactivate") and moving.change("activate")
    moving.wait_status(State.HOLD, Reason.OPERATOR)
    assert not moving.answer().executed, "only ~/start gives the arm back"
    assert moving.trigger("start").success
    assert moving.answer().executed
    moving.wait_moving()


def test_who_steers_keeps_the_arm_over_deactivate_and_activate_until_start(moving: Cell) -> None:
    moving.publish(TELEOP, up(moving))
    moving.wait_status(State.HOLD, Reason.TELEOPERATION)
    assert moving.change("deactivate") and moving.change("activate")
    moving.wait_status(State.HOLD, Reason.TELEOPERATION)
    assert not moving.answer().executed
    assert moving.trigger("start").success
    assert moving.answer().executed


def test_configured_anew_nobody_holds_the_arm(moving: Cell) -> None:
    assert moving.trigger("stop").success
    for transition in ("deactivate", "cleanup", "configure", "activate"):
        assert moving.change(transition), transition
    assert moving.answer().executed


def test_a_steered_twist_passes_the_same_limits(moving: Cell) -> None:
    with moving.repeated(TwistStamped, TELEOP, lambda: up(moving, speed=3.0)):
        moving.wait_status(State.HOLD, Reason.TELEOPERATION)
        moving.wait(lambda: moving.twists[-1].twist.linear.z > 0.0, "the steered twist")
        fastest = max(abs(t.twist.linear.z) for t in moving.wait_twists(10))
    assert fastest == pytest.approx(0.005), "limits.linear_speed"


@pytest.mark.parametrize("speed", [math.nan, math.inf])
def test_a_steered_twist_that_is_no_number_stops_the_arm(moving: Cell, speed: float) -> None:
    with moving.repeated(TwistStamped, TELEOP, lambda: up(moving, speed)):
        moving.wait_status(State.HOLD, Reason.TELEOPERATION)
        moving.wait_zero()


def test_a_steered_twist_in_another_frame_stops_the_arm(moving: Cell) -> None:
    with moving.repeated(TwistStamped, TELEOP, lambda: up(moving, frame="tool0")):
        moving.wait_status(State.HOLD, Reason.TELEOPERATION)
        moving.wait_zero()


def test_stop_is_stronger_than_who_steers(moving: Cell) -> None:
    with moving.repeated(TwistStamped, TELEOP, lambda: up(moving)):
        moving.wait(lambda: moving.twists[-1].twist.linear.z == 0.004, "the steered twist")
        assert moving.trigger("stop").success
        assert all(is_zero(t) for t in moving.wait_twists(6)[1:])
        moving.wait_status(State.HOLD, Reason.OPERATOR)
        assert moving.trigger("start").success
        moving.wait_status(State.HOLD, Reason.TELEOPERATION)


def test_in_a_dry_run_nobody_steers() -> None:
    with Cell(base_frame="base_link") as cell:
        cell.start()
        with cell.repeated(TwistStamped, TELEOP, lambda: up(cell)):
            cell.wait_status(State.HOLD, Reason.TELEOPERATION)
            assert all(is_zero(t) for t in cell.wait_twists(10))


def test_the_last_twist_is_zero_also_while_somebody_steers(moving: Cell) -> None:
    with moving.repeated(TwistStamped, TELEOP, lambda: up(moving)):
        moving.wait(lambda: moving.twists[-1].twist.linear.z == 0.004, "the steered twist")
        assert moving.change("deactivate")
        count = len(moving.twists)
        assert all(is_zero(t) for t in moving.twists[-3:])
        # A marker, in order behind whatever else the node had to say.
        moving.instruct("marker")
        assert len(moving.twists) == count


# Instructions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["put it\nOut: 1", "x" * 2000])
def test_a_refused_instruction_stops_the_arm_until_the_next(moving: Cell, text: str) -> None:
    """Whoever sent it wanted something else than the arm is doing."""
    moving._instruction.publish(String(data=text))
    moving.wait_zero()
    status = moving.wait_status(State.HOLD, Reason.BAD_INSTRUCTION)
    assert status.instruction == "" and "instruction" in status.detail
    moving.drop()
    moving.instruct("pick up the cup")  # the old text, said again
    assert moving.answer().executed
    moving.wait_moving()


def test_an_empty_instruction_takes_a_refused_one_back(moving: Cell) -> None:
    moving._instruction.publish(String(data="stop\x07"))
    moving.wait_status(State.HOLD, Reason.BAD_INSTRUCTION)
    moving._instruction.publish(String(data=""))
    moving.wait_status(State.IDLE, Reason.NO_INSTRUCTION)


@pytest.mark.parametrize("mode", ["restart", "continue"])
def test_a_new_instruction_ends_the_running_step_at_once_or_with_its_answer(mode: str) -> None:
    policies: list[GatedPolicy] = []
    with Cell(
        load=lambda model: policies.append(GatedPolicy(model)) or policies[-1],
        **MOVING,
        **SLOW_STEP,
        on_instruction_change=mode,
        max_action_age=30.0,
    ) as cell:
        cell.start("pick up the cup")
        policies[0].may_answer.release()
        assert cell.answer().executed
        cell.wait_moving()
        cell.instruct("put it down")
        if mode == "restart":
            cell.wait_zero()
        else:
            assert not any(is_zero(t) for t in cell.wait_twists(15))
        policies[0]._action = np.array([0.0, 0.01, 0.0, 0.0, 0.0, 0.0, 1.0])
        policies[0].may_answer.release()
        assert cell.answer().executed
        cell.wait(lambda: cell.twists[-1].twist.linear.y > 0.0, "the new direction")
