"""What is compared: callables from (prompt ids, pixel values) on the host to seven ids on the host.

Every Hugging Face variant runs the same model object, towers included; they differ in how the
language model is called.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from openvla_ros.engine.bench.profiles import ACTION_DIM
from openvla_ros.engine.engine import Engine
from openvla_ros.model.modeling import OpenVLAForActionPrediction

Variant = Callable[[torch.Tensor, torch.Tensor], list[int]]


def plain_loop(model: OpenVLAForActionPrediction, attention: str) -> Variant:
    """Return the model's own greedy loop over Hugging Face's Llama with a dynamic cache.

    It does less per token than `generate`: no logits processors, no stopping criteria.
    """

    def run(input_ids: torch.Tensor, pixel_values: torch.Tensor) -> list[int]:
        _use(model, attention)
        device = model.device
        tokens = model.generate_action_tokens(
            input_ids.to(device), pixel_values.to(device), ACTION_DIM
        )
        return tokens.token_ids

    return run


def generate(model: OpenVLAForActionPrediction, attention: str, cache: str | None) -> Variant:
    """Return `LlamaForCausalLM.generate` behind our towers, as a user of the library would call it.

    Args:
        model: The model.
        attention: "eager" or "sdpa".
        cache: "static" makes transformers compile the decoding step; None is its dynamic cache.
    """
    options = {"cache_implementation": cache} if cache else {}
    embed = torch.compile(model.embed_image) if cache else model.embed_image

    @torch.inference_mode()
    def run(input_ids: torch.Tensor, pixel_values: torch.Tensor) -> list[int]:
        _use(model, attention)
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
        return ids[0].tolist()

    return run


def engine(runtime: Engine) -> Variant:
    """Return the engine, decoding plainly."""

    def run(input_ids: torch.Tensor, pixel_values: torch.Tensor) -> list[int]:
        return runtime.generate_action_tokens(input_ids, pixel_values, ACTION_DIM).token_ids

    return run


def _use(model: OpenVLAForActionPrediction, attention: str) -> None:
    if model.language_model.config._attn_implementation != attention:
        model.set_attn_implementation(attention)
