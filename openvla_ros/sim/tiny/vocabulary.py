"""The tokenizer of the embedded policy: a word is a token, and so is each half of the prompt.

Its layout is that of Llama's in small: text ids, then the 256 action ids, then padding.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from openvla_ros.model.processing import EMPTY_TOKEN
from openvla_ros.model.prompts import PROMPT_FORMS, QUESTION
from openvla_ros.sim.scene import COLOURS
from openvla_ros.sim.tasks import DIRECTIONS, PHRASES

PROMPT_FORM = "pure"
ACTION_BINS = 256
TEXT_IDS = 64
ACTION_VOCAB_SIZE = TEXT_IDS + ACTION_BINS  # action ids are the last of these
PAD_TO_MULTIPLE_OF = 64
VOCAB_SIZE = ACTION_VOCAB_SIZE + PAD_TO_MULTIPLE_OF
PAD_ID = ACTION_VOCAB_SIZE

_UNKNOWN, _BEGIN, _END, _PAD = "<unk>", "<s>", "</s>", "<PAD>"
#: Words that nobody has taught the policy yet get their ids now, so that later lessons may.
_MORE_WORDS = (
    *("a", "above", "and", "black", "box", "cube", "down", "gripper", "into", "open", "orange"),
    *("over", "stop", "white"),
)


def prompt_halves() -> tuple[str, str]:
    """Return what stands before and after the instruction in the prompt."""
    before, after = PROMPT_FORMS[PROMPT_FORM].format(question=QUESTION).split("{instruction}")
    return before.strip(), after


def words() -> list[str]:
    """Return every word of the simulated cell's instructions, and a few more, sorted."""
    found = {*COLOURS, *_MORE_WORDS}
    for phrases in PHRASES.values():
        for phrase in phrases:
            found |= set(phrase.replace("{colour}", "").replace("{direction}", "").split())
    for direction in DIRECTIONS:
        found |= set(direction.split())
    return sorted(found)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer; text ids that are not used yet are reserved."""
    before, after = prompt_halves()
    text = [_UNKNOWN, _BEGIN, _END, EMPTY_TOKEN, before, after, *words()]
    assert len(text) <= TEXT_IDS, len(text)
    text += [f"<reserved_{number}>" for number in range(TEXT_IDS - len(text))]
    actions = [f"<action_{number}>" for number in range(ACTION_BINS)]
    names = [*text, *actions, _PAD]
    tokenizer = Tokenizer(
        models.WordLevel({name: number for number, name in enumerate(names)}, _UNKNOWN)
    )
    halves = "|".join(half.replace("?", r"\?") for half in (before, after))
    pattern = Regex(rf"{halves}|\w+|[^\w\s]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "removed", invert=True)
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A", special_tokens=[(_BEGIN, names.index(_BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_BEGIN,
        eos_token=_END,
        unk_token=_UNKNOWN,
        pad_token=_PAD,
        padding_side="right",
    )


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and its settings into a folder."""
    build_tokenizer().save_pretrained(folder)
