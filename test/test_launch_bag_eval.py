"""A bag is replayed through a node that cannot move anything, whatever the arguments say."""

from __future__ import annotations

import pytest
from launch_files import load, nodes, remappings, started

from openvla_ros.errors import ConfigurationError

FILE = "bag_eval.launch.py"


@pytest.fixture
def launch_file():
    return load(FILE)


def included(actions: list) -> dict[str, str]:
    """Arguments given to openvla.launch.py."""
    from launch.actions import IncludeLaunchDescription

    (include,) = (a for a in actions if isinstance(a, IncludeLaunchDescription))
    return dict(include.launch_arguments)


def player_of(actions: list):
    """The action that starts when the node is active, and ends the launch."""
    from launch.actions import RegisterEventHandler
    from launch.event_handlers import OnProcessExit
    from launch_ros.event_handlers import OnStateTransition

    handlers = [a.event_handler for a in actions if isinstance(a, RegisterEventHandler)]
    (starts,) = (h for h in handlers if isinstance(h, OnStateTransition))
    assert any(isinstance(h, OnProcessExit) for h in handlers), "the launch never ends"
    (player,) = starts.entities
    return player


def arguments_of(player) -> list[str]:
    """What the user of a Node action gave its executable."""
    return [str(word) for word in player._Node__arguments]


def test_the_node_is_in_dry_run_on_the_bags_clock_below_its_own_namespace(
    launch_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = included(started(launch_file, monkeypatch, bag="a_bag", checkpoint="a_checkpoint"))
    assert given["motion_enabled"] == "false" and given["use_sim_time"] == "true"
    assert given["namespace"] == "openvla_eval" and given["checkpoint"] == "a_checkpoint"
    assert "twist" not in given, "the twist stays below the namespace"


def test_every_passed_argument_is_one_of_the_included_file(launch_file) -> None:
    main = load("openvla.launch.py")
    assert set(launch_file.PASSED) <= {*main.FORWARDED, *main.OTHERS}
    assert set(launch_file.PASSED) <= set(launch_file.ARGUMENTS)


def test_the_player_starts_when_the_node_is_active_and_ends_the_launch(
    launch_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    player = player_of(started(launch_file, monkeypatch, bag="a_bag", rate="2.0"))
    assert nodes([player]).keys() == {"bag_player"}
    assert remappings(player) == {"/instruction": "/openvla_eval/instruction"}
    assert arguments_of(player)[-2:] == ["--keep", "/instruction"]


def test_a_text_for_the_whole_bag_stands_alone(
    launch_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    player = player_of(started(launch_file, monkeypatch, bag="a_bag", instruction="wipe the table"))
    assert arguments_of(player) == ["a_bag", "--rate", "1.0"]


def test_rosbag2_plays_only_what_the_policy_takes_in(
    launch_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"image": "/cam", "image_transport": "compressed", "instruction_topic": "/task"}
    player = player_of(started(launch_file, monkeypatch, bag="a_bag", player="rosbag2", **given))
    words = ["".join(part.text for part in word) for word in player.cmd]
    assert words[:4] == ["ros2", "bag", "play", "a_bag"]
    topics = words[words.index("--topics") + 1 : words.index("--remap")]
    assert topics == ["/cam/compressed", "/task"]
    assert words[words.index("--clock") + 1] == "200"
    assert words[words.index("--remap") + 1] == "/task:=/openvla_eval/instruction"


def test_what_cannot_be_played_is_refused_by_name(
    launch_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="bag:= is empty"):
        started(launch_file, monkeypatch)
    with pytest.raises(ConfigurationError, match="python, rosbag2"):
        started(launch_file, monkeypatch, bag="a_bag", player="vlc")
