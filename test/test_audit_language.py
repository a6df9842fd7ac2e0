"""The inventory of tasks."""

from __future__ import annotations

import pytest

from openvla_ros.evaluation.audit.language import (
    judge_language,
    measure_language,
    plain_words,
    quoted,
    tidy,
)

TASK = "put carrot on plate"


def raised(*instructions: str, episodes: int = 60, steps: int = 40) -> dict[str, str]:
    texts = [text for text in instructions for _ in range(episodes)]
    names = [f"e{i}" for i in range(len(texts))]
    language = measure_language(names, texts, [steps] * len(texts))
    return {f.item: f.level for f in judge_language(language) if f.level != "ok"}


def test_enough_of_one_well_written_task_is_well() -> None:
    assert raised(TASK) == {}


def test_inventory_counts_episodes_and_steps_per_text() -> None:
    language = measure_language(["a", "b", "c"], [TASK, "lift", TASK], [10, 20, 30])
    assert [(t.instruction, t.episodes, t.steps) for t in language.tasks] == [
        (TASK, 2, 40),
        ("lift", 1, 20),
    ]
    assert language.length_steps == (10, 20.0, 30)


@pytest.mark.parametrize("variant", ["Put carrot on plate", "put  carrot on plate", f"{TASK}."])
def test_spellings_of_one_task_are_noted(variant: str) -> None:
    assert raised(TASK, variant)["instruction spelling"] == "warn"
    assert plain_words(TASK) == plain_words(variant)


def test_other_words_are_another_task() -> None:
    assert raised(TASK, "put carrot on plates") == {}


@pytest.mark.parametrize("text", [f"{TASK}.", f" {TASK}", "put  carrot"])
def test_untidy_texts_are_noted(text: str) -> None:
    assert raised(text) == {"untidy instructions": "warn"}
    assert tidy(text) in (TASK, "put carrot")


def test_empty_instruction_is_a_problem() -> None:
    assert raised("")["empty instructions"] == "problem"


@pytest.mark.parametrize("text", ["put\ncarrot", "put </s> carrot", "x" * 2000])
def test_what_a_prompt_cannot_hold_is_a_problem(text: str) -> None:
    assert raised(text)["refused instructions"] == "problem"


def test_long_texts_are_noted() -> None:
    assert raised("put the carrot on the plate and then " * 8 + "stop") == {
        "long instructions": "warn"
    }


def test_few_demonstrations_and_short_episodes_are_noted() -> None:
    assert raised(TASK, episodes=49) == {"demonstrations": "warn"}
    assert raised(TASK, steps=4) == {"episode length": "warn"}


def test_quoted_text_is_cut_and_shows_what_cannot_be_seen() -> None:
    assert quoted("put\x1b[31m") == "'put\\x1b[31m'"
    assert len(quoted("x" * 500)) == 62
