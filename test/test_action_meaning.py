"""What a run can say about its actions, and what it leaves open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_recordings import write_recordings

from openvla_ros.action_specs import TRAINING_SOURCE, USER_SOURCE
from openvla_ros.data.episode import Episode
from openvla_ros.data.sources import open_episodes
from openvla_ros.errors import ConfigurationError
from openvla_ros.training import action_meaning
from openvla_ros.training.action_meaning import describe_actions, open_questions
from openvla_ros.training.config import SourceConfig

TWIST_TOPICS = """\
rate_hz: 5.0
image: /image
instruction: {text: "go"}
action: {topic: /twist, rotation: ROTATION}
gripper: {topic: /gripper}
"""


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("recordings") / "demo")


@pytest.fixture(scope="module")
def episodes(recordings: Path) -> list[Episode]:
    return open_episodes(recordings)


def test_of_recorded_numbers_only_the_rate_is_known(
    recordings: Path, episodes: list[Episode]
) -> None:
    spec = describe_actions(SourceConfig(path=str(recordings), name="my_robot"), episodes)
    assert spec.unnorm_key == "my_robot" and spec.action_hz == 5.0
    assert spec.sources == {"action_hz": TRAINING_SOURCE}
    assert spec.kind is None and spec.gripper_open is None


def test_actions_made_from_poses_are_displacements_of_the_base_axes(
    recordings: Path, episodes: list[Episode]
) -> None:
    source = SourceConfig(
        path=str(recordings), name="my_robot", actions="from_states", binarize_gripper=True
    )
    spec = describe_actions(source, [replace(e, rate_hz=2.5) for e in episodes])
    assert not spec.unknown_for_motion()
    assert (spec.kind, spec.translation_frame, spec.rotation_form) == (
        "eef_delta",
        "base",
        "euler_xyz",
    )
    assert (spec.action_hz, spec.gripper_open, spec.gripper_closed) == (2.5, 1.0, 0.0)
    assert set(spec.sources.values()) == {TRAINING_SOURCE}


def test_what_is_published_under_the_name_stays_and_the_rate_is_the_runs(
    recordings: Path, episodes: list[Episode]
) -> None:
    source = SourceConfig(path=str(recordings), name="bridge_orig")
    spec = describe_actions(source, [replace(e, rate_hz=2.5) for e in episodes])
    assert spec.robot == "WidowX 250" and spec.kind == "eef_delta"
    assert spec.action_hz == 2.5 and spec.sources["action_hz"] == TRAINING_SOURCE
    assert spec.sources["kind"] != TRAINING_SOURCE


def test_the_user_says_what_nothing_else_does(recordings: Path, episodes: list[Episode]) -> None:
    said = {
        "kind": "eef_delta",
        "translation_frame": "base",
        "rotation_frame": "ee",
        "rotation_form": "rotvec",
        "translation_unit_m": 1,
        "rotation_unit_rad": 0.5,
        "gripper_open": 0.0,
        "gripper_closed": 1.0,
        "robot": None,
    }
    source = SourceConfig(path=str(recordings), name="my_robot", action_spec=said)
    spec = describe_actions(source, episodes)
    assert not spec.unknown_for_motion() and not open_questions({"my_robot": spec})
    assert (spec.rotation_frame, spec.rotation_unit_rad, spec.robot) == ("ee", 0.5, None)
    assert spec.sources["kind"] == USER_SOURCE and spec.sources["action_hz"] == TRAINING_SOURCE


def test_what_is_open_is_asked_for_by_name(recordings: Path, episodes: list[Episode]) -> None:
    said = {"kind": "eef_delta", "gripper_open": 1.0, "gripper_closed": 0.0}
    source = SourceConfig(path=str(recordings), name="my_robot", action_spec=said)
    (question,) = open_questions({"my_robot": describe_actions(source, episodes)})
    assert "my_robot: " in question and "translation_frame, rotation_frame" in question
    assert "kind" not in question and "gripper_open" not in question


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"kinds": "eef_delta"}, "'kinds' is not a field of an action spec"),
        ({"kinds": None}, "'kinds' is not a field of an action spec"),
        ({"kind": "delta"}, "kind is 'delta'; allowed: eef_delta, eef_velocity"),
        ({"action_hz": 0}, "action_hz is 0; it must be greater than 0"),
        ({"gripper_open": "wide"}, "gripper_open is 'wide'; it must be a finite number"),
    ],
)
def test_a_meaning_that_is_none_is_refused_before_anything_is_read(
    said: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.sources, my_robot: action_spec") as caught:
        SourceConfig(path="nowhere", name="my_robot", action_spec=said)
    assert named in str(caught.value)


def test_transformed_actions_mean_what_is_published_about_their_dataset(
    episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(action_meaning, "_topics", lambda source: None)
    source = SourceConfig(path="somewhere", name="my_bridge", transform="bridge_orig")
    spec = describe_actions(source, episodes)
    assert spec.unnorm_key == "my_bridge" and spec.kind == "eef_delta"
    assert not spec.unknown_for_motion()


def test_episodes_of_different_rates_leave_the_rate_open(
    recordings: Path, episodes: list[Episode]
) -> None:
    mixed = [episodes[0], replace(episodes[1], rate_hz=10.0)]
    spec = describe_actions(SourceConfig(path=str(recordings), name="my_robot"), mixed)
    assert spec.action_hz is None


@pytest.mark.parametrize(
    ("rotation", "form"),
    [("rotvec_rate", "euler_xyz"), ("euler_rate", "euler_xyz"), ("rotvec", "rotvec")],
)
def test_twists_and_poses_of_a_bag_are_displacements(
    episodes: list[Episode],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rotation: str,
    form: str,
) -> None:
    monkeypatch.setattr(action_meaning, "source_kind", lambda path: action_meaning.BAG)
    topics = tmp_path / "topics.yaml"
    topics.write_text(TWIST_TOPICS.replace("ROTATION", rotation))
    source = SourceConfig(path=str(tmp_path), name="my_robot", topics=str(topics))
    spec = describe_actions(source, episodes)
    assert not spec.unknown_for_motion() and spec.rotation_form == form
    six = [replace(e, actions=np.zeros((len(e), 6))) for e in episodes]
    assert describe_actions(source, six).kind is None
