"""What the arm does when something fails: one test per failure, over real DDS.

Every test first sees the arm move (or be able to), then breaks one thing, then looks for a zero
twist and for the reason in the status.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

import rclpy.time
from builtin_interfaces.msg import Time
from node_cell import MOVING, Cell, GatedPolicy, is_zero
from openvla_ros.msg import VLAAction
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock

from openvla_ros.control.states import Reason, State
from openvla_ros.control.supervisor import FRESH_FRAMES, NON_FINITE_FAULT

pytestmark = pytest.mark.ros

SLOW_STEP = {"limits.linear_speed": 0.005}  # a step of 10 mm lasts 2 s: the arm moves mid-test


@pytest.fixture
def moving() -> Iterator[Cell]:
    """A cell whose arm moves."""
    with Cell(**MOVING, **SLOW_STEP) as cell:
        cell.start()
        assert cell.answer().executed
        cell.wait_moving()
        yield cell


def set_fault(cell: Cell, fault: str) -> None:
    assert cell.node.set_parameters([Parameter("mock_fault", value=fault)])[0].successful


def recover(cell: Cell) -> None:
    """Send fresh frames until the arm moves again."""
    for _ in range(FRESH_FRAMES + 1):
        answer = cell.answer()
    assert answer.executed
    cell.wait_moving()


def test_without_an_image_the_twist_is_zero() -> None:
    with Cell(**MOVING) as cell:
        cell.start()
        cell.wait_status(State.IDLE, Reason.NO_IMAGE)
        assert all(is_zero(t) for t in cell.wait_twists(5))


def test_without_an_instruction_nothing_is_inferred_and_the_twist_is_zero(moving: Cell) -> None:
    moving.instruct("")
    moving.wait_zero()
    moving.wait_status(State.IDLE, Reason.NO_INSTRUCTION)
    count = len(moving.actions)
    moving.drop()
    assert len(moving.actions) == count
    moving.instruct("again")
    recover(moving)


def test_a_camera_that_stops_stops_the_arm(moving: Cell) -> None:
    moving.steady.jump(5.5)
    moving.wait_zero()
    moving.wait_status(State.HOLD, Reason.STALE_IMAGE)
    held = moving.answer()
    assert held.drop_reason == VLAAction.HOLD
    recover(moving)


def test_an_old_image_stops_the_arm_and_is_not_answered(moving: Cell) -> None:
    old = moving.node.get_clock().now() - Duration(seconds=5.4)
    moving.node._session._shared.supervisor._last_stamp_ns = 0  # it shall be old, not out of order
    moving.drop(stamp=old.to_msg())
    moving.wait_zero()
    assert "image_max_age" in moving.wait_status(State.HOLD, Reason.STALE_IMAGE).detail
    recover(moving)


def test_an_image_from_the_future_stops_the_arm(moving: Cell) -> None:
    future = moving.node.get_clock().now() + Duration(seconds=30.0)
    moving.drop(stamp=future.to_msg())
    moving.wait_zero()
    assert "future" in moving.wait_status(State.HOLD, Reason.CLOCK_JUMP).detail
    recover(moving)


def test_an_unset_stamp_is_answered_and_never_executed(moving: Cell) -> None:
    answer = moving.answer(stamp=Time())
    assert not answer.executed and answer.drop_reason == VLAAction.HOLD
    moving.wait_zero()
    moving.wait_status(State.HOLD, Reason.UNSET_STAMP)
    recover(moving)


def test_stamps_that_go_back_stop_the_arm(moving: Cell) -> None:
    back = moving.node.get_clock().now() - Duration(seconds=20.0)
    moving.drop(stamp=back.to_msg())
    moving.wait_zero()
    recover(moving)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"encoding": "32FC1"}, "32FC1"), ({"step": 17}, "6 x 4"), ({"height": 5}, "6 x 5")],
)
def test_an_image_that_cannot_be_decoded_stops_the_arm(
    moving: Cell, changes: dict[str, object], named: str
) -> None:
    moving.drop(**changes)
    moving.wait_zero()
    assert named in moving.wait_status(State.HOLD, Reason.BAD_IMAGE).detail
    recover(moving)


def test_a_region_that_does_not_fit_the_image_stops_the_arm() -> None:
    with Cell(**MOVING, image_roi=[0, 0, 100, 100]) as cell:
        cell.start()
        cell.drop()
        assert "image_roi" in cell.wait_status(State.HOLD, Reason.BAD_IMAGE).detail


@pytest.mark.parametrize("fault", ["nan", "short"])
def test_an_answer_without_numbers_stops_the_arm_and_five_are_a_fault(
    moving: Cell, fault: str
) -> None:
    set_fault(moving, fault)
    answer = moving.answer()
    assert answer.drop_reason == VLAAction.NON_FINITE and not answer.executed
    moving.wait_zero()
    moving.wait_status(State.HOLD, Reason.NON_FINITE)
    for _ in range(NON_FINITE_FAULT - 1):
        moving.answer()
    moving.wait_status(State.FAULT, Reason.NON_FINITE)
    set_fault(moving, "none")
    moving.drop()
    assert not moving.enable_motion(True).success or is_zero(moving.wait_twists(1)[0])
    assert moving.trigger("reset").success
    recover(moving)


def test_one_answer_without_numbers_is_forgiven(moving: Cell) -> None:
    set_fault(moving, "nan")
    moving.answer()
    set_fault(moving, "none")
    recover(moving)


def test_an_invalid_token_is_never_executed(moving: Cell) -> None:
    set_fault(moving, "invalid")
    answer = moving.answer()
    assert not answer.is_valid and list(answer.invalid_dims) == [0]
    assert answer.drop_reason == VLAAction.INVALID_TOKEN and not answer.executed
    moving.wait_zero()
    moving.wait_status(State.HOLD, Reason.INVALID_TOKEN)
    set_fault(moving, "none")
    recover(moving)


def test_a_policy_that_raises_is_a_fault_until_reset(moving: Cell) -> None:
    set_fault(moving, "exception")
    moving.drop()
    moving.wait_zero()
    status = moving.wait_status(State.FAULT, Reason.MODEL_ERROR)
    assert "mock_fault" in status.detail
    set_fault(moving, "none")
    moving.drop()  # a fault does not heal by itself
    assert not moving.trigger("start").success
    assert moving.trigger("reset").success
    recover(moving)


def test_running_out_of_memory_is_a_fault_with_a_hint(moving: Cell) -> None:
    set_fault(moving, "oom")
    moving.drop()
    moving.wait_zero()
    status = moving.wait_status(State.FAULT, Reason.GPU_OOM)
    assert "quantization" in status.detail and "configure" in status.detail
    refused = moving.trigger("reset")
    assert not refused.success and refused.message == status.detail
    assert moving.change("deactivate") and moving.change("cleanup")
    set_fault(moving, "none")
    assert moving.change("configure") and moving.change("activate")
    recover(moving)


def test_running_out_of_memory_once_is_forgiven(moving: Cell) -> None:
    policy, calls = moving.node._session.policy, []
    predict = policy.predict

    def once(observation):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError("fragmented")
        return predict(observation)

    policy.predict = once
    assert moving.answer().executed
    assert len(calls) == 2


def gated(policies: list[GatedPolicy]):
    return lambda model: policies.append(GatedPolicy(model)) or policies[-1]


def test_a_late_answer_stops_the_arm_and_is_dropped_when_it_comes() -> None:
    policies: list[GatedPolicy] = []
    patience = {"image_timeout": 5.0, "inference_timeout": 1.0, "max_action_age": 0.6}
    with Cell(load=gated(policies), **MOVING, **SLOW_STEP, **patience) as cell:
        cell.start()
        policies[0].may_answer.release()
        assert cell.answer().executed
        cell.wait_moving()
        assert policies[0].began.acquire(timeout=10.0)
        image = cell.image()
        assert policies[0].began.acquire(timeout=10.0)
        cell.steady.jump(1.5)
        cell.wait_zero()
        cell.wait_status(State.HOLD, Reason.LATE_INFERENCE)
        # The answer is dropped by the age of its image, in ROS time.
        stamp = rclpy.time.Time.from_msg(image.header.stamp)
        limit = Duration(seconds=0.6)
        cell.wait(lambda: cell.node.get_clock().now() - stamp > limit, "an old image")
        policies[0].may_answer.release()
        cell.wait(lambda: len(cell.actions) == 2, "the late answer")
        late = cell.actions[1]
        assert late.drop_reason == VLAAction.STALE and not late.executed
        policies[0].may_answer.release(100)
        recover(cell)


def test_a_policy_that_hangs_is_a_fault_and_ends_the_process() -> None:
    policies: list[GatedPolicy] = []
    with Cell(load=gated(policies), **MOVING, **SLOW_STEP) as cell:
        cell.start()
        policies[0].may_answer.release()
        assert cell.answer().executed
        cell.wait_moving()
        assert policies[0].began.acquire(timeout=10.0)
        cell.image()
        assert policies[0].began.acquire(timeout=10.0)
        cell.steady.jump(11.0)
        cell.wait_zero()
        cell.wait_status(State.FAULT, Reason.MODEL_HANG)
        assert "has not answered" in cell.node.fatal


def test_a_callback_that_breaks_stops_the_arm(moving: Cell) -> None:
    moving.node._session._shared.supervisor.image_arrived = lambda *_: 1 / 0
    moving.image()
    moving.wait_zero()
    assert "ZeroDivisionError" in moving.wait_status(State.FAULT, Reason.MODEL_ERROR).detail


def test_a_bag_that_loops_stops_the_arm_and_goes_on_by_itself() -> None:
    """ROS time jumps back: ages of the old time would make every new image look fresh or future."""
    with Cell(**MOVING, **SLOW_STEP, use_sim_time=True) as cell:
        now_s = [100.0]

        def tick(seconds: float) -> None:
            now_s[0] += seconds
            cell.publish("/clock", Clock(clock=at(now_s[0])))
            cell.wait(
                lambda: abs(cell.node.get_clock().now().nanoseconds * 1e-9 - now_s[0]) < 1e-6,
                "the node's clock",
            )

        def at(seconds: float) -> Time:
            return rclpy.time.Time(nanoseconds=round(seconds * 1e9)).to_msg()

        tick(0.0)
        cell.start()
        for _ in range(FRESH_FRAMES + 1):
            tick(0.1)
            cell.answer(stamp=at(now_s[0]))
        cell.wait_moving()
        tick(-50.0)
        cell.wait_zero()
        cell.wait_status(State.HOLD, Reason.CLOCK_JUMP)
        for _ in range(FRESH_FRAMES + 1):
            tick(0.1)
            answer = cell.answer(stamp=at(now_s[0]))
        assert answer.executed
        cell.wait_moving()


@pytest.mark.parametrize("camera", ["silent", "repeats its stamp", "counts on"])
def test_a_ros_clock_that_stands_still_stops_the_arm(camera: str) -> None:
    """A paused bag: the age of the last image does not grow in ROS time, and images may come."""
    with Cell(**MOVING, **SLOW_STEP, use_sim_time=True) as cell:
        cell.publish("/clock", Clock(clock=Time(sec=100)))
        cell.wait(lambda: cell.node.get_clock().now().nanoseconds == 100 * 10**9, "the clock")
        cell.start()
        for step in range(FRESH_FRAMES + 1):
            cell.answer(stamp=Time(sec=100, nanosec=step + 1))
        cell.wait_moving()
        for step in range(4):
            cell.steady.jump(1.4)
            if camera != "silent":
                stamp = Time(sec=100, nanosec=50 + step if camera == "counts on" else 4)
                cell.image(stamp=stamp)
        cell.wait_zero()
        assert "stood still" in cell.wait_status(State.HOLD, Reason.CLOCK_JUMP).detail


def test_a_camera_that_repeats_its_stamp_is_as_good_as_silent(moving: Cell) -> None:
    """The driver hangs and sends the same picture again and again."""
    stamp = moving.actions[-1].header.stamp
    for _ in range(4):
        moving.drop(stamp=stamp)
        moving.steady.jump(1.4)
    moving.wait_zero()
    assert "new stamp" in moving.wait_status(State.HOLD, Reason.STALE_IMAGE).detail
    recover(moving)
