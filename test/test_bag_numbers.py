"""Messages as numbers: by type, and nothing is read that the user has not declared."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags need the extra `bags`")
import bag_samples as made

from openvla_ros.data.bag_file import COMPRESSED_IMAGE, RAW_IMAGE
from openvla_ros.data.bag_numbers import (
    ANSWER,
    ARRAY,
    BOOL,
    EMPTY,
    FLOAT,
    JOINTS,
    OPENING,
    POSE,
    TWIST,
    action_period,
    action_reader,
    gripper_reader,
    image_reader,
    marker_reader,
    state_reader,
)
from openvla_ros.data.topics import ActionSource, GripperSource, StateSource
from openvla_ros.errors import ConfigurationError


def test_an_image_says_how_large_it_is_without_being_decoded() -> None:
    pixels = made.picture(1, width=10, height=6)
    assert image_reader(RAW_IMAGE)(made.raw_image(1, pixels).message) == (10.0, 6.0)
    compressed = made.png_image(1, pixels).message
    assert image_reader(COMPRESSED_IMAGE)(compressed) == (10.0, 6.0)
    compressed.data = compressed.data[:20]
    assert image_reader(COMPRESSED_IMAGE)(compressed) == (0.0, 0.0)


def test_actions_are_read_by_the_type_of_their_topic() -> None:
    twist = made.twist(1, range(6)).message
    assert action_reader(TWIST, ActionSource(rotation="euler_rate"))(twist) == (0, 1, 2, 3, 4, 5)
    pose = made.pose(1, [1, 2, 3], [0, 0, 0.6, 0.8]).message
    assert action_reader(POSE, ActionSource(rotation="euler"))(pose) == (1, 2, 3, 0, 0, 0.6, 0.8)
    array = made.numbers(1, range(8)).message
    assert action_reader(ARRAY, ActionSource())(array) == tuple(range(8))
    assert action_reader(ARRAY, ActionSource(columns=(7, 0)))(array) == (7, 0)
    chunk = made.answer(1, range(14), chunk_steps=2).message
    assert action_reader(ANSWER, ActionSource())(chunk) == tuple(range(7)), "its first step"


def test_an_answer_says_how_long_a_step_is_unless_nobody_knew() -> None:
    assert action_period(made.answer(1, range(7), action_dt=0.2).message) == (0.2,)
    assert action_period(made.answer(1, range(7), action_dt=float("nan")).message) is None


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        (TWIST, ActionSource(), "not given.*euler_rate or rotvec_rate"),
        (TWIST, ActionSource(rotation="euler"), "'euler'.*euler_rate or rotvec_rate"),
        (POSE, ActionSource(), "euler_difference or euler or rotvec"),
        (ARRAY, ActionSource(rotation="euler"), "action.rotation has no meaning"),
        (ARRAY, ActionSource(differences=True), "not given.*euler_difference"),
        (ANSWER, ActionSource(columns=(0,)), "action.columns has no meaning"),
        (TWIST, ActionSource(rotation="euler_rate", differences=True), "differences has no"),
        (POSE, ActionSource(rotation="euler", hold_s=0.5), "hold_s has no meaning"),
        (ANSWER, ActionSource(offset_s=0.1), "offset_s has no meaning"),
        (POSE, ActionSource(rotation="euler", rotation_form="rotvec"), "`rotation: rotvec`"),
        (TWIST, ActionSource(rotation="euler_rate", rotation_form="rotvec"), "rotvec_rate"),
    ],
)
def test_what_an_action_means_must_be_declared(kind, source, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        action_reader(kind, source)


@pytest.mark.parametrize(
    ("said", "source", "kind", "opening"),
    [
        (made.number(1, 0.25, "/g"), GripperSource(), FLOAT, 0.25),
        (made.number(1, 0.0, "/g"), GripperSource(closed=1.0, open=0.0), FLOAT, 1.0),
        (made.number(1, 1.2, "/g"), GripperSource(), FLOAT, 1.0),
        (made.numbers(1, [5, 0.5]), GripperSource(column=1), ARRAY, 0.5),
        (made.opening(1, 0.75, "/g"), GripperSource(), OPENING, 0.75),
        (
            made.joints(1, {"arm": 9.0, "finger": 0.01}, "/j"),
            GripperSource(joint="finger", open=0.04),
            JOINTS,
            0.25,
        ),
        (made.joints(1, {"arm": 9.0}, "/j"), GripperSource(joint="finger"), JOINTS, None),
    ],
)
def test_every_kind_of_gripper_becomes_an_opening(said, source, kind, opening) -> None:
    got = gripper_reader(kind, source)(said.message)
    assert got == (None if opening is None else (pytest.approx(opening),))


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        (ARRAY, GripperSource(), "gripper.column must be given"),
        (JOINTS, GripperSource(), "gripper.joint must be given"),
        (FLOAT, GripperSource(column=1), "gripper.column has no meaning"),
        (OPENING, GripperSource(joint="j"), "gripper.joint has no meaning"),
    ],
)
def test_a_gripper_topic_needs_what_its_type_needs(kind, source, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        gripper_reader(kind, source)


def test_states_are_poses_or_numbers() -> None:
    pose = made.pose(1, [1, 2, 3], [0, 0, 0, 1]).message
    assert state_reader(POSE, StateSource())(pose) == (1, 2, 3, 0, 0, 0, 1)
    assert state_reader(ARRAY, StateSource())(made.numbers(1, [4, 5]).message) == (4, 5)
    with pytest.raises(ConfigurationError, match=r"state\.columns has no meaning"):
        state_reader(POSE, StateSource(columns=(0,)))


def test_markers_begin_and_end() -> None:
    assert marker_reader(EMPTY)(made.ping(1, "/m").message) == (1.0,)
    assert marker_reader(BOOL)(made.flag(1, False, "/m").message) == (0.0,)


@pytest.mark.parametrize(
    ("read", "said", "message"),
    [
        (action_reader(ARRAY, ActionSource(columns=(7,))), made.numbers(1, [1]), "no column 7"),
        (action_reader(ARRAY, ActionSource()), made.numbers(1, []), "0 numbers"),
        (
            action_reader(ARRAY, ActionSource(differences=True, rotation="euler_difference")),
            made.numbers(1, [1, 2, 3]),
            "3 numbers, and 6 are needed",
        ),
        (
            action_reader(POSE, ActionSource(rotation="euler")),
            made.pose(1, [0] * 3, [0] * 4),
            "length 0",
        ),
        (action_reader(ANSWER, ActionSource()), made.answer(1, [1] * 7, chunk_steps=2), "2 steps"),
        (action_reader(ANSWER, ActionSource()), made.answer(1, [], chunk_steps=0), "0 steps"),
    ],
)
def test_a_message_that_cannot_be_used_says_why(read, said, message) -> None:
    with pytest.raises(ValueError, match=message):
        read(said.message)


def test_a_joint_without_a_position_is_refused() -> None:
    message = made.joints(1, {"arm": 1.0, "finger": 2.0}, "/j").message
    message.position = np.array([1.0])
    with pytest.raises(ValueError, match="no position"):
        gripper_reader(JOINTS, GripperSource(joint="finger"))(message)
