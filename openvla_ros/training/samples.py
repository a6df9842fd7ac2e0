"""One step of a recording as the model is trained on it, and several of them as a batch.

The ids are built from numbers, never from text: a training text is the prompt of inference, the
empty token, the ids of the action and the end of the sequence.
Source: openvla @ c8f03f4, RLDSBatchTransform and PaddedCollatorForActionPrediction; the batches in
test/reference are their output.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from openvla_ros.errors import CheckpointError, InstructionError
from openvla_ros.model.processing import OpenVLAProcessor
from openvla_ros.model.prompts import build_prompt
from openvla_ros.training.batch import Origin, TrainingBatch, TrainingSample

#: The loss leaves these positions out.
IGNORED = -100
#: Ids that a sample may have; the reference cuts what is longer, and with it the action.
MAX_LENGTH = 2048


def build_sample(
    processor: OpenVLAProcessor,
    instruction: str,
    token_ids: np.ndarray,
    pixel_values: torch.Tensor,
    *,
    predict_stop_token: bool,
    origin: Origin,
) -> TrainingSample:
    """Return one step as the model is trained on it.

    Args:
        processor: Of the checkpoint.
        instruction: As recorded; it is lower-cased, nothing else, as at inference.
        token_ids: (n,) int64 ids of the action.
        pixel_values: (3 or 6, h, w) float32.
        predict_stop_token: Whether the end of the sequence is a label too.
        origin: Where the step was recorded.

    Raises:
        InstructionError: It is empty, or too long to be trained on.
        CheckpointError: The tokenizer has no end of sequence.
    """
    prompt_ids = encode_instruction(processor, instruction)
    stop_id = require_token_id(processor, "eos")
    return label_sample(prompt_ids, token_ids, pixel_values, stop_id, predict_stop_token, origin)


def encode_instruction(processor: OpenVLAProcessor, instruction: str) -> torch.Tensor:
    """Return (T,) int64 ids that the model is given for an instruction, with the empty token.

    Raises:
        InstructionError: It is empty.
    """
    return processor.encode_prompt(build_prompt(instruction, processor.prompt_form))[0]


def label_sample(
    prompt_ids: torch.Tensor,
    token_ids: np.ndarray,
    pixel_values: torch.Tensor,
    stop_id: int,
    predict_stop_token: bool,
    origin: Origin,
) -> TrainingSample:
    """Return a sample from ids: what `build_sample` does once the prompt is encoded.

    Raises:
        InstructionError: The prompt is too long to be trained on.
    """
    answer = torch.cat([torch.from_numpy(token_ids), torch.tensor([stop_id])])
    input_ids = torch.cat([prompt_ids, answer])
    if len(input_ids) > MAX_LENGTH:
        raise InstructionError(
            f"The instruction of {origin.episode} in {origin.dataset} makes {len(input_ids)} ids; "
            f"at most {MAX_LENGTH} can be trained on. Shorten it, or leave the episode out."
        )
    labels = torch.full_like(input_ids, IGNORED)
    end = len(labels) if predict_stop_token else len(labels) - 1
    labels[len(prompt_ids) : end] = input_ids[len(prompt_ids) : end]
    return TrainingSample(input_ids, labels, pixel_values, origin)


def collate(
    samples: Sequence[TrainingSample], pad_token_id: int, max_length: int = MAX_LENGTH
) -> TrainingBatch:
    """Return the samples as one batch, padded on the right to the longest of them.

    Args:
        samples: At least one.
        pad_token_id: Id after the end of a shorter sample.
        max_length: Ids after which a sample is cut, as in the reference.
    """
    pad = torch.nn.utils.rnn.pad_sequence
    input_ids = pad([s.input_ids for s in samples], True, pad_token_id)[:, :max_length]
    labels = pad([s.labels for s in samples], True, IGNORED)[:, :max_length]
    return TrainingBatch(
        input_ids=input_ids,
        labels=labels,
        attention_mask=input_ids.ne(pad_token_id),
        pixel_values=torch.stack([s.pixel_values for s in samples]),
        origins=tuple(s.origin for s in samples),
    )


def require_token_id(processor: OpenVLAProcessor, name: str) -> int:
    """Return the id of the "eos" or "pad" token.

    Raises:
        CheckpointError: The tokenizer has none.
    """
    token_id = getattr(processor.tokenizer, f"{name}_token_id")
    if token_id is None:
        raise CheckpointError(
            f"The tokenizer has no {name} token, and training needs one. Copy the tokenizer files "
            "from the base checkpoint."
        )
    return int(token_id)
