"""Topic files: what they leave out has a default, and a slip of the pen is an error."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from openvla_ros.data.topics import (
    ActionSource,
    GripperSource,
    InstructionSource,
    Splitting,
    TopicConfig,
    read_topic_file,
)
from openvla_ros.errors import ConfigurationError, InstructionError

EXAMPLES = Path(__file__).resolve().parents[1] / "config" / "topics"


def written(folder: Path, content: object) -> Path:
    path = folder / "topics.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_can_be_read(path: Path) -> None:
    assert isinstance(read_topic_file(path), TopicConfig)


def test_the_example_of_our_own_node_states_the_defaults() -> None:
    assert read_topic_file(EXAMPLES / "openvla_node.yaml") == TopicConfig()


def test_the_template_names_every_key() -> None:
    """A key that the template does not show is one that nobody finds."""
    text = (EXAMPLES / "template.yaml").read_text()
    parts = (TopicConfig, InstructionSource, ActionSource, GripperSource, Splitting)
    names = {field.name for part in parts for field in dataclasses.fields(part)}
    absent = {name for name in names if f"{name}:" not in text}
    assert not absent


def test_every_part_of_a_file_arrives(tmp_path) -> None:
    path = written(
        tmp_path,
        {
            "rate_hz": 10,
            "stamps": "bag",
            "image": "/cam",
            "instruction": {"text": "push the block"},
            "action": {"topic": "/a", "columns": [6, 0], "offset_s": -0.05},
            "gripper": {"topic": "/joints", "joint": "finger", "open": 0.04},
            "state": {"topic": "/pose"},
            "split": {"by": "instruction_message", "gap_s": 2, "marker": "/m"},
        },
    )
    config = read_topic_file(path)
    assert (config.rate_hz, config.stamps, config.image) == (10.0, "bag", "/cam")
    assert config.instruction.text == "push the block"
    assert config.action == ActionSource(topic="/a", columns=(6, 0), offset_s=-0.05)
    assert config.gripper == GripperSource(topic="/joints", joint="finger", open=0.04)
    assert config.state.topic == "/pose"
    assert config.split == Splitting("instruction_message", 2.0, "/m")


def test_none_is_a_word_that_may_stand_for_gripper_and_action(tmp_path) -> None:
    config = read_topic_file(written(tmp_path, "gripper: none\naction: none\n"))
    assert config.gripper.is_absent and config.gripper.is_given
    assert config.action.is_absent
    assert not TopicConfig().gripper.is_given, "to say nothing is not to say none"


def test_a_configuration_can_be_written_as_json_and_compared() -> None:
    """Replay stores it, and a resumed run must find the same."""
    stored = json.loads(json.dumps(dataclasses.asdict(TopicConfig())))
    assert stored == json.loads(json.dumps(dataclasses.asdict(TopicConfig())))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"imagee": "/cam"}, "no key 'imagee'.*Did you mean image"),
        ({"action": {"topc": "/a"}}, r"no key 'action\.topc'.*Did you mean topic"),
        ({"rate_hz": "five"}, "rate_hz must be a number, not 'five'"),
        ({"rate_hz": True}, "rate_hz must be a number"),
        ({"rate_hz": -1}, "rate_hz is -1"),
        ({"rate_hz": float("nan")}, "rate_hz is nan"),
        ({"image": ["/cam"]}, "image must be a text"),
        ({"image": [1, 2]}, "image must be a text"),
        ({"action": {"columns": [0, 0]}}, "different columns"),
        ({"action": {"columns": [-1]}}, "counted from 0"),
        ({"action": {"columns": "all"}}, "list of whole numbers"),
        ({"action": {"rotation": "quaternion"}}, "'euler_rate', 'rotvec_rate'"),
        ({"action": {"differences": 1}}, "true or false"),
        ({"action": ["/a"]}, "action must hold keys and values"),
        ({"stamps": "receive"}, "'header', 'bag'"),
        ({"split": {"by": "episode"}}, "'instruction_change', 'instruction_message'"),
        ({"split": {"gap_s": -1}}, "gap_s is -1"),
        ({"instruction": {"topic": "/i", "text": "t"}}, "not both"),
        ({"gripper": {"closed": 1, "open": 1}}, "two different numbers"),
        ({"gripper": {"constant": 2}}, "gripper.constant is 2"),
        ({"gripper": {"constant": 1, "topic": "/g"}}, "not both"),
        ({"gripper": {"column": 6}}, r"there is none\. Name it under gripper\.topic"),
        ({"gripper": {"closed": 1, "open": 0}}, "closed and open say how"),
        ({"gripper": {"constant": 1, "joint": "finger"}}, "joint, closed and open say how"),
        ({"instruction": {"text": "  "}}, r"instruction\.text is blank"),
        ("just words", "the file must hold keys and values"),
        ("", "the file must hold keys and values"),
        ("a: [", "cannot be read as a topic file"),
        ("action:\n  topic: /a\n  topic: /b\n", "the key 'topic' stands there twice"),
    ],
)
def test_a_mistake_is_named_with_the_file(tmp_path, content, message) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_topic_file(path)
    assert str(path) in str(caught.value)


def test_a_task_that_no_prompt_can_hold_is_named_with_the_file(tmp_path) -> None:
    path = written(tmp_path, {"instruction": {"text": "do\nit"}})
    with pytest.raises(InstructionError, match=str(path)):
        read_topic_file(path)


def test_a_missing_file_points_to_the_template(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"template\.yaml"):
        read_topic_file(tmp_path / "absent.yaml")


def test_a_text_that_no_prompt_can_hold_is_refused() -> None:
    with pytest.raises(InstructionError):
        InstructionSource(text="two\nlines")
