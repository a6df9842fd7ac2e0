"""Which tasks a recording holds, how they are written, and how many demonstrations each has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openvla_ros.errors import InstructionError
from openvla_ros.messages import check_instruction
from openvla_ros.types import Finding

SECTION = "Language"

LEAST_DEMONSTRATIONS = 50  # of one task, for fine-tuning: a rule of thumb, not a measurement
LONG_BYTES = 200  # OpenVLA's training instructions stay below
LEAST_STEPS = 5  # an episode of a second at 5 Hz
QUOTED = 60  # characters of a text in a finding
LISTED = 5
_NOT_A_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Task:
    """One instruction, exactly as recorded.

    Attributes:
        instruction: The text.
        episodes: How many have it.
        steps: In all of them.
    """

    instruction: str
    episodes: int
    steps: int


@dataclass(frozen=True)
class Language:
    """All tasks of a recording.

    Attributes:
        tasks: The most frequent first.
        spellings: Groups of texts that differ only in case, spaces or punctuation.
        refused: Text to why a prompt cannot hold it.
        length_steps: Shortest, median and longest episode.
        short: Names of episodes with fewer than `LEAST_STEPS` steps.
    """

    tasks: tuple[Task, ...]
    spellings: tuple[tuple[str, ...], ...]
    refused: dict[str, str]
    length_steps: tuple[int, float, int]
    short: tuple[str, ...]


def measure_language(
    names: Sequence[str], instructions: Sequence[str], steps: Sequence[int]
) -> Language:
    """Return the inventory of at least one episode; one entry per episode in each argument."""
    episodes: Counter[str] = Counter(instructions)
    total: Counter[str] = Counter()
    for instruction, count in zip(instructions, steps, strict=True):
        total[instruction] += count
    refused = {}
    groups: dict[str, list[str]] = {}
    for instruction in episodes:
        try:
            check_instruction(instruction)
        except InstructionError as error:
            refused[instruction] = str(error)
        groups.setdefault(plain_words(instruction), []).append(instruction)
    return Language(
        tasks=tuple(Task(text, count, total[text]) for text, count in episodes.most_common()),
        spellings=tuple(tuple(sorted(group)) for group in groups.values() if len(group) > 1),
        refused=refused,
        length_steps=(min(steps), float(np.median(steps)), max(steps)),
        short=tuple(n for n, count in zip(names, steps, strict=True) if count < LEAST_STEPS),
    )


def plain_words(instruction: str) -> str:
    """Return the words in lower case with one space between: what a spelling has in common."""
    return _NOT_A_WORD.sub(" ", instruction.casefold()).strip()


def judge_language(language: Language) -> list[Finding]:
    """Return what is to be said about instructions and the amount of data."""
    return [
        *_inventory(language),
        *_empty(language),
        *_spelling(language),
        *_text(language),
        _demonstrations(language),
        _length(language),
    ]


def _inventory(language: Language) -> list[Finding]:
    count, episodes = len(language.tasks), sum(task.episodes for task in language.tasks)
    listed = ", ".join(f"{quoted(t.instruction)} {t.episodes}" for t in language.tasks[:LISTED])
    more = f" and {count - LISTED} more" if count > LISTED else ""
    value = f"{count} in {episodes} episodes"
    return [Finding(SECTION, "instructions", value, f"{listed}{more}")]


def _empty(language: Language) -> list[Finding]:
    empty = sum(task.episodes for task in language.tasks if not task.instruction.strip())
    if not empty:
        return []
    reason = (
        "OpenVLA is told the task by words. Give one (instruction.text in the topic file), or "
        "leave these episodes out."
    )
    value = f"{empty} episodes without a task"
    return [Finding(SECTION, "empty instructions", value, reason, "problem")]


def _spelling(language: Language) -> list[Finding]:
    findings = []
    if language.spellings:
        examples = "; ".join(
            " = ".join(map(quoted, group)) for group in language.spellings[:LISTED]
        )
        reason = (
            "To the model these are different prompts, and a full stop has turned success into "
            f"failure. Choose one spelling, here and on the robot: {examples}."
        )
        value = f"{len(language.spellings)} tasks are written in several ways"
        findings.append(Finding(SECTION, "instruction spelling", value, reason, "warn"))
    untidy = [
        task.instruction
        for task in language.tasks
        if task.instruction.strip() and task.instruction != tidy(task.instruction)
    ]
    if untidy:
        reason = (
            "Outer or double spaces, or a full stop at the end: the operator must write it exactly "
            f"so, or the prompt is another one. {', '.join(map(quoted, untidy[:LISTED]))}"
        )
        value = f"{len(untidy)} of {len(language.tasks)} texts"
        findings.append(Finding(SECTION, "untidy instructions", value, reason, "warn"))
    return findings


def tidy(instruction: str) -> str:
    """Return an instruction with single spaces inside, none outside, and no full stop."""
    return " ".join(instruction.split()).rstrip(".").rstrip()


def _text(language: Language) -> list[Finding]:
    findings = []
    if language.refused:
        text, why = next(iter(language.refused.items()))
        value = f"{len(language.refused)} texts that a prompt cannot hold"
        reason = f"{quoted(text)}: {why}"
        findings.append(Finding(SECTION, "refused instructions", value, reason, "problem"))
    long = [t.instruction for t in language.tasks if len(t.instruction.encode()) > LONG_BYTES]
    if long:
        value = f"{len(long)} texts of more than {LONG_BYTES} bytes"
        reason = f"OpenVLA was trained on short orders: {quoted(long[0])}."
        findings.append(Finding(SECTION, "long instructions", value, reason, "warn"))
    return findings


def _demonstrations(language: Language) -> Finding:
    few = [task for task in language.tasks if task.episodes < LEAST_DEMONSTRATIONS]
    counts = [task.episodes for task in language.tasks]
    value = f"{min(counts)} to {max(counts)} episodes per task"
    if not few:
        return Finding(SECTION, "demonstrations", value)
    reason = (
        f"{len(few)} of {len(counts)} tasks have fewer than {LEAST_DEMONSTRATIONS} demonstrations, "
        "about what fine-tuning on one task takes. Replay needs no more; training does."
    )
    return Finding(SECTION, "demonstrations", value, reason, "warn")


def _length(language: Language) -> Finding:
    shortest, median, longest = language.length_steps
    value = f"{shortest} to {longest} steps, median {median:g}"
    if not language.short:
        return Finding(SECTION, "episode length", value)
    reason = (
        f"{len(language.short)} episodes of fewer than {LEAST_STEPS} steps: recordings that were "
        f"broken off, or split in the middle? {', '.join(language.short[:LISTED])}"
    )
    return Finding(SECTION, "episode length", value, reason, "warn")


def quoted(text: str) -> str:
    """Return a text in quotes, cut, with what is no plain character written out."""
    return repr(text if len(text) <= QUOTED else f"{text[: QUOTED - 1]}…")
