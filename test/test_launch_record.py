"""record.launch.py: which topics, how they are heard, and the command for each distribution."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from launch_files import load, started

from openvla_ros.errors import ConfigurationError


@pytest.fixture
def record_file():
    return load("record.launch.py")


@pytest.fixture
def launch_file():
    return load("openvla.launch.py")


def recording(record_file, monkeypatch: pytest.MonkeyPatch, **given: str) -> list[str]:
    (process,) = started(record_file, monkeypatch, **given)
    return ["".join(part.text for part in word) for word in process.cmd]


def test_a_recording_has_what_replay_and_fine_tuning_need(
    record_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = recording(record_file, monkeypatch)
    assert command[:5] == ["ros2", "bag", "record", "-s", "mcap"]
    assert set(command) >= {
        "/image", "/camera_info", "/instruction", "/ee_pose", "/joint_states", "/tf", "/tf_static",
        "/diagnostics", "/openvla_node/twist_cmd", "/openvla_node/gripper_cmd",
        "/openvla_node/action", "/openvla_node/status", "/openvla_node/active_instruction",
        "/openvla_node/teleop_twist",
    }  # fmt: skip
    assert "-o" not in command and "--use-sim-time" not in command


def test_a_recording_follows_names_and_transport(
    record_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = recording(
        record_file,
        monkeypatch,
        namespace="/left",
        image="/camera/color/image_raw",
        image_transport="compressed",
        twist="/servo_node/delta_twist_cmds",
        ee_pose="current_pose",
        extra="/wrist/image_raw depth",
        bag="run_1",
        use_sim_time="true",
    )
    topics = set(command)
    assert topics >= {
        "/camera/color/image_raw/compressed",
        "/camera/color/camera_info",
        "/servo_node/delta_twist_cmds",
        "/left/openvla_node/action",
        "/left/current_pose",
        "/wrist/image_raw",
        "/left/depth",
    }
    assert "/camera/color/image_raw" not in topics
    assert command[command.index("-o") + 1] == "run_1" and "--use-sim-time" in command
    with pytest.raises(ConfigurationError, match="both"):
        recording(record_file, monkeypatch, image_transport="theora")


def test_topics_come_without_a_flag_on_humble(record_file, monkeypatch: pytest.MonkeyPatch) -> None:
    for distribution, has_flag in (("humble", False), ("jazzy", True), ("kilted", True)):
        monkeypatch.setenv("ROS_DISTRO", distribution)
        command = recording(record_file, monkeypatch)
        assert ("--topics" in command) == has_flag
        assert all(word.startswith("/") for word in command[-10:])


def profiles_of(command: list[str]) -> dict:
    path = Path(command[command.index("--qos-profile-overrides-path") + 1])
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_every_qos_profile_belongs_to_a_recorded_topic(
    record_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = recording(record_file, monkeypatch, image_transport="both")
    assert set(profiles_of(command)) <= set(command)


def test_qos_profiles_follow_renamed_topics(record_file, monkeypatch: pytest.MonkeyPatch) -> None:
    command = recording(record_file, monkeypatch, image="/cam/image_raw", namespace="left")
    profiles = profiles_of(command)
    assert profiles["/cam/image_raw"]["reliability"] == "best_effort"
    assert profiles["/cam/camera_info"]["reliability"] == "best_effort"
    assert profiles["/left/openvla_node/status"]["durability"] == "transient_local"
    assert set(profiles) <= set(command)


def test_the_recorder_is_heard_by_our_publishers(
    record_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the bag would lack the topic, and nobody would notice before the training."""
    pytest.importorskip("rclpy", reason="needs ROS; run `make setup`")
    from rclpy.qos import (
        DurabilityPolicy,
        QoSCompatibility,
        QoSProfile,
        ReliabilityPolicy,
        qos_check_compatible,
    )

    from openvla_ros.ros import qos

    profiles = profiles_of(recording(record_file, monkeypatch, image_transport="both"))
    offered = {
        "/image": qos.IMAGE,
        "/openvla_node/twist_cmd": qos.TWIST,
        "/openvla_node/pose_cmd": qos.POSE,
        "/openvla_node/gripper_cmd": qos.GRIPPER,
        "/openvla_node/action": qos.ACTION,
        "/openvla_node/status": qos.LATCHED,
        "/openvla_node/active_instruction": qos.LATCHED,
        "/instruction": qos.LATCHED,
    }
    for topic, publisher in offered.items():
        wanted = profiles[topic]
        subscriber = QoSProfile(
            depth=wanted["depth"],
            reliability=ReliabilityPolicy.get_from_short_key(wanted["reliability"]),
            durability=DurabilityPolicy.get_from_short_key(wanted["durability"]),
        )
        compatible, why = qos_check_compatible(publisher, subscriber)
        assert compatible != QoSCompatibility.ERROR, f"{topic}: {why}"


def test_a_recorder_that_is_included_gets_only_arguments_that_mean_the_same(
    launch_file, record_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launch shares arguments with what it includes: `instruction` was once a text and a topic."""
    own = {*launch_file.FORWARDED, *launch_file.OTHERS}
    assert own & set(record_file.ARGUMENTS) == {
        "namespace", "image", "image_transport", "ee_pose", "twist", "pose", "use_sim_time",
    }  # fmt: skip
    from launch.actions import IncludeLaunchDescription

    def included(**given: str) -> list:
        actions = started(launch_file, monkeypatch, **given)
        return [a for a in actions if isinstance(a, IncludeLaunchDescription)]

    assert included() == [] and included(record="false") == []
    for record, bag in (("true", ""), ("/data/run", "/data/run")):
        (action,) = included(record=record, image="/cam")
        passed = dict(action.launch_arguments)
        assert passed["bag"] == bag and passed["image"] == "/cam"
        assert set(passed) <= set(record_file.ARGUMENTS)
