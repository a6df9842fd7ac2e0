"""The monitor shows what arrived, how old it is, and never a number that nobody sent."""

from __future__ import annotations

import math
from types import SimpleNamespace as Message

import numpy as np
import pytest

from openvla_ros.control.states import Drop, Reason, State
from openvla_ros.ros.monitor_view import DASH, TOPICS, MonitorState, enum_names, latency_s

NAMES = {"state": enum_names(State), "reason": enum_names(Reason), "drop_reason": enum_names(Drop)}


def vector(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Message:
    return Message(x=x, y=y, z=z)


def stamp(seconds: float) -> Message:
    whole = math.floor(seconds)
    return Message(sec=whole, nanosec=round((seconds - whole) * 1e9))


def status(**changes: object) -> Message:
    values = {
        "state": State.RUNNING,
        "reason": Reason.OK,
        "detail": "",
        "motion_enabled": True,
        "instruction": "put spoon on towel",
        "image_age": 0.05,
        "image_rate": 5.0,
        "interventions": "",
    }
    return Message(**(values | changes))


def action(**changes: object) -> Message:
    values = {
        "header": Message(stamp=stamp(10.0)),
        "inference_end": stamp(10.25),
        "inference_ms": 180.0,
        "passes": 2,
        "drafts_accepted": 3,
        "token_ids": [31800, 31900, 5],
        "invalid_dims": [],
        "is_valid": True,
        "delta_position": vector(0.012, -0.003, 0.0),
        "delta_rotation": vector(0.0, 0.0, math.radians(4.0)),
        "raw": [0.1] * 7,
        "gripper": 0.9,
        "gripper_open": True,
        "executed": True,
        "drop_reason": Drop.NONE,
    }
    return Message(**(values | changes))


def twist(linear: Message) -> Message:
    return Message(twist=Message(linear=linear, angular=vector()))


def pose(x: float, quaternion=(0.0, 0.0, 0.0, 1.0)) -> Message:
    a, b, c, d = quaternion
    return Message(pose=Message(position=vector(x), orientation=Message(x=a, y=b, z=c, w=d)))


def texts(state: MonitorState, now_s: float) -> dict[str, str]:
    return {row.label: row.text for row in state.rows(now_s)}


def test_before_anything_arrives_there_are_dashes_and_no_digits() -> None:
    state = MonitorState(NAMES)
    for row in state.rows(5.0):
        assert DASH in row.text, row
        assert not any(character.isdigit() for character in row.text), row
    assert not any(character.isdigit() for character in state.plain_line(5.0))


def test_an_answer_is_shown_in_millimetres_degrees_and_seconds() -> None:
    state = MonitorState(NAMES)
    state.receive("action", action(), 1.0)
    shown = texts(state, 1.1)
    assert "+12.0" in shown["action"]
    assert "-3.0" in shown["action"]
    assert "+4.00" in shown["action"]
    assert "open" in shown["action"]
    assert shown["latency"] == "0.25 s, model 180 ms, 2 passes, 3 drafted ids right"
    assert shown["tokens"] == "31800 31900 5"
    assert shown["result"] == "executed"
    assert latency_s(action()) == pytest.approx(0.25)


def test_ids_outside_the_action_range_are_marked() -> None:
    state = MonitorState(NAMES)
    state.receive(
        "action",
        action(invalid_dims=[2], is_valid=False, executed=False, drop_reason=Drop.INVALID_TOKEN),
        1.0,
    )
    rows = {row.label: row for row in state.rows(1.0)}
    assert rows["tokens"].text == "31800 31900 5!"
    assert rows["tokens"].level == "bad"
    assert rows["result"].text == "not executed: INVALID_TOKEN"
    assert state.executed == 0


def test_unknown_units_show_the_raw_numbers_and_say_so() -> None:
    state = MonitorState(NAMES)
    nowhere = vector(math.nan, math.nan, math.nan)
    state.receive("action", action(delta_position=nowhere, delta_rotation=nowhere), 1.0)
    assert "dataset units" in texts(state, 1.0)["action"]
    assert "mm" not in texts(state, 1.0)["action"]


def test_a_topic_that_falls_silent_says_for_how_long() -> None:
    state = MonitorState(NAMES)
    state.receive("twist", twist(vector(0.1)), 1.0)
    assert "+100.0" in texts(state, 1.2)["twist"]
    assert texts(state, 9.0)["twist"] == f"{DASH}  (silent for 8.0 s)"


def test_a_gripper_that_has_nothing_to_do_is_not_called_silent() -> None:
    state = MonitorState(NAMES)
    state.receive("gripper", Message(opening=0.25), 1.0)
    assert texts(state, 60.0)["gripper command"] == "25 % open"


def test_the_image_age_grows_while_the_status_is_silent() -> None:
    state = MonitorState(NAMES)
    state.receive("status", status(image_age=0.5), 1.0)
    assert texts(state, 1.4)["image age"] == "0.50 s"
    assert texts(state, 4.0)["image age"] == "3.50 s"


def test_an_unknown_image_age_is_a_dash() -> None:
    state = MonitorState(NAMES)
    state.receive("status", status(image_age=math.nan), 1.0)
    assert texts(state, 1.0)["image age"] == DASH


def test_states_and_reasons_are_words_with_the_detail() -> None:
    state = MonitorState(NAMES)
    stale = status(state=State.HOLD, reason=Reason.STALE_IMAGE, detail="newest image is 2.1 s old")
    state.receive("status", stale, 1.0)
    assert texts(state, 1.0)["state"] == "HOLD STALE_IMAGE: newest image is 2.1 s old"
    state.receive("status", status(motion_enabled=False), 2.0)
    assert texts(state, 2.0)["state"] == "RUNNING  (dry run)"


def test_what_limits_and_stops_changed_is_counted() -> None:
    state = MonitorState(NAMES)
    state.receive("status", status(), 1.0)
    assert texts(state, 1.1)["limited by"] == f"{DASH} nothing"
    state.receive("status", status(interventions="speed 3, workspace 41"), 2.0)
    assert texts(state, 2.1)["limited by"] == "speed 3, workspace 41"


def test_rates_come_from_arrivals_and_vanish_with_them() -> None:
    state = MonitorState(NAMES)
    for count in range(101):
        state.receive("twist", twist(vector()), count / 50)
    assert state.rate_hz("twist", 2.0) == pytest.approx(50.0)
    assert "twist 50.0 Hz" in texts(state, 2.0)["rates"]
    assert math.isnan(state.rate_hz("twist", 60.0))
    assert f"twist {DASH}" in texts(state, 60.0)["rates"]


def test_moving_and_resting_twists_are_told_apart() -> None:
    state = MonitorState(NAMES)
    state.receive("twist", twist(vector()), 0.0)
    assert state.moving_twists == 0
    state.receive("twist", twist(vector(z=-0.01)), 0.1)
    assert state.moving_twists == 1
    assert state.counts["twist"] == 2


def test_the_pose_shows_the_turn_since_the_start() -> None:
    state = MonitorState(NAMES)
    state.receive("pose", pose(0.3, (1.0, 0.0, 0.0, 0.0)), 0.0)
    assert "turned   +0.0   +0.0   +0.0°" in texts(state, 0.0)["integrated pose"]
    half = np.sqrt(0.5)
    state.receive("pose", pose(0.4, (half, half, 0.0, 0.0)), 0.1)  # yawed by 90 degrees
    assert "+90.0" in texts(state, 0.1)["integrated pose"]
    assert "+0.400" in texts(state, 0.1)["integrated pose"]


def test_every_topic_can_be_received_and_drawn() -> None:
    state = MonitorState(NAMES)
    messages = {
        "status": status(),
        "action": action(),
        "twist": twist(vector()),
        "gripper": Message(opening=1.0),
        "pose": pose(0.0),
        "opening": Message(data=0.5),
    }
    assert set(messages) == set(TOPICS)
    for topic, message in messages.items():
        state.receive(topic, message, 1.0)
    line = state.plain_line(1.0)
    assert "\n" not in line
    for part in ("RUNNING", "31800", "+12.0", "executed", "pose"):
        assert part in line


@pytest.mark.ros
def test_a_twist_that_was_remapped_is_followed() -> None:
    """On a robot the twist goes to its controller's topic; the monitor showed "no data"."""
    import rclpy

    from openvla_ros.ros.monitor import MonitorNode

    rclpy.init()
    try:
        monitor = MonitorNode("openvla_node", "/servo_node/delta_twist_cmds")
        topics = {subscription.topic_name for subscription in monitor.subscriptions}
        monitor.destroy_node()
    finally:
        rclpy.shutdown()
    assert "/servo_node/delta_twist_cmds" in topics
    assert "/openvla_node/twist_cmd" not in topics
