"""The words of control/ and the constants of the messages are the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from openvla_ros.control.states import Drop, Reason, State

MSG = Path(__file__).resolve().parents[1] / "msg"


def constants(message: str, section: str) -> dict[str, int]:
    """Constants below the comment `# section` of a .msg file."""
    text = (MSG / f"{message}.msg").read_text(encoding="utf-8")
    block = re.split(rf"^# {section}\b.*$", text, flags=re.MULTILINE)[1].split("\n\n")[0]
    return {name: int(value) for name, value in re.findall(r"^uint8 (\w+)=(\d+)", block, re.M)}


@pytest.mark.parametrize(
    ("words", "message", "section"),
    [
        (State, "VLAStatus", "state"),
        (Reason, "VLAStatus", "reason"),
        (Drop, "VLAAction", "drop_reason"),
    ],
)
def test_words_and_constants_agree(words, message: str, section: str) -> None:
    assert {word.name: word.value for word in words} == constants(message, section)


@pytest.mark.parametrize("path", sorted(MSG.glob("*.msg")), ids=lambda path: path.name)
def test_every_field_of_a_message_is_documented(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        is_field = re.match(r"^[\w/]+(\[\])? +\w+", line)
        if is_field and line not in ("uint8 OK=0",):
            assert "#" in line, f"{path.name}: {line}"
