"""Which topics of a bag are camera, instruction, action, gripper and state: one YAML file.

This file knows no bag: what a topic really holds is checked when one is read.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from openvla_ros.errors import ConfigurationError, InstructionError
from openvla_ros.messages import check_instruction

NONE = "none"  # what a user writes where a part does not exist

STAMPS = ("header", "bag")
TWIST_ROTATIONS = ("euler_rate", "rotvec_rate")
DIFFERENCE_ROTATIONS = ("euler_difference", "euler", "rotvec")
ROTATION_FORMS = ("euler_xyz", "rotvec")
SPLIT_BY = ("instruction_change", "instruction_message")


@dataclass(frozen=True)
class InstructionSource:
    """Where the task comes from: a topic of std_msgs/String, or one text for the whole bag.

    Attributes:
        topic: "" = that of the answers (VLAAction), else the only topic of this type.
        text: Used in place of a topic.
    """

    topic: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        if self.topic and self.text:
            raise ConfigurationError(
                "instruction: give a topic or a text, not both: which of them would hold?"
            )
        if self.text and not check_instruction(self.text):
            raise ConfigurationError("instruction.text is blank. Write the task, or leave it out.")


@dataclass(frozen=True)
class ActionSource:
    """Where the recorded action comes from; the type of the topic says how it is read.

    Attributes:
        topic: TwistStamped: velocity in base axes, integrated over each step. PoseStamped: how far
            the pose moves until the next step. Float64MultiArray: the numbers themselves.
            VLAAction: `raw`. "" = the only VLAAction topic; "none" = nothing was recorded.
        columns: Of a Float64MultiArray: which numbers, in which order; () = all.
        differences: The numbers of a Float64MultiArray are x y z roll pitch yaw of a pose; the
            action is how far they move until the next step, as OpenVLA relabels BridgeData.
        rotation: What the rotation is. TwistStamped: euler_rate (rates of roll, pitch, yaw) or
            rotvec_rate (angular velocity). Poses: euler_difference (roll, pitch, yaw subtracted),
            euler (roll, pitch, yaw of the turn between the poses) or rotvec (its vector).
        rotation_form: How a turn made of rotvec_rate is written: euler_xyz or rotvec.
        hold_s: A velocity lasts until the next one, and at most so long; 0 = one and a half steps.
        offset_s: Added to the stamps of the topic: negative where an action is stamped later than
            the image that it answers.
        skip_non_finite: Treat an action with NaN or infinity as not recorded; else it is an error.
    """

    topic: str = ""
    columns: tuple[int, ...] = ()
    differences: bool = False
    rotation: str = ""
    rotation_form: str = "euler_xyz"
    hold_s: float = 0.0
    offset_s: float = 0.0
    skip_non_finite: bool = False

    def __post_init__(self) -> None:
        _require_choice(
            "action.rotation", self.rotation, ("", *TWIST_ROTATIONS, *DIFFERENCE_ROTATIONS)
        )
        _require_choice("action.rotation_form", self.rotation_form, ROTATION_FORMS)
        _require_columns("action.columns", self.columns)
        _require_range("action.hold_s", self.hold_s, 0.0, 60.0)
        _require_range("action.offset_s", self.offset_s, -60.0, 60.0)

    @property
    def is_absent(self) -> bool:
        """The user has said that nothing was recorded."""
        return self.topic == NONE


@dataclass(frozen=True)
class GripperSource:
    """Where the last number of the action comes from, if the action topic has no gripper.

    Attributes:
        topic: Float64, one column of a Float64MultiArray, GripperCommand (`opening`), or one joint
            of a JointState. "" = nothing said; "none" = there is no gripper: six numbers.
        column: Of a Float64MultiArray, from 0.
        joint: Name in a JointState.
        closed: Value of the topic at which the gripper is closed: 0 of the action.
        open: Value of the topic at which the gripper is open: 1 of the action.
        constant: In place of a topic: 0 ... 1 for the whole bag.
    """

    topic: str = ""
    column: int = -1
    joint: str = ""
    closed: float = 0.0
    open: float = 1.0
    constant: float | None = None

    def __post_init__(self) -> None:
        if self.closed == self.open or not math.isfinite(self.closed + self.open):
            raise ConfigurationError(
                f"gripper: closed ({self.closed}) and open ({self.open}) must be two different "
                "numbers: the values of the topic at both ends."
            )
        if self.constant is not None:
            _require_range("gripper.constant", self.constant, 0.0, 1.0)
            if self.topic:
                raise ConfigurationError("gripper: give a topic or a constant, not both.")

    @property
    def is_absent(self) -> bool:
        """The user has said that there is no gripper."""
        return self.topic == NONE

    @property
    def is_given(self) -> bool:
        """The user has said something, be it "none"."""
        return bool(self.topic) or self.constant is not None


@dataclass(frozen=True)
class StateSource:
    """Where the pose of the end effector comes from, beside the action.

    Attributes:
        topic: PoseStamped, or Float64MultiArray with x y z [m] roll pitch yaw [rad] gripper.
            "" = no state.
        columns: Of a Float64MultiArray: which numbers, in which order; () = all.
    """

    topic: str = ""
    columns: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require_columns("state.columns", self.columns)


@dataclass(frozen=True)
class Splitting:
    """Where one episode ends and the next begins.

    Attributes:
        by: instruction_change: at an instruction with another text. instruction_message: at every
            instruction, also one that repeats the text.
        gap_s: At a pause of the camera longer than this; 0 = never.
        marker: std_msgs/Empty: every message begins an episode, what comes before the first is left
            out. std_msgs/Bool: an episode lasts from true to false. "" = no marker.
    """

    by: str = "instruction_change"
    gap_s: float = 1.0
    marker: str = ""

    def __post_init__(self) -> None:
        _require_choice("split.by", self.by, SPLIT_BY)
        _require_range("split.gap_s", self.gap_s, 0.0, 1e6)


@dataclass(frozen=True)
class TopicConfig:
    """How a bag is read. The defaults read what our own node answered (`VLAAction`).

    Attributes:
        rate_hz: Steps per second of the episodes: the rate of the dataset. 0 = what the answers
            say (`action_dt`); every other action needs a number.
        stamps: header: `header.stamp` where a type has one, else the bag's time. bag: the time at
            which the recorder got the message, for every topic.
        image: Image or CompressedImage; "" = the only topic of these types.
        instruction: Where the task comes from.
        action: Where the action comes from.
        gripper: Where its last number comes from.
        state: Where the pose of the end effector comes from.
        split: Where episodes begin and end.
    """

    rate_hz: float = 0.0
    stamps: str = "header"
    image: str = ""
    instruction: InstructionSource = field(default_factory=InstructionSource)
    action: ActionSource = field(default_factory=ActionSource)
    gripper: GripperSource = field(default_factory=GripperSource)
    state: StateSource = field(default_factory=StateSource)
    split: Splitting = field(default_factory=Splitting)

    def __post_init__(self) -> None:
        _require_range("rate_hz", self.rate_hz, 0.0, 1000.0)
        _require_choice("stamps", self.stamps, STAMPS)
        has_topic = bool(self.gripper.topic) and not self.gripper.is_absent
        how = replace(self.gripper, topic="", constant=None)
        if how != GripperSource() and not has_topic:
            raise ConfigurationError(
                "gripper: column, joint, closed and open say how a topic is read, and there is "
                "none. Name it under gripper.topic, or leave them out."
            )


def read_topic_file(path: Path) -> TopicConfig:
    """Return the topics that a YAML file names; what it leaves out has its default.

    Raises:
        ConfigurationError: Not readable, an unknown key, or a bad value.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"{path} cannot be read as a topic file ({type(error).__name__}: {error}). "
            "config/topics/template.yaml is one to copy."
        ) from error
    try:
        return _built(TopicConfig, content, "")
    except (ConfigurationError, InstructionError) as error:
        raise type(error)(f"{path}: {error}") from error


class _Loader(yaml.SafeLoader):
    """YAML takes the last of two equal keys: a line that was to be replaced stays, unnoticed."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node; two equal keys are an error of the file."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                words = f"the key {key!r} stands there twice; which of them would hold?"
                raise yaml.constructor.ConstructorError(None, None, words, node.start_mark)
        return super().construct_mapping(node, deep)


_Part = TypeVar("_Part")


def _built(part: type[_Part], content: Any, where: str) -> _Part:
    """An instance of a dataclass from the mapping that YAML gave; `where` is the key's path."""
    if where == "gripper" and content == NONE:  # a word in place of the mapping
        content = {"topic": NONE}
    if where == "action" and content == NONE:
        content = {"topic": NONE}
    if not isinstance(content, Mapping):
        raise ConfigurationError(
            f"{where or 'the file'} must hold keys and values, not {content!r}."
        )
    known = get_type_hints(part)
    values = {}
    for key, value in content.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ConfigurationError(
                f"there is no key {name!r}; allowed here: {', '.join(known)}.{hint}"
            )
        values[str(key)] = _checked(known[key], value, name)
    return part(**values)


def _checked(kind: Any, value: Any, name: str) -> Any:
    if kind in (InstructionSource, ActionSource, GripperSource, StateSource, Splitting):
        return _built(kind, value, name)
    if (
        kind in (float, float | None)
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    ):
        return float(value)
    if kind in (str, bool) and isinstance(value, kind):
        return value
    if kind is int and _is_integer(value):
        return value
    is_list = isinstance(value, list) and all(_is_integer(item) for item in value)
    if kind == tuple[int, ...] and is_list:
        return tuple(value)
    words: dict[Any, str] = {
        float: "a number",
        float | None: "a number",
        str: "a text",
        bool: "true or false",
        int: "a whole number",
    }
    expected = words.get(kind, "a list of whole numbers")
    raise ConfigurationError(f"{name} must be {expected}, not {value!r}.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        listing = ", ".join(repr(choice) for choice in allowed)
        raise ConfigurationError(f"{name} is {value!r}; allowed: {listing}.")


def _require_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigurationError(f"{name} is {value}; allowed: {low:g} to {high:g}.")


def _require_columns(name: str, columns: tuple[int, ...]) -> None:
    if any(column < 0 for column in columns) or len(set(columns)) != len(columns):
        raise ConfigurationError(
            f"{name} is {list(columns)}; it must list different columns, counted from 0."
        )
