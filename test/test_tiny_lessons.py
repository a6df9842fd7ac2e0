"""What `openvla-tiny` starts from and what it is asked beside its actions; no training here."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from openvla_ros.errors import ConfigurationError
from openvla_ros.model.checkpoint import load_model, read_config
from openvla_ros.model.processing import EMPTY_TOKEN, EMPTY_TOKEN_ID, OpenVLAProcessor
from openvla_ros.model.prompts import build_prompt
from openvla_ros.sim.recording.grounding import Grounding
from openvla_ros.sim.tasks import KINDS, phrases
from openvla_ros.sim.tiny.base import GRID, build_random_base, sine_positions
from openvla_ros.sim.tiny.grounding import GroundingLoss, patch_kinds, patch_shares
from openvla_ros.sim.tiny.stopped_run import checkpoint_of_run
from openvla_ros.sim.tiny.vocabulary import ACTION_VOCAB_SIZE, PAD_ID, PROMPT_FORM, TEXT_IDS
from openvla_ros.training.batch import Origin, TrainingBatch
from openvla_ros.training.run_state import save_state

EPISODE = "reach_000000_episode_000000"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random weights that training starts from."""
    return build_random_base(tmp_path_factory.mktemp("tiny") / "base")


def test_every_word_of_the_cell_is_known(base: Path) -> None:
    processor = OpenVLAProcessor.from_pretrained(base, PROMPT_FORM)
    unknown = processor.tokenizer.unk_token_id
    for kind in KINDS:
        for text in phrases(kind, "red", "left"):
            ids = processor.encode_prompt(build_prompt(text, PROMPT_FORM))[0].tolist()
            assert unknown not in ids and max(ids) < TEXT_IDS, text


def test_a_prompt_is_its_words_between_two_halves(base: Path) -> None:
    processor = OpenVLAProcessor.from_pretrained(base, PROMPT_FORM)
    inputs = processor(np.zeros((224, 224, 3), np.uint8), "Reach the RED block, please")
    words = processor.tokenizer.convert_ids_to_tokens(inputs.input_ids[0])
    assert words[0] == "<s>" and words[-1] == EMPTY_TOKEN
    assert words[2:-2] == ["reach", "the", "red", "block", "<unk>", "<unk>"]
    assert inputs.pixel_values.shape == (1, 6, 112, 112)


def test_ids_lie_as_in_the_reference(base: Path) -> None:
    config = read_config(base)
    tokenizer = OpenVLAProcessor.from_pretrained(base, PROMPT_FORM).tokenizer
    assert config.action_vocab_size == ACTION_VOCAB_SIZE == TEXT_IDS + config.n_action_bins
    assert tokenizer.pad_token_id == PAD_ID == config.pad_token_id
    assert tokenizer.convert_tokens_to_ids("<action_255>") == ACTION_VOCAB_SIZE - 1


def test_the_base_loads_and_answers(base: Path) -> None:
    config = read_config(base)
    model = load_model(base, config, device=torch.device("cpu"), dtype=torch.float32)
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 1e7
    inputs = OpenVLAProcessor.from_pretrained(base, PROMPT_FORM)(
        np.zeros((96, 96, 3), np.uint8), "reach the red block"
    )
    assert (
        len(model.generate_action_tokens(inputs.input_ids, inputs.pixel_values, 7).token_ids) == 7
    )


def test_positions_tell_all_patches_apart() -> None:
    positions = sine_positions(GRID, 64)
    apart = torch.cdist(positions, positions) + 9 * torch.eye(GRID**2)
    assert positions.shape == (GRID**2, 64)
    assert float(apart.min()) > 1.0


def test_a_place_is_shared_by_the_patches_around_it() -> None:
    places = torch.tensor([[0.5 / 4, 0.5 / 4], [0.5, 0.25], [-3.0, 0.99]])
    shares = patch_shares(places, 4).view(3, 4, 4)
    assert torch.allclose(shares.sum(dim=(1, 2)), torch.ones(3))
    assert shares[0, 0, 0] == 1.0  # the centre of the first patch
    assert torch.allclose(shares[1, 0:2, 1:3], torch.full((2, 2), 0.25))  # row, column
    assert shares[2, 3, 0] == 1.0  # outside: the nearest corner


def test_patches_say_what_they_hold() -> None:
    nowhere = float("nan")
    blocks = torch.tensor([[[0.1, 0.1], [nowhere, nowhere], [0.9, 0.6]]])
    kinds = patch_kinds(blocks, torch.tensor([[0.95, 0.55]]), 4).view(4, 4)
    assert kinds[0, 0] == 1 and kinds[2, 3] == 3  # a block hides the tool
    assert int((kinds > 0).sum()) == 2
    assert patch_kinds(blocks, torch.tensor([[0.4, 0.9]]), 4).view(4, 4)[3, 1] == 4


def test_the_loss_falls_when_the_named_block_is_found(base: Path) -> None:
    torch.manual_seed(0)
    config = read_config(base)
    places = Grounding(
        target=np.array([[0.2, 0.2], [0.8, 0.8]], np.float32),
        tool=np.full((2, 2), 0.5, np.float32),
        blocks=np.array([[[0.2, 0.2]] * 5, [[0.8, 0.8]] * 5], np.float32),
        offset=np.array([[0.0, 0.0, -0.01], [0.3, 0.0, 0.0]], np.float32),
        opening=np.array([0.5, 1.0], np.float32),
    )
    loss = GroundingLoss(config, {EPISODE: places})
    labels = torch.full((2, 6), -100)
    labels[:, 3:5] = 70
    batch = TrainingBatch(
        input_ids=torch.zeros(2, 6, dtype=torch.int64),
        labels=labels,
        attention_mask=torch.ones(2, 6, dtype=torch.bool),
        pixel_values=torch.zeros(2, 6, 112, 112),
        origins=[Origin("sim", EPISODE, 0), Origin("sim", EPISODE, 1)],
    )
    hidden = torch.randn(2, GRID**2 + 6, config.text_config.hidden_size)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    first = loss(hidden, batch).item()
    for _ in range(300):
        optimizer.zero_grad()
        loss(hidden, batch).backward()
        optimizer.step()
    # Shares between four patches keep an entropy that no answer removes.
    assert loss(hidden, batch).item() < 0.6 * first
    asked = hidden[:, GRID**2 + 2]  # where the first number of the action is predicted
    assert loss.named(asked).argmax(dim=1).tolist() == [GRID + 1, (GRID - 2) * GRID + GRID - 2]
    expected = torch.tensor([[0.0, 0.0, -0.32, 0.0], [1.0, 0.0, 0.0, 1.0]])
    assert torch.allclose(loss.grasp(asked), expected, atol=0.2)


def test_a_stopped_run_gives_the_next_lesson_its_start(base: Path, tmp_path: Path) -> None:
    weights = load_file(base / "model.safetensors")
    trained = "projector.fc1.weight"
    saved = {
        f"weights/model.{trained}": weights[trained] + 1.0,
        "weights/auxiliary.losses.grounding.tool.bias": torch.zeros(3),
        f"optimizer/exp_avg/model.{trained}": torch.zeros_like(weights[trained]),
    }
    run = tmp_path / "run"
    save_state(run / "checkpoints", 7, saved, {}, keep=1)
    found = load_file(checkpoint_of_run(run, base, tmp_path / "next") / "model.safetensors")
    assert torch.equal(found.pop(trained), weights.pop(trained) + 1.0)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    with pytest.raises(ConfigurationError, match="holds no checkpoint"):
        checkpoint_of_run(tmp_path, base, tmp_path / "other")
    saved = {"weights/model.elsewhere": torch.zeros(2)}
    save_state(tmp_path / "odd" / "checkpoints", 1, saved, {}, keep=1)
    with pytest.raises(ConfigurationError, match="does not have"):
        checkpoint_of_run(tmp_path / "odd", base, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_only_a_small_vocabulary_has_an_empty_token_of_its_own(base: Path) -> None:
    """Mistral's has it under another id, and the reference appends Llama's all the same."""
    small = OpenVLAProcessor.from_pretrained(base, PROMPT_FORM)
    assert small.empty_token_id == small.tokenizer.convert_tokens_to_ids(EMPTY_TOKEN) == 3
    large = copy.deepcopy(small.tokenizer)
    large.add_tokens([f"<more_{number}>" for number in range(EMPTY_TOKEN_ID)])
    assert OpenVLAProcessor(small.image_processor, large, PROMPT_FORM).empty_token_id == 29871
