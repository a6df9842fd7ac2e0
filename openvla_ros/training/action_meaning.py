"""What the numbers of a trained action mean, as far as a run can know it.

What the data does not say stays None, and the robot asks for it before it moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from openvla_ros.action_specs import TRAINING_SOURCE, load_action_spec
from openvla_ros.data.episode import Episode
from openvla_ros.data.sources import BAG, find_recordings, source_kind
from openvla_ros.data.topics import ActionSource, TopicConfig, read_topic_file
from openvla_ros.training.config import DataConfig, SourceConfig
from openvla_ros.training.datasets import TrainingSet, training_sources
from openvla_ros.types import ActionSpec

_SEVEN = 7
_DISPLACEMENT: dict[str, Any] = {
    "kind": "eef_delta",
    "translation_frame": "base",
    "rotation_frame": "base",
    "rotation_form": "euler_xyz",
    "translation_unit_m": 1.0,
    "rotation_unit_rad": 1.0,
}
_GRIPPER = {"gripper_open": 1.0, "gripper_closed": 0.0}


def describe_sets(data: DataConfig, sets: Sequence[TrainingSet]) -> dict[str, ActionSpec]:
    """Return statistics key -> what is known about its actions.

    Args:
        data: Of the run.
        sets: From `open_training_sets`.
    """
    sources = training_sources(data)
    return {
        one.name: describe_actions(source, one.episodes)
        for source, one in zip(sources, sets, strict=True)
    }


def describe_actions(source: SourceConfig, episodes: Sequence[Episode]) -> ActionSpec:
    """Return what is known about the actions of a source.

    That is what is published under its name, or under that of its transform; above it what its run
    has made; above that what the user has said.

    Args:
        source: How its actions came to be.
        episodes: Its episodes, as they are trained on: their rate is that of the actions.
    """
    published = load_action_spec(source.name)
    if source.transform and not published.sources:
        published = replace(load_action_spec(source.transform), unnorm_key=source.name)
    made = _made_values(source, episodes)
    spec = load_action_spec(
        source.name, made, stored={source.name: published}, source=TRAINING_SOURCE
    )
    return load_action_spec(source.name, source.action_spec, stored={source.name: spec})


def open_questions(specs: Mapping[str, ActionSpec]) -> list[str]:
    """Return what the robot will ask for, one text per source that leaves something open."""
    return [
        f"{name}: nobody says what {', '.join(unknown)} of its actions are, and the robot asks for "
        "them before it moves. Say it in action_spec of the source: a finished run that is started "
        "again only writes it down."
        for name, spec in specs.items()
        if (unknown := spec.unknown_for_motion())
    ]


def _made_values(source: SourceConfig, episodes: Sequence[Episode]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    topics = _topics(source)
    if topics is not None and episodes[0].actions.shape[1] == _SEVEN and topics.action.rotation:
        # Integrated twists and differences of poses, in metres and radians of the base axes.
        made |= _DISPLACEMENT | {"rotation_form": _rotation_form(topics.action)} | _GRIPPER
    if source.actions == "from_states":
        made |= _DISPLACEMENT
    if source.binarize_gripper:
        made |= _GRIPPER
    rates = {episode.rate_hz for episode in episodes}
    if len(rates) == 1:
        made["action_hz"] = rates.pop()
    return made


def _topics(source: SourceConfig) -> TopicConfig | None:
    first = find_recordings(Path(source.path).expanduser())[0]
    if source_kind(first) != BAG:
        return None
    return read_topic_file(Path(source.topics).expanduser()) if source.topics else TopicConfig()


def _rotation_form(action: ActionSource) -> str:
    if action.rotation == "rotvec_rate":
        return action.rotation_form
    return "rotvec" if action.rotation == "rotvec" else "euler_xyz"
