"""Networks of two layers and a few hundred ids, for tests that run thousands of actions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from openvla_ros.engine.bench.profiles import bench_config, random_model
from openvla_ros.engine.engine import Engine
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.modeling import OpenVLAForActionPrediction

torch.set_num_threads(1)  # waking others takes longer than these networks

CPU = torch.device("cpu")
SIDE = 28  # px: four patches
EOS = 2
VOCABULARY = 384  # 64 words, 256 action ids, 64 rows of padding
ACTION_IDS = range(64, 320)
ACTION_DIM = 7


def small_model(seed: int = 0, **text: Any) -> OpenVLAForActionPrediction:
    """Return a network whose answers are any of its ids, words and EOS among them."""
    tiny = bench_config("tiny")
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    config = OpenVLAConfig(
        timm_model_ids=tiny.timm_model_ids,
        vit_specs=tiny.vit_specs,
        image_sizes=[SIDE, SIDE],
        text_config=tiny.text_config.to_dict()
        | shape
        | {"head_dim": 32, "vocab_size": VOCABULARY, "pad_token_id": 320}
        | text,
    )
    model = random_model(config, CPU, torch.float32, seed)
    with torch.no_grad():
        head = model.language_model.lm_head.weight
        head.copy_(torch.randn(head.shape, generator=torch.Generator().manual_seed(seed)))
        head[EOS] *= 1.5  # it comes up often
    return model


def small_inputs(seed: int, length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids (1, T) and pixel values (1, 6, 28, 28); T is 1 .. 80 unless given."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 64, (1, length or 1 + seed % 80), generator=generator)
    return ids, torch.randn(1, 6, SIDE, SIDE, generator=generator)


def with_rounding(engine: Engine, size: float) -> Engine:
    """Return the engine with logits that depend on how many rows are computed together.

    As products on a GPU or CPU do, only much more: each logit is off by up to `size`, always by the
    same for one number of rows.
    """
    own = engine.language.operations

    def head(x: Any, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, _ = own.head(x, weight)
        generator = torch.Generator().manual_seed(len(logits))
        logits = logits + size * (2 * torch.rand(logits.shape[1], generator=generator) - 1)
        return logits, logits.argmax(dim=-1)

    engine.language.operations = replace(own, head=head)
    return engine
