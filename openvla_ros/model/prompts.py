"""The text around an instruction, one form per language model family.

A checkpoint was trained with exactly one of these; a character more or less changes the action.
This file knows no tokenizer.
"""

from __future__ import annotations

from openvla_ros.errors import CheckpointError, InstructionError

QUESTION = "What action should the robot take to {instruction}?"

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAMA2_CHAT_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)

#: Prompt form -> text with a place for the question. The missing ">" after "<<SYS>" is the
#: reference's, and its checkpoints were trained with it.
PROMPT_FORMS = {
    "pure": "In: {question}\nOut:",
    "vicuna": _VICUNA_SYSTEM + " USER: {question} ASSISTANT:",
    "llama2_chat": f"[INST] <<SYS>\n{_LLAMA2_CHAT_SYSTEM}\n<</SYS>>\n\n{{question}} [/INST]",
    "mistral_instruct": "[INST] {question} [/INST]",
    "phi": "<|endoftext|>Input: {question}\nOutput:",
}

#: `llm_backbone_id` -> prompt form. Source: openvla @ c8f03f4, prismatic/models/backbones/llm.
PROMPT_FORM_OF_LLM = {
    "llama2-7b-pure": "pure",
    "llama2-13b-pure": "pure",
    "llama2-7b-chat": "llama2_chat",
    "llama2-13b-chat": "llama2_chat",
    "vicuna-v15-7b": "vicuna",
    "vicuna-v15-13b": "vicuna",
    "mistral-v0.1-7b-pure": "pure",
    "mistral-v0.1-7b-instruct": "mistral_instruct",
    "phi-2-3b": "phi",
}


def prompt_form(llm_backbone_id: str) -> str:
    """Return the name of the prompt form that a language model was trained with.

    Raises:
        CheckpointError: The family is unknown.
    """
    try:
        return PROMPT_FORM_OF_LLM[llm_backbone_id]
    except KeyError:
        raise CheckpointError(
            f"llm_backbone_id {llm_backbone_id!r} has no known prompt. Known: "
            f"{', '.join(PROMPT_FORM_OF_LLM)}. Correct llm_backbone_id in config.json."
        ) from None


def build_prompt(instruction: str, form: str) -> str:
    """Return the text the model is given for one instruction.

    The instruction is lower-cased and otherwise left alone, as in the reference; see
    `clean_instruction` for more.

    Raises:
        InstructionError: The instruction is empty or blank.

    Source: openvla @ c8f03f4, get_openvla_prompt and prismatic/models/backbones/llm/prompting.
    """
    if not instruction.strip():
        raise InstructionError(
            "The instruction is empty. Say what the robot should do, for example "
            "'put the carrot in the bowl'."
        )
    question = QUESTION.format(instruction=instruction.lower())
    return PROMPT_FORMS[form].format(question=question)


def clean_instruction(instruction: str) -> str:
    """Return the instruction as training data words it: one line, lower case, no final stop.

    Never applied silently: a full stop at the end alone can change the action, so callers that
    clean say so.
    """
    return " ".join(instruction.split()).lower().rstrip(".!?;:, ")
