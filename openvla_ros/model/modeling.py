"""OpenVLA's forward pass: image patches between the first and second token of a causal LM.

The class is a plain `transformers.PreTrainedModel`, so loading, sharding, quantisation and PEFT are
the library's. Decoding is ours: exactly `action_dim` greedy steps over the whole vocabulary. It is
not a `GenerationMixin` on purpose: `generate` decides for itself what enters each step, and a
library update that slices the prompt by cache length makes the original class ignore its image.
Sources: openvla @ c8f03f4, prismatic/extern/hf/modeling_prismatic.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.stage_clock import StageClock
from openvla_ros.model.vision import LayerScale, Projector, VisionBackbone, VisionTransformer

IGNORE_INDEX = -100  # label of a position that carries no loss


@dataclass(frozen=True)
class GeneratedTokens:
    """What greedy decoding produced for one image and prompt.

    Attributes:
        token_ids: n ids, in order.
        token_probabilities: Softmax probability of each chosen id.
        logits: (n, vocabulary) float32, on the model's device.
        timings: Milliseconds by stage, named as in `types.STAGES`.
        passes: Forward passes of the language model.
        drafts_accepted: Ids of a draft that the first pass confirmed.
        margins: By how much each id's logit exceeds the second highest; empty when not computed.
        guard_fired: Whether a draft that the first pass confirmed was computed again, because a
            margin was too small to be sure.
        settled_by_model: Whether the Hugging Face modules decided, because a margin was.
    """

    token_ids: list[int]
    token_probabilities: tuple[float, ...]
    logits: torch.Tensor
    timings: dict[str, float]
    passes: int
    drafts_accepted: int = 0
    margins: tuple[float, ...] = ()
    guard_fired: bool = False
    settled_by_model: bool = False


class OpenVLAForActionPrediction(PreTrainedModel):
    """Vision towers, projector and language model, with the keys of a Hugging Face checkpoint.

    B is the batch, T the text length, P the number of patches, D the language model's width.
    """

    config_class = OpenVLAConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["VisionBlock"]  # noqa: RUF012 - extended by the language model's own
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: OpenVLAConfig) -> None:
        super().__init__(config)
        self.vision_backbone = VisionBackbone(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.projector = Projector(
            self.vision_backbone.embed_dim,
            config.text_config.hidden_size,
            fused=config.use_fused_vision_backbone,
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise for training from scratch; a loaded checkpoint never keeps such values."""
        super()._init_weights(module)
        if isinstance(module, VisionTransformer):
            for name in ("pos_embed", "cls_token", "reg_token"):
                if hasattr(module, name):
                    nn.init.trunc_normal_(getattr(module, name), std=0.02)
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.scale_factor, module.init_value)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def embed_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the image as language embeddings: (B, 3 or 6, H, W) to (B, P, D)."""
        features = self.vision_backbone(pixel_values.to(self._compute_dtype()))
        return self.projector(features)

    def embed(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return what the language model reads: (B, T) and (B, 3 or 6, H, W) to (B, P + T, D)."""
        text = self.get_input_embeddings()(input_ids)
        return _insert_after_first(text, self.embed_image(pixel_values).to(text.dtype))

    def _compute_dtype(self) -> torch.dtype:
        # Not self.dtype: in a quantised model the first parameter may be packed integers.
        return self.vision_backbone.featurizer.pos_embed.dtype

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, P + T, vocabulary) and, with labels, the loss.

        Args:
            input_ids: (B, T) int64 beginning with BOS, padded on the right.
            pixel_values: (B, 3 or 6, H, W). None is a text-only pass, as in cached decoding.
            attention_mask: (B, T), 1 for text and 0 for padding; the patches' ones are inserted.
            labels: (B, T) with -100 where no loss is wanted; shifted by one inside.
            past_key_values: Cache to read and extend.
            use_cache: Whether to return a cache.
            logits_to_keep: Only the last so many positions get logits; 0 is all of them.
            return_dict: Accepted because PEFT passes it; the output is always a named one.

        Source: openvla @ c8f03f4, PrismaticForConditionalGeneration.forward.
        """
        if pixel_values is None:
            embeddings = self.get_input_embeddings()(input_ids)
        else:
            embeddings = self.embed(input_ids, pixel_values)
            count = embeddings.shape[1] - input_ids.shape[1]  # P
            if attention_mask is not None:
                ones = attention_mask.new_ones(len(attention_mask), count)
                attention_mask = _insert_after_first(attention_mask, ones)
            if labels is not None:
                ignored = labels.new_full((len(labels), count), IGNORE_INDEX)
                labels = _insert_after_first(labels, ignored)
        output = self.language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )
        loss = None if labels is None else _shifted_cross_entropy(output.logits, labels)
        return CausalLMOutputWithPast(
            loss=loss, logits=output.logits, past_key_values=output.past_key_values
        )

    @torch.inference_mode()
    def generate_action_tokens(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor, action_dim: int
    ) -> GeneratedTokens:
        """Return exactly `action_dim` greedily chosen ids for one image and prompt.

        The choice is over the full vocabulary; neither EOS nor any other id shortens it.

        Args:
            input_ids: (1, T) int64, ending in the empty token.
            pixel_values: (1, 3 or 6, H, W).
            action_dim: Number of ids to generate.
        """
        clock = StageClock(self.device)
        clock.begin()
        input_ids, pixel_values = input_ids.to(self.device), pixel_values.to(self.device)
        clock.mark("copy_ms")
        with self.projector.register_forward_hook(lambda *_: clock.mark("towers_ms")):
            logits, cache = self.prefill(input_ids, pixel_values)
        clock.mark("prefill_ms")
        rows = [logits]
        for _ in range(action_dim - 1):
            rows.append(self.decode(rows[-1].argmax(dim=-1, keepdim=True), cache))
        logits = torch.cat(rows)  # (n, vocabulary)
        ids = logits.argmax(dim=-1)
        chosen = logits.gather(1, ids[:, None])[:, 0]
        probabilities = (chosen - logits.logsumexp(dim=-1)).exp()
        token_ids = ids.tolist()  # the one point where the host waits for the device
        clock.mark("decode_ms")
        return GeneratedTokens(
            token_ids, tuple(probabilities.tolist()), logits, clock.timings(), passes=action_dim
        )

    def prefill(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor, DynamicCache]:
        """Return the logits (1, vocabulary) float32 that follow image and prompt, and the cache.

        Args:
            input_ids: (1, T) int64.
            pixel_values: (1, 3 or 6, H, W).
        """
        cache = DynamicCache()
        output = self(
            input_ids=input_ids,
            pixel_values=pixel_values,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float(), cache

    def decode(self, token_id: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Return the next-token logits (1, vocabulary) float32 after one more id (1, 1)."""
        output = self(input_ids=token_id, past_key_values=cache, use_cache=True)
        return output.logits[:, -1].float()


def _insert_after_first(sequence: torch.Tensor, inserted: torch.Tensor) -> torch.Tensor:
    """Return `sequence` with `inserted` between its first (BOS) and second position."""
    return torch.cat([sequence[:, :1], inserted, sequence[:, 1:]], dim=1)


def _shifted_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of predicting each label from the position before it, in float32."""
    return F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
    )
