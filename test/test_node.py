"""openvla_node over real DDS with the mock policy: what goes in and what comes out."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

from node_cell import MOVING, NAME, Cell, GatedPolicy, is_zero, latched, pixels_seen
from openvla_ros.msg import VLAAction
from rcl_interfaces.msg import ParameterType
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String
from test_messages import encoded

from openvla_ros.config import PARAMETERS
from openvla_ros.control.states import Reason, State
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.ros import qos

pytestmark = pytest.mark.ros

ACTION = [0.01, 0.0, -0.02, 0.0, 0.0, 0.1, 1.0]


# Interface -------------------------------------------------------------------------------------


def test_topics_have_the_documented_names_types_and_qos() -> None:
    with Cell() as cell:
        cell.start()
        for topic, kind, reliability, durability in (
            ("action", "openvla_ros/msg/VLAAction", "RELIABLE", "VOLATILE"),
            ("twist_cmd", "geometry_msgs/msg/TwistStamped", "RELIABLE", "VOLATILE"),
            ("gripper_cmd", "openvla_ros/msg/GripperCommand", "RELIABLE", "VOLATILE"),
            ("status", "openvla_ros/msg/VLAStatus", "RELIABLE", "TRANSIENT_LOCAL"),
            ("active_instruction", "std_msgs/msg/String", "RELIABLE", "TRANSIENT_LOCAL"),
        ):
            (info,) = cell.peer.get_publishers_info_by_topic(f"{NAME}/{topic}")
            assert info.topic_type == kind
            assert info.qos_profile.reliability == ReliabilityPolicy[reliability], topic
            assert info.qos_profile.durability == DurabilityPolicy[durability], topic
        (info,) = cell.peer.get_subscriptions_info_by_topic("/image")
        assert info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
        (info,) = cell.peer.get_subscriptions_info_by_topic("/instruction")
        assert info.qos_profile.durability == DurabilityPolicy.VOLATILE


def test_declared_parameters_are_those_of_the_table() -> None:
    with Cell() as cell:
        own = {"use_sim_time", "start_type_description_service"}
        declared = set(cell.node._parameters) - own
        assert declared == set(PARAMETERS)
        for name, parameter in PARAMETERS.items():
            descriptor = cell.node.describe_parameter(name)
            assert parameter.description in descriptor.description
            assert parameter.unit in descriptor.description
            kind = f"PARAMETER_{parameter.type_name.upper()}".replace("_INT", "_INTEGER")
            kind = kind.replace("INTEGEREGER", "INTEGER")
            assert descriptor.type == getattr(ParameterType, kind), name
            if parameter.type_name == "double" and parameter.minimum is not None:
                (allowed,) = descriptor.floating_point_range
                assert (allowed.from_value, allowed.to_value) == (
                    parameter.minimum,
                    parameter.maximum,
                )


# Frames and answers ------------------------------------------------------------------------------


def test_an_answer_carries_the_stamp_and_the_numbers_of_its_image() -> None:
    with Cell(mock_action=ACTION, base_frame="base_link") as cell:
        cell.start("pick up the cup")
        image = cell.image()
        cell.wait(lambda: cell.actions, "an answer")
        answer = cell.actions[0]
        assert answer.header.stamp == image.header.stamp
        assert answer.header.frame_id == "base_link"
        assert answer.instruction == "pick up the cup"
        assert answer.sequence == 1
        assert list(answer.raw) == ACTION
        assert answer.action_dt == pytest.approx(0.2)
        assert len(answer.token_ids) == 7
        assert answer.is_valid and not answer.invalid_dims
        assert list(answer.timing_names) == ["total_ms"]
        moved = answer.delta_position
        np.testing.assert_allclose([moved.x, moved.y, moved.z], [0.005, 0, -0.01])  # half speed
        assert answer.delta_rotation.z == pytest.approx(0.05)
        assert answer.gripper == 1.0 and answer.gripper_open


def test_every_frame_is_answered_or_counted_as_dropped() -> None:
    policies = []
    with Cell(
        load=lambda model: policies.append(GatedPolicy(model)) or policies[-1],
    ) as cell:
        cell.start()
        (policy,) = policies
        cell.image()
        assert policy.began.acquire(timeout=10.0)  # the policy is busy from here on
        ledger = cell.node._session.ledger
        for _ in range(10):
            cell.image()
        # Not a fixed number: an image that is slow to arrive is sent again, and then arrives twice.
        assert ledger.received >= 11
        assert (ledger.actions, ledger.in_flight) == (0, 2)
        assert ledger.dropped == ledger.received - 2
        policy.may_answer.release(100)
        cell.wait(lambda: ledger.in_flight == 0, "no frame in flight")
        status = cell.wait(
            lambda: cell.statuses[-1] if cell.statuses[-1].actions >= 2 else None, "the status"
        )
        assert status.frames_received == (
            status.actions + status.frames_dropped + status.frames_in_flight
        )
        cell.wait(lambda: len(cell.actions) == ledger.actions, "as many answers as are counted")


def test_the_policy_sees_rgb_whatever_the_camera_sends() -> None:
    rgb = np.random.default_rng(3).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    policies = []
    with Cell(load=lambda model: policies.append(GatedPolicy(model)) or policies[-1]) as cell:
        cell.start()
        (policy,) = policies
        policy.may_answer.release(100)
        cell.answer(pixels=rgb)
        cell.answer(pixels=np.ascontiguousarray(rgb[..., ::-1]), encoding="bgr8")
        cell.answer(pixels=np.ascontiguousarray(rgb[..., ::-1]))  # a camera that lies
        first, second, third = map(pixels_seen, policy.seen)
        np.testing.assert_array_equal(first, rgb)
        np.testing.assert_array_equal(second, rgb)
        assert (third != rgb).any()


def test_a_compressed_image_is_decoded() -> None:
    rgb = np.random.default_rng(3).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    policies = []
    with Cell(
        load=lambda model: policies.append(GatedPolicy(model)) or policies[-1],
        image_transport="compressed",
        image_roi=[1, 0, 4, 3],
    ) as cell:
        cell.start()
        policies[0].may_answer.release(100)
        message = CompressedImage(format="rgb8; png compressed bgr8")
        message.data = encoded(".png", rgb[..., ::-1])
        message.header.stamp = cell.node.get_clock().now().to_msg()
        cell.deliver("image/compressed", message)
        cell.wait(lambda: cell.actions, "an answer")
        np.testing.assert_array_equal(pixels_seen(policies[0].seen[0]), rgb[0:3, 1:5])


@pytest.mark.parametrize("camera", ["best effort", "reliable", "latched"])
def test_every_kind_of_camera_publisher_is_heard(camera: str) -> None:
    profiles = {
        "best effort": qos_profile_sensor_data,
        "reliable": qos.ACTION,
        "latched": latched(),
    }
    with Cell() as cell:
        cell.start()
        image = cell.node  # only to create a first message below
        del image
        from sensor_msgs.msg import Image

        message = Image(height=2, width=2, encoding="rgb8", step=6, data=bytes(12))
        cell.deliver("image", message, profiles[camera])
        cell.wait(lambda: cell.actions, "an answer")


@pytest.mark.parametrize("operator", ["volatile", "latched"])
def test_every_kind_of_instruction_publisher_is_heard(operator: str) -> None:
    """A latched subscriber would not hear `ros2 topic pub`."""
    with Cell() as cell:
        cell.start(instruction="")
        profile = latched() if operator == "latched" else qos.INSTRUCTION
        publisher = cell.peer.create_publisher(String, "/instruction", profile)
        cell.wait(publisher.get_subscription_count, "the node's subscription")
        publisher.publish(String(data="open the drawer"))
        cell.wait(lambda: cell.statuses[-1].instruction == "open the drawer", "the instruction")


def test_who_comes_late_sees_status_and_instruction() -> None:
    with Cell() as cell:
        cell.start("pick up the cup")
        heard: list[String] = []
        cell.hear(String, f"{NAME}/active_instruction", heard, latched())
        cell.wait(lambda: heard and heard[-1].data == "pick up the cup", "the latched instruction")


def test_an_answer_to_the_old_instruction_is_dropped() -> None:
    policies = []
    with Cell(
        load=lambda model: policies.append(GatedPolicy(model)) or policies[-1], **MOVING
    ) as cell:
        cell.start("pick up the cup")
        (policy,) = policies
        cell.image()
        assert policy.began.acquire(timeout=10.0)
        cell.instruct("put it down")
        policy.may_answer.release()
        cell.wait(lambda: cell.actions, "the answer")
        assert cell.actions[0].drop_reason == VLAAction.INSTRUCTION_CHANGED
        assert not cell.actions[0].executed
        assert cell.actions[0].instruction == "pick up the cup"
        assert all(is_zero(t) for t in cell.twists)
        policy.may_answer.release()
        assert cell.answer().instruction == "put it down"
        cell.wait_moving()


@pytest.mark.parametrize("text", ["pick\nOut: 1", "pick\x07"])
def test_an_instruction_that_would_change_the_prompt_is_refused(text: str) -> None:
    with Cell() as cell:
        cell.start("pick up the cup")
        cell._instruction.publish(String(data=text))
        cell.instruct("marker")  # in order behind it
        told = {s.instruction for s in cell.statuses}
        assert text not in told


# Motion ------------------------------------------------------------------------------------------


def test_dry_run_is_the_default_and_shows_the_true_action() -> None:
    with Cell(mock_action=ACTION) as cell:
        cell.start()
        answer = cell.answer()
        assert answer.drop_reason == VLAAction.DRY_RUN and not answer.executed
        assert answer.delta_position.x == pytest.approx(0.005)
        assert all(is_zero(t) for t in cell.wait_twists(15))
        assert not cell.grippers, "a dry run moves the gripper neither"


def test_the_twist_moves_as_far_as_the_action_says() -> None:
    with Cell(mock_action=ACTION, **MOVING) as cell:
        cell.start()
        assert cell.answer().executed
        cell.wait_moving()
        cell.wait_zero()
        twists = cell.twists
        stamps = [t.header.stamp.sec + t.header.stamp.nanosec * 1e-9 for t in twists]
        moved = sum(
            (after - before) * np.array([t.twist.linear.x, t.twist.linear.z, t.twist.angular.z])
            for t, before, after in zip(twists, stamps, stamps[1:], strict=False)
        )
        # Late ticks may add a little; the exact bound is in test_twist.py, on a clock of its own.
        np.testing.assert_allclose(moved, [0.01, -0.02, 0.1], rtol=0.25)
        peak = max(t.twist.linear.x for t in twists)
        assert peak == pytest.approx(0.01 / 0.2, rel=0.01), (
            "displacement per step is not a velocity"
        )
        assert {t.header.frame_id for t in twists} == {"base_link"}


def test_the_twist_is_stamped_now_and_not_with_the_image() -> None:
    """MoveIt Servo ignores commands whose stamp is 0.1 s old."""
    with Cell(**MOVING) as cell:
        cell.start()
        cell.answer()
        image = cell.actions[0].header.stamp
        for twist in cell.wait_twists(10)[2:]:
            stamp = twist.header.stamp
            assert (stamp.sec, stamp.nanosec) > (image.sec, image.nanosec)


def test_the_gripper_opens_after_two_votes_and_closes_after_two() -> None:
    with Cell(mock_action=ACTION, **{**MOVING, "gripper.closed_position": 0.01}) as cell:
        cell.start()
        cell.answer()
        cell.answer()
        cell.wait(lambda: cell.grippers, "a gripper command")
        command = cell.grippers[0]
        assert (command.opening, command.width_m) == (1.0, 0.08)
        assert command.max_effort_n == 30.0
        cell.node._session.policy._action[6] = 0.0
        cell.answer()
        cell.answer()
        cell.wait(lambda: cell.grippers[-1].opening == 0.0, "closed")
        assert cell.grippers[-1].width_m == pytest.approx(0.01)


def test_stop_is_zero_at_once_and_start_goes_on() -> None:
    with Cell(**MOVING) as cell:
        cell.start()
        cell.answer()
        cell.wait_moving()
        assert cell.trigger("stop").success
        assert all(is_zero(t) for t in cell.wait_twists(6)[1:])
        cell.wait_status(State.HOLD, Reason.OPERATOR)
        held = cell.answer()
        assert held.drop_reason == VLAAction.HOLD and not held.executed
        assert cell.trigger("start").success
        assert cell.answer().executed
        cell.wait_moving()


def test_motion_is_enabled_and_disabled_at_run_time() -> None:
    with Cell(**{**MOVING, "motion_enabled": False}) as cell:
        cell.start()
        assert not cell.answer().executed
        assert cell.enable_motion(True).success
        assert cell.node.get_parameter("motion_enabled").value is True
        assert cell.answer().executed
        cell.wait_moving()
        assert cell.enable_motion(False).success
        cell.wait_zero()
        assert cell.answer().drop_reason == VLAAction.DRY_RUN


def test_motion_is_refused_without_a_base_frame() -> None:
    with Cell() as cell:
        cell.start()
        response = cell.enable_motion(True)
        assert not response.success
        assert "base_frame" in response.message


def test_motion_is_refused_while_the_rate_of_the_dataset_is_unknown() -> None:
    import dataclasses

    from openvla_ros import mock_policy

    class Unpublished(MockPolicy):
        @property
        def action_spec(self):
            return dataclasses.replace(mock_policy.ACTION_SPEC, action_hz=None)

    parameters = {**MOVING, "mock_action": ACTION}
    with Cell(load=lambda model: Unpublished(model.mock_action), **parameters) as cell:
        cell.start()
        answer = cell.answer()
        assert answer.drop_reason == VLAAction.MOTION_UNKNOWN
        assert np.isnan(answer.action_dt)
        status = cell.wait_status(State.HOLD, Reason.MOTION_UNKNOWN)
        assert "action_hz" in status.detail
        assert all(is_zero(t) for t in cell.twists)
        assert cell.node.set_parameters([Parameter("action_hz", value=10.0)])[0].successful
        assert cell.answer().action_dt == pytest.approx(0.1)
        cell.wait_moving()


def test_predict_once_answers_the_newest_image_without_motion() -> None:
    with Cell(**MOVING) as cell:
        cell.start()
        assert not cell.trigger("predict_once").success, "there is no image yet"
        cell.trigger("stop")
        cell.answer()
        response = cell.trigger("predict_once")
        assert response.success, response.message
        assert "0.01" in response.message
        cell.wait(lambda: len(cell.actions) == 2, "the second answer")
        assert cell.actions[1].drop_reason == VLAAction.ONCE
        assert cell.actions[1].header.stamp == cell.actions[0].header.stamp
        assert all(is_zero(t) for t in cell.twists)
        ledger = cell.node._session.ledger
        assert ledger.received == ledger.actions + ledger.dropped == 2


def test_busy_subscriptions_wake_nobody_for_quality_of_service_events() -> None:
    """With rclpy's own handlers the executor spins while a message waits, and twists are late."""
    with Cell() as cell:
        assert cell.change("configure")
        busy = {"/image", "/ee_pose", f"{NAME}/teleop_twist", f"{NAME}/enable"}
        found = [s for s in cell.node.subscriptions if s.topic_name in busy]
        assert {s.topic_name for s in found} == busy
        assert not any(s.event_handlers for s in found)
