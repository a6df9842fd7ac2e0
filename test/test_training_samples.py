"""Golden source: RLDSBatchTransform and the collator of openvla @ c8f03f4, on random actions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openvla_ros.errors import InstructionError
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.checkpoint import read_config
from openvla_ros.model.processing import OpenVLAProcessor
from openvla_ros.model.prompts import prompt_form
from openvla_ros.training.batch import Origin, TrainingBatch
from openvla_ros.training.samples import MAX_LENGTH, build_sample, collate, label_sample

CASES = ("train__A_fused__stop0", "train__A_fused__stop1", "train__B_siglip_v01__stop0")
ORIGIN = Origin("made_up", "episode_000", 0)


def load_processor(folder: Path) -> OpenVLAProcessor:
    return OpenVLAProcessor.from_pretrained(
        folder, prompt_form(read_config(folder).llm_backbone_id)
    )


def golden_batch(
    reference_dir: Path, checkpoints: Path, case: str
) -> tuple[TrainingBatch, dict[str, np.ndarray]]:
    golden = dict(np.load(reference_dir / "goldens" / f"{case}.npz"))
    told = json.loads((reference_dir / "goldens/train_index.json").read_text())[f"{case}.npz"]
    processor = load_processor(checkpoints / told["checkpoint"])
    images = [Image.open(reference_dir / "images" / name) for name in told["images"]]
    samples = [
        build_sample(
            processor,
            instruction,
            ActionTokenizer().encode(action),
            processor.image_processor(image),
            predict_stop_token=told["predict_stop_token"],
            origin=ORIGIN,
        )
        for instruction, action, image in zip(
            told["instructions"], golden["actions"], images, strict=True
        )
    ]
    return collate(samples, pad_token_id=32000), golden


@pytest.mark.parametrize("case", CASES)
def test_batches_are_those_of_the_reference(
    reference_dir: Path, reference_checkpoints: Path, case: str
) -> None:
    batch, golden = golden_batch(reference_dir, reference_checkpoints, case)
    for name in ("input_ids", "labels", "attention_mask"):
        ours = getattr(batch, name).numpy()
        assert ours.dtype == golden[name].dtype, (name, ours.dtype)
        assert np.array_equal(ours, golden[name]), (name, ours, golden[name])


def test_the_stop_token_is_a_label_only_when_it_is_asked_for(
    reference_dir: Path, reference_checkpoints: Path
) -> None:
    without, _ = golden_batch(reference_dir, reference_checkpoints, "train__A_fused__stop0")
    with_stop, _ = golden_batch(reference_dir, reference_checkpoints, "train__A_fused__stop1")
    assert (without.labels == 2).sum() == 0
    assert (with_stop.labels == 2).sum() == len(with_stop)


def test_an_instruction_that_leaves_no_room_for_the_action_is_refused(
    reference_checkpoints: Path,
) -> None:
    processor = load_processor(reference_checkpoints / "A_fused")
    pixels = torch.zeros(6, 2, 2)
    with pytest.raises(InstructionError, match=f"at most {MAX_LENGTH}"):
        build_sample(
            processor,
            "pick it up " * MAX_LENGTH,
            np.arange(31744, 31751),
            pixels,
            predict_stop_token=True,
            origin=ORIGIN,
        )


def test_a_sample_may_be_as_long_as_the_limit_and_collate_cuts_at_its_own() -> None:
    actions, pixels = np.arange(31744, 31751), torch.zeros(6, 2, 2)
    prompt = torch.ones(MAX_LENGTH - 8, dtype=torch.int64)
    sample = label_sample(prompt, actions, pixels, 2, True, ORIGIN)
    assert len(sample.input_ids) == MAX_LENGTH
    with pytest.raises(InstructionError, match=f"{MAX_LENGTH + 1} ids"):
        label_sample(torch.cat([prompt, prompt[:1]]), actions, pixels, 2, True, ORIGIN)
    whole = collate([sample], pad_token_id=32000)
    cut = collate([sample], pad_token_id=32000, max_length=MAX_LENGTH - 3)
    for name in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(getattr(cut, name), getattr(whole, name)[:, :-3]), name
