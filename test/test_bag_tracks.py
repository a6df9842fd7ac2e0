"""First reading of a bag: topics found or named as missing, numbers and stamps checked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags need the extra `bags`")
import bag_samples as made
from bag_samples import ACTION, CAMERA, INSTRUCTION, plain_recording, row, time_of, write_bag

from openvla_ros.data.bag_numbers import ARRAY, TEXT
from openvla_ros.data.bag_tracks import read_tracks
from openvla_ros.data.topics import (
    ActionSource,
    GripperSource,
    InstructionSource,
    Splitting,
    StateSource,
    TopicConfig,
)
from openvla_ros.errors import ConfigurationError, InstructionError

PLAIN = TopicConfig(rate_hz=5.0, action=ActionSource(topic=ACTION))


def test_every_role_becomes_a_track(tmp_path) -> None:
    messages = [
        *plain_recording(1),
        *[made.number(time_of(k), 0.5, "/gripper") for k in range(3)],
        *[made.pose(time_of(k), [k, 0, 0], [0, 0, 0, 1], "/pose") for k in range(3)],
        made.ping(time_of(0), "/mark"),
    ]
    config = TopicConfig(
        rate_hz=5.0,
        action=ActionSource(topic=ACTION),
        gripper=GripperSource(topic="/gripper"),
        state=StateSource(topic="/pose"),
        split=Splitting(marker="/mark"),
    )
    tracks = read_tracks(write_bag(tmp_path / "bag", messages), config)
    assert set(tracks) == {"image", "instruction", "action", "gripper", "state", "marker"}
    assert tracks["instruction"].texts == ("task 0",)
    np.testing.assert_array_equal(tracks["action"].values, [row(k) for k in range(4)])
    np.testing.assert_array_equal(tracks["image"].values, [[8, 6]] * 4)
    assert tracks["image"].has_header and not tracks["action"].has_header
    assert tracks["state"].values.shape == (3, 7)


def test_one_topic_may_serve_two_roles(tmp_path) -> None:
    config = TopicConfig(
        rate_hz=5.0,
        action=ActionSource(topic=ACTION, columns=(0, 1, 2, 3, 4, 5)),
        gripper=GripperSource(topic=ACTION, column=6),
    )
    tracks = read_tracks(write_bag(tmp_path / "bag", plain_recording(1)), config)
    np.testing.assert_array_equal(tracks["gripper"].values[:, 0], [0, 1, 0, 1])
    assert tracks["action"].values.shape == (4, 6)


def test_stamps_come_from_the_header_unless_bag_time_is_asked_for(tmp_path) -> None:
    late = 30_000_000
    messages = [made.text(time_of(-1), "push"), made.numbers(time_of(0), row(0))]
    messages += [made.raw_image(time_of(k), made.picture(k), late_ns=late) for k in range(3)]
    bag = write_bag(tmp_path / "bag", messages)
    taken = [time_of(k) for k in range(3)]
    by_header = read_tracks(bag, PLAIN)["image"]
    np.testing.assert_array_equal(by_header.stamps_ns, taken)
    np.testing.assert_array_equal(by_header.bag_ns, np.array(taken) + late)
    by_bag = read_tracks(bag, TopicConfig(5.0, stamps="bag", action=PLAIN.action))["image"]
    np.testing.assert_array_equal(by_bag.stamps_ns, np.array(taken) + late)


def test_an_offset_moves_the_action_alone(tmp_path) -> None:
    bag = write_bag(tmp_path / "bag", plain_recording(1))
    config = TopicConfig(rate_hz=5.0, action=ActionSource(topic=ACTION, offset_s=-0.05))
    moved, plain = read_tracks(bag, config), read_tracks(bag, PLAIN)
    assert (moved["action"].stamps_ns - plain["action"].stamps_ns == -50_000_000).all()
    assert (moved["image"].stamps_ns == plain["image"].stamps_ns).all()


def test_answers_bring_instruction_and_step_time_with_them(tmp_path) -> None:
    messages = [made.raw_image(time_of(k), made.picture(k)) for k in range(3)]
    messages += [made.answer(time_of(k), row(k), instruction="fold it") for k in range(3)]
    tracks = read_tracks(write_bag(tmp_path / "bag", messages), TopicConfig())
    assert tracks["instruction"].texts == ("fold it",) * 3
    np.testing.assert_array_equal(tracks["action_dt"].values, [[0.2]] * 3)


def test_joints_of_another_publisher_on_the_same_topic_are_passed_over(tmp_path) -> None:
    messages = plain_recording(1)
    messages += [made.joints(time_of(1), {"finger": 0.04}, "/j")]
    messages += [made.joints(time_of(0) + 5, {"arm": 1.0}, "/j")]
    config = TopicConfig(
        rate_hz=5.0,
        action=ActionSource(topic=ACTION, columns=(0,)),
        gripper=GripperSource(topic="/j", joint="finger", open=0.04),
    )
    gripper = read_tracks(write_bag(tmp_path / "bag", messages), config)["gripper"]
    assert gripper.values.tolist() == [[1.0]]
    absent = TopicConfig(5.0, action=PLAIN.action, gripper=GripperSource(topic="/j", joint="thumb"))
    with pytest.raises(ConfigurationError, match="says anything about the gripper"):
        read_tracks(tmp_path / "bag", absent)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            TopicConfig(5.0, image="/cam", action=PLAIN.action),
            "no messages on the image topic /cam",
        ),
        (TopicConfig(5.0, action=ActionSource(topic="/act")), "no messages on the action topic"),
        (TopicConfig(5.0, action=ActionSource(topic=INSTRUCTION)), "is a std_msgs/msg/String"),
        (TopicConfig(5.0, image=ACTION), "is a std_msgs/msg/Float64MultiArray"),
        (TopicConfig(5.0), "0 topics of openvla_ros/msg/VLAAction"),
        (
            TopicConfig(5.0, action=ActionSource(topic=ACTION, rotation="rotvec")),
            "action.rotation has no meaning",
        ),
    ],
)
def test_a_wrong_topic_is_named_beside_what_the_bag_holds(tmp_path, config, message) -> None:
    bag = write_bag(tmp_path / "bag", plain_recording(1))
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_tracks(bag, config)
    assert str(bag) in str(caught.value)


def test_two_cameras_are_a_choice_that_is_the_users(tmp_path) -> None:
    messages = [*plain_recording(1), made.png_image(time_of(0), made.picture(0), "/wrist")]
    with pytest.raises(ConfigurationError, match=r"2 topics.*/camera.*/wrist"):
        read_tracks(write_bag(tmp_path / "bag", messages), PLAIN)


def test_without_an_instruction_topic_a_text_is_asked_for(tmp_path) -> None:
    messages = [said for said in plain_recording(1) if said.topic != INSTRUCTION]
    bag = write_bag(tmp_path / "bag", messages)
    with pytest.raises(ConfigurationError, match="must name the instruction topic"):
        read_tracks(bag, PLAIN)
    text = TopicConfig(5.0, action=PLAIN.action, instruction=InstructionSource(text="push"))
    assert "instruction" not in read_tracks(bag, text)


def test_an_empty_bag_says_so(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="holds no messages"):
        read_tracks(write_bag(tmp_path / "none", [], topics=[(ACTION, ARRAY)]), PLAIN)
    silent = write_bag(tmp_path / "silent", plain_recording(1)[1:], topics=[(INSTRUCTION, TEXT)])
    with pytest.raises(ConfigurationError, match="0 topics of std_msgs/msg/String"):
        read_tracks(silent, PLAIN)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_action_that_is_no_number_is_an_error_with_its_stamp(tmp_path, bad) -> None:
    messages = [*plain_recording(1), made.numbers(time_of(3) + 7, [bad] + [0.0] * 6)]
    bag = write_bag(tmp_path / "bag", messages)
    with pytest.raises(ConfigurationError, match=f"{time_of(3) + 7} ns.*NaN or infinity"):
        read_tracks(bag, PLAIN)
    lenient = TopicConfig(5.0, action=ActionSource(topic=ACTION, skip_non_finite=True))
    assert len(read_tracks(bag, lenient)["action"]) == 4


def test_an_action_that_changes_its_length_is_refused(tmp_path) -> None:
    messages = [*plain_recording(1), made.numbers(time_of(3) + 7, [0.0] * 6)]
    with pytest.raises(ConfigurationError, match="has 6 numbers, and those before it 7"):
        read_tracks(write_bag(tmp_path / "bag", messages), PLAIN)


def test_stamps_that_go_backwards_are_refused(tmp_path) -> None:
    messages = [*plain_recording(1), made.raw_image(time_of(1), made.picture(9), late_ns=10**9)]
    bag = write_bag(tmp_path / "bag", messages)
    with pytest.raises(ConfigurationError, match=f"/camera.*{time_of(1)} ns.*not go backwards"):
        read_tracks(bag, PLAIN)
    assert len(read_tracks(bag, TopicConfig(5.0, stamps="bag", action=PLAIN.action))["image"]) == 5


def test_a_stamp_that_was_never_set_is_refused(tmp_path) -> None:
    messages = [*plain_recording(1), made.raw_image(0, made.picture(9), late_ns=time_of(-1))]
    with pytest.raises(ConfigurationError, match=r"header\.stamp is 0.*stamps: bag"):
        read_tracks(write_bag(tmp_path / "bag", messages), PLAIN)


@pytest.mark.parametrize(("late_s", "word"), [(3600, "behind"), (-5, "ahead of")])
def test_header_and_recorder_must_have_one_clock(tmp_path, late_s, word) -> None:
    late = late_s * 10**9
    messages = [made.text(time_of(0) + late, "push")]
    messages += [made.raw_image(time_of(k), made.picture(k), late_ns=late) for k in range(4)]
    messages += [made.numbers(time_of(k) + late, row(k)) for k in range(4)]
    bag = write_bag(tmp_path / "bag", messages)
    with pytest.raises(ConfigurationError, match=f"/camera are {abs(late_s)}.0 s {word}"):
        read_tracks(bag, PLAIN)
    assert len(read_tracks(bag, TopicConfig(5.0, stamps="bag", action=PLAIN.action))["image"]) == 4


def test_topics_that_all_have_headers_need_no_recorder_clock(tmp_path) -> None:
    messages = [made.raw_image(time_of(k), made.picture(k), late_ns=10**12) for k in range(4)]
    messages += [made.answer(time_of(k), row(k), late_ns=10**12) for k in range(4)]
    assert len(read_tracks(write_bag(tmp_path / "bag", messages), TopicConfig())["action"]) == 4


def test_headers_of_two_clocks_are_refused_although_nothing_needs_the_recorder(tmp_path) -> None:
    """A camera 5 s behind paired with the twists of 5 s before: the offset was never looked at."""
    messages = [
        made.raw_image(time_of(k - 25), made.picture(k), late_ns=5 * 10**9) for k in range(50)
    ]
    messages += [made.twist(time_of(k), [0.1] * 6) for k in range(50)]
    bag = write_bag(tmp_path / "bag", messages)
    config = TopicConfig(
        rate_hz=5.0,
        instruction=InstructionSource(text="push"),
        action=ActionSource(topic=ACTION, rotation="rotvec_rate"),
        gripper=GripperSource(constant=1.0),
    )
    with pytest.raises(ConfigurationError, match=f"{CAMERA} are 5.0 s behind those of {ACTION}"):
        read_tracks(bag, config)
    moved = replace(config, action=replace(config.action, offset_s=-5.0))
    assert len(read_tracks(bag, moved)["image"]) == 50
    assert len(read_tracks(bag, replace(config, stamps="bag"))["image"]) == 50


def test_answers_may_come_long_after_their_images(tmp_path) -> None:
    """A slow policy answered 3 s later, and was taken for a second clock beside a marker."""
    messages = [made.raw_image(time_of(k), made.picture(k)) for k in range(4)]
    messages += [made.answer(time_of(k), row(k), late_ns=3 * 10**9) for k in range(4)]
    messages.append(made.ping(time_of(0), "/mark"))
    config = TopicConfig(split=Splitting(marker="/mark"))
    assert len(read_tracks(write_bag(tmp_path / "bag", messages), config)["action"]) == 4


def test_an_instruction_that_no_prompt_can_hold_names_its_message(tmp_path) -> None:
    messages = [*plain_recording(1), made.text(time_of(2), "two\nlines")]
    bag = write_bag(tmp_path / "bag", messages)
    with pytest.raises(InstructionError, match=f"{INSTRUCTION} at bag time {time_of(2)}"):
        read_tracks(bag, PLAIN)


def test_a_bag_whose_index_promises_more_than_there_is_is_not_whole(tmp_path) -> None:
    bag = write_bag(tmp_path / "bag", plain_recording(1))
    metadata = bag / "metadata.yaml"
    text = metadata.read_text()
    assert text.count("message_count: 4") == 2
    metadata.write_text(text.replace("message_count: 4", "message_count: 5"))
    with pytest.raises(ConfigurationError, match=f"5 messages on {CAMERA}, and 4 can be read"):
        read_tracks(bag, PLAIN)
