"""Golden source: the prompt builders of openvla @ c8f03f4."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openvla_ros.errors import CheckpointError, InstructionError
from openvla_ros.model.prompts import (
    PROMPT_FORM_OF_LLM,
    PROMPT_FORMS,
    build_prompt,
    clean_instruction,
    prompt_form,
)

GOLDEN_NAMES = {"llama2chat": "llama2_chat"}


def test_every_prompt_form_equals_the_reference(reference_dir: Path) -> None:
    goldens = json.loads((reference_dir / "goldens" / "prompts.json").read_text())
    assert {GOLDEN_NAMES.get(name, name) for name in goldens} == set(PROMPT_FORMS)
    for name, texts in goldens.items():
        prompt = build_prompt("put the carrot in the bowl", GOLDEN_NAMES.get(name, name))
        assert prompt == texts["inference"]


def test_the_instruction_is_lower_cased_and_nothing_else() -> None:
    prompt = build_prompt("  Open the TOP drawer. ", "pure")
    assert prompt == "In: What action should the robot take to   open the top drawer. ?\nOut:"


def test_braces_in_an_instruction_stay_text() -> None:
    assert "{cup}" in build_prompt("grasp the {cup}", "vicuna")


@pytest.mark.parametrize("instruction", ["", "  ", "\n"])
def test_an_empty_instruction_is_refused(instruction: str) -> None:
    with pytest.raises(InstructionError, match="empty"):
        build_prompt(instruction, "pure")


def test_an_unknown_language_model_is_refused_with_the_known_ones() -> None:
    assert prompt_form("vicuna-v15-7b") == "vicuna"
    assert set(PROMPT_FORM_OF_LLM.values()) == set(PROMPT_FORMS)
    with pytest.raises(CheckpointError, match="llama2-7b-pure"):
        prompt_form("gpt-2")


def test_cleaning_is_a_separate_step_that_drops_final_punctuation() -> None:
    assert clean_instruction("  Put the  Carrot\nin the bowl. ") == "put the carrot in the bowl"
