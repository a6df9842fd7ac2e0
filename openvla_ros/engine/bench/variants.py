"""How a variant answers: from (prompt ids, pixel values) on the host to seven ids on the host.

Every Hugging Face variant runs the same towers; they differ in how the language model is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CompileConfig

from openvla_ros.engine.bench.profiles import ACTION_DIM
from openvla_ros.engine.engine import Engine
from openvla_ros.model.modeling import OpenVLAForActionPrediction

#: Ids, and milliseconds by stage where the variant tells.
Answer = tuple[list[int], dict[str, float]]
Call = Callable[[torch.Tensor, torch.Tensor], Answer]


@dataclass(frozen=True)
class Variant:
    """Something that answers.

    Attributes:
        call: Prompt ids (1, T) and pixel values (1, 6, H, W) on the host to the answer.
        engine: What `call` runs, if it is this package's.
    """

    call: Call
    engine: Engine | None = None


def plain_loop(model: OpenVLAForActionPrediction) -> Variant:
    """Return the model's own greedy loop over Hugging Face's Llama with a dynamic cache.

    It does less per id than `generate`: no logits processors, no stopping criteria.
    """

    def call(input_ids: torch.Tensor, pixel_values: torch.Tensor) -> Answer:
        tokens = model.generate_action_tokens(input_ids, pixel_values, ACTION_DIM)
        return tokens.token_ids, tokens.timings

    return Variant(call)


def generate(model: OpenVLAForActionPrediction, *, compiled: bool = False) -> Variant:
    """Return `LlamaForCausalLM.generate` behind our towers, as a user of the library would call it.

    Args:
        model: The model.
        compiled: Use the static cache, for which transformers compiles the decoding step, and
            compile the towers.
    """
    options = _compiling(model.device) if compiled else {}
    embed = torch.compile(model.embed_image) if compiled else model.embed_image

    @torch.inference_mode()
    def call(input_ids: torch.Tensor, pixel_values: torch.Tensor) -> Answer:
        text = model.get_input_embeddings()(input_ids.to(model.device))
        patches = embed(pixel_values.to(model.device))
        embeddings = torch.cat([text[:, :1], patches, text[:, 1:]], dim=1)
        ids = model.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], device=model.device, dtype=torch.long),
            max_new_tokens=ACTION_DIM,
            min_new_tokens=ACTION_DIM,
            do_sample=False,
            **options,
        )
        return ids[0].tolist(), {}

    return Variant(call)


def _compiling(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        return {"cache_implementation": "static"}
    config = CompileConfig()
    config._compile_all_devices = True  # transformers compiles for accelerators only, unasked
    return {"cache_implementation": "static", "compile_config": config}


def engine(runtime: Engine) -> Variant:
    """Return the engine, decoding plainly."""

    def call(input_ids: torch.Tensor, pixel_values: torch.Tensor) -> Answer:
        tokens = runtime.generate_action_tokens(input_ids, pixel_values, ACTION_DIM)
        return tokens.token_ids, tokens.timings

    return Variant(call, runtime)
