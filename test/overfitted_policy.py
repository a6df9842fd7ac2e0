"""A small policy that has learnt real episodes by heart, as a checkpoint folder.

OpenVLA's architecture in small: two towers, projector, Llama decoder. Its answers have the margins
of a trained network, which random weights lack; it knows nothing beyond its frames. Test code: one
batch loop on a CPU, no adapters, no resuming.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bridge_episodes import Episode, bridge_stats, normalize

from openvla_ros.model.action_stats import STATISTICS_FILE
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.processing import (
    PROCESSOR_FILE,
    ImageProcessor,
    OpenVLAProcessor,
    load_tokenizer,
    settings_of,
)
from openvla_ros.model.prompts import prompt_form
from openvla_ros.model.random_weights import BRIDGE_STATISTICS, copy_tokenizer
from openvla_ros.model.shards import new_folder, write_json, write_shards

ACTION_DIM = 7
_TRAINING_FILE = "training.json"
#: 224 pixels in patches of 56: 16 patches, and each action costs a tenth of what 256 would.
TOWERS = {
    "small_dinov2": {
        "patch_size": 56,
        "embed_dim": 96,
        "depth": 3,
        "num_heads": 6,
        "reg_tokens": 4,
        "no_embed_class": True,
        "init_values": 1.0,
    },
    "small_siglip": {
        "patch_size": 56,
        "embed_dim": 72,
        "depth": 3,
        "num_heads": 6,
        "mlp_ratio": 3.7362,
        "class_token": False,
        "global_pool": "map",
    },
}
#: Widths are multiples of the 128 columns that share an int4 scale.
TEXT = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 32064,
    "pad_token_id": 32000,
    "dtype": "bfloat16",
}
_BATCH = 16
_LEARNING_RATE = 2.5e-3
_WARM_UP = 0.1  # share of the steps


@dataclass(frozen=True)
class Training:
    """How a policy came to be.

    Attributes:
        frames: Frames it has learnt.
        steps: Batches.
        seconds: Of training.
        loss: Mean loss per id over the last tenth of the steps, teacher-forced.
        parameters: Trained weights.
    """

    frames: int
    steps: int
    seconds: float
    loss: float
    parameters: int


def recorded_tokens(episode: Episode) -> np.ndarray:
    """Return (T, 7) ids of the recorded actions."""
    return ActionTokenizer().encode(normalize(episode.actions, bridge_stats()))


def build_overfitted_checkpoint(
    out: Path,
    episodes: Sequence[Episode],
    *,
    steps: int,
    seed: int = 0,
    statistics: Mapping[str, Any] = BRIDGE_STATISTICS,
) -> Training:
    """Fill `out` with a checkpoint that repeats the recorded actions of these frames.

    Args:
        out: Folder to create.
        episodes: What to learn.
        steps: Batches of `_BATCH` frames.
        seed: Of weights and order.
        statistics: Statistics key -> entry that the checkpoint holds; "bridge_orig", by which it
            learns, among them.
    """
    config = OpenVLAConfig(
        timm_model_ids=list(TOWERS),
        vit_specs=TOWERS,
        text_config=TEXT,
        norm_stats=dict(statistics),
        architectures=["OpenVLAForActionPrediction"],
        dtype="bfloat16",
    )
    with new_folder(out) as folder:
        config.save_pretrained(folder)
        write_json(folder / PROCESSOR_FILE, settings_of(config))
        write_json(folder / STATISTICS_FILE, dict(statistics))
        copy_tokenizer(folder)
        processor = OpenVLAProcessor(
            ImageProcessor(settings_of(config)),
            load_tokenizer(folder),
            prompt_form(config.llm_backbone_id),
        )
        torch.manual_seed(seed)
        model = OpenVLAForActionPrediction(config).float().train()
        training = _train(model, _examples(episodes, processor), steps)
        weights = model.state_dict()
        shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
        write_shards(folder, shapes, lambda key: weights[key], torch.bfloat16)
        write_json(folder / _TRAINING_FILE, asdict(training))
    return training


def training_of(checkpoint: Path) -> Training:
    """Return how a checkpoint of this file came to be."""
    return Training(**json.loads((checkpoint / _TRAINING_FILE).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class _Examples:
    """All frames as tensors: N frames, T the longest prompt with its action.

    Attributes:
        pixel_values: (N, 6, 224, 224).
        input_ids: (N, T), prompt and action ids, zeros after them.
        first: (N,) position of the first action id among the text.
        token_ids: (N, 7).
    """

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    first: torch.Tensor
    token_ids: torch.Tensor


def _examples(episodes: Sequence[Episode], processor: OpenVLAProcessor) -> _Examples:
    pixels, texts, answers = [], [], []
    for episode in episodes:
        for frame, answer in zip(episode.frames, recorded_tokens(episode), strict=True):
            inputs = processor(frame, episode.instruction)
            pixels.append(inputs.pixel_values[0])
            texts.append(inputs.input_ids[0])
            answers.append(torch.from_numpy(answer))
    longest = max(len(text) for text in texts) + ACTION_DIM
    rows = torch.zeros(len(texts), longest, dtype=torch.int64)
    for row, text, answer in zip(rows, texts, answers, strict=True):
        row[: len(text) + ACTION_DIM] = torch.cat([text, answer])
    first = torch.tensor([len(text) for text in texts])
    return _Examples(torch.stack(pixels), rows, first, torch.stack(answers))


def _train(model: OpenVLAForActionPrediction, data: _Examples, steps: int) -> Training:
    head = model.language_model.lm_head.weight
    with torch.no_grad():
        head.zero_()
    frozen = model.get_input_embeddings().weight.requires_grad_(False)
    torch.nn.init.normal_(frozen, std=1.0 / math.sqrt(frozen.shape[1]))
    trained = [p for p in model.parameters() if p.requires_grad and p is not head]
    rows = torch.nn.Parameter(torch.zeros_like(head[_action_rows(model)]))
    optimizer = torch.optim.AdamW(
        [*trained, rows], lr=_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _rate(i / steps))
    start, losses = time.perf_counter(), []
    order = _order(len(data.first), steps)
    for chosen in order:
        loss = _loss(model, rows, data, chosen)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*trained, rows], 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    with torch.no_grad():
        head[_action_rows(model)] = rows
    return Training(
        frames=len(data.first),
        steps=steps,
        seconds=time.perf_counter() - start,
        loss=float(np.mean(losses[-max(1, steps // 10) :])),
        parameters=sum(p.numel() for p in [*trained, rows]),
    )


def _loss(
    model: OpenVLAForActionPrediction, rows: torch.Tensor, data: _Examples, chosen: torch.Tensor
) -> torch.Tensor:
    """Return the cross-entropy over the whole vocabulary, of the seven ids of each frame.

    Rows of the head that are not action ids stay zero: their logits are 0, so one number stands for
    all of them in the sum, and most of the work of a step is saved.
    """
    text = model.get_input_embeddings()(data.input_ids[chosen])
    patches = model.embed_image(data.pixel_values[chosen])
    x = torch.cat([text[:, :1], patches, text[:, 1:]], dim=1)
    # No mask: padding comes last, and the decoder is causal.
    hidden = model.language_model.model(inputs_embeds=x, use_cache=False).last_hidden_state
    before = data.first[chosen] + patches.shape[1] - 1  # the position whose logits are the first id
    places = before[:, None] + torch.arange(ACTION_DIM)
    logits = hidden[torch.arange(len(chosen))[:, None], places] @ rows.t()  # (B, 7, 256)
    others = math.log(model.config.text_config.vocab_size - len(rows))
    everything = torch.logaddexp(logits.logsumexp(dim=2), torch.tensor(others))
    answers = data.token_ids[chosen] - _action_rows(model).start
    return (everything - logits.gather(2, answers[:, :, None])[:, :, 0]).mean()


def _action_rows(model: OpenVLAForActionPrediction) -> slice:
    end = model.config.action_vocab_size
    return slice(end - model.config.n_action_bins, end)


def _rate(progress: float) -> float:
    """Return the share of the learning rate: linear warm-up, then a cosine down to zero."""
    if progress < _WARM_UP:
        return (progress + 1e-3) / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP)))


def _order(count: int, steps: int) -> list[torch.Tensor]:
    """Return the frames of each batch: every frame once per round, in a new order."""
    batch = min(_BATCH, count)
    rounds = -(-steps * batch // count)
    return list(torch.cat([torch.randperm(count) for _ in range(rounds)]).split(batch))[:steps]
