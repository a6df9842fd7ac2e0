"""Bytes of a replayed answer equal those that the node publishes for the same one."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from openvla_ros.control.motion import MotionPlan
from openvla_ros.control.states import Drop
from openvla_ros.evaluation.episode_record import EpisodeRecord
from openvla_ros.types import Prediction

pytest.importorskip("rosbags", reason="bags need the extra `bags`")
from openvla_ros.evaluation.motion.replay_messages import ACTION, ReplayedAnswer, ReplayMessages

STAMP_NS = 1_700_000_000_123_456_789
ACTION_ROW = np.array([0.01, -0.02, 0.03, 0.1, -0.2, 0.3, 1.0])
STEP = np.array([[0.01, -0.02, 0.03, 0.09, -0.21, 0.29]])
PLANS = {
    "good": MotionPlan(steps=STEP, clip_mask=5, gripper_opening=0.75),
    "unknown": MotionPlan(Drop.MOTION_UNKNOWN, "no rate"),
    "invalid": MotionPlan(Drop.INVALID_TOKEN, "", STEP, gripper_opening=0.2),
}


def answer_of(plan: MotionPlan, *, is_open: bool | None = None) -> ReplayedAnswer:
    is_valid = plan.refusal is not Drop.INVALID_TOKEN
    record = EpisodeRecord(
        episode="episode_000",
        source="a recording",
        instruction="lift the pot",
        rate_hz=5.0,
        stamps_ns=np.array([0, STAMP_NS]),
        recorded=np.zeros((2, 7)),
        predicted=np.stack([np.zeros(7), ACTION_ROW]),
        normalized=np.stack([np.zeros(7), ACTION_ROW / 2]),
        token_ids=np.array([[0] * 7, range(31744, 31751)]),
        is_valid=np.array([True, is_valid]),
        latency_ms=np.array([0.0, 123.5]),
        passes=np.array([0, 7]),
    )
    return ReplayedAnswer(
        record,
        1,
        STAMP_NS,
        plan,
        is_open,
        unnorm_key="bridge_orig",
        action_dt_s=0.2,
        base_frame="base_link",
        invalid_dims=() if is_valid else (2, 5),
    )


@pytest.mark.ros
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("is_open", [None, False, True])
def test_an_answer_is_the_message_of_the_node(name: str, is_open: bool | None) -> None:
    """Field by field, through the node's own function."""
    from rclpy.serialization import serialize_message

    from openvla_ros.ros.outgoing import action_message, time_message

    plan = PLANS[name]
    answer = answer_of(plan, is_open=is_open)
    prediction = Prediction(
        actions=ACTION_ROW[None],
        normalized_actions=ACTION_ROW[None] / 2,
        token_ids=list(range(31744, 31751)),
        unnorm_key="bridge_orig",
        invalid_dims=answer.invalid_dims,
        timings={"total_ms": 123.5},
        passes=7,
    )
    image = SimpleNamespace(header=SimpleNamespace(stamp=time_message(STAMP_NS)))
    expected = action_message(
        SimpleNamespace(
            frame=SimpleNamespace(message=image, instruction="lift the pot", received_ns=STAMP_NS),
            prediction=prediction,
            preprocess_ms=math.nan,
            inference_ms=123.5,
            plan=plan,
            drop=Drop.DRY_RUN if plan.refusal is Drop.NONE else plan.refusal,
            sequence=2,
            start_ns=STAMP_NS,
            end_ns=STAMP_NS + 123_500_000,
            action_dt_s=0.2,
            gripper_is_open=plan.gripper_opening >= 0.5 if is_open is None else is_open,
        ),
        "base_link",
    )
    messages = ReplayMessages()
    # Once more through rosbags: ROS leaves what it likes in the bytes between the fields.
    published = messages.typestore.deserialize_cdr(serialize_message(expected), ACTION)
    assert messages.action(answer) == messages.typestore.serialize_cdr(published, ACTION)


def test_every_field_of_the_definition_is_filled() -> None:
    messages = ReplayMessages()
    raw = messages.action(answer_of(PLANS["good"]))
    message = messages.typestore.deserialize_cdr(raw, ACTION)
    assert message.inference_ms == pytest.approx(123.5) and math.isnan(message.preprocess_ms)
    assert (message.clipped, message.gripper, message.gripper_open) == (5, 0.75, True)
    np.testing.assert_array_equal(message.steps, STEP[0])


def test_an_unknown_latency_ends_when_it_began() -> None:
    answer = answer_of(PLANS["good"])
    answer.record.latency_ms[1] = np.nan
    messages = ReplayMessages()
    message = messages.typestore.deserialize_cdr(messages.action(answer), ACTION)
    assert message.inference_end == message.inference_start and math.isnan(message.inference_ms)
