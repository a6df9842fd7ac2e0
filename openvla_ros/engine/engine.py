"""`Engine`: the tokens of `OpenVLAForActionPrediction.generate_action_tokens`, sooner.

A frozen runtime around a loaded model: fused weights, static cache, and on a GPU captured graphs,
so that the host starts two graphs and reads one small answer per action.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch

from openvla_ros.engine.language import Language
from openvla_ros.engine.operations import choose_operations
from openvla_ros.engine.programs import DraftProgram, PlainProgram, Program
from openvla_ros.engine.towers import Vision
from openvla_ros.engine.weights import MAX_POSITIONS, LanguageWeights, fuse_language_model
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.modeling import GeneratedTokens, OpenVLAForActionPrediction

#: Prompt lengths whose graphs are kept.
_KEPT_PROGRAMS = 8
#: The guard asks for so many times the largest difference that calibration saw.
_CALIBRATION_FACTOR = 1.5


class Engine:
    """A model made fast. It takes over the model's weights; one thread uses it at a time.

    Args:
        model: In evaluation mode, on the device it runs on.
        quantization: Of the language model's layers: "none", "fp8", "int8" or "int4".
        use_graphs: Capture CUDA graphs; without them every call launches its kernels one by one.
        weights: The language model's, fused in this quantization already; None fuses them here.

    Raises:
        ConfigurationError: The engine does not support this model; the text says why.
    """

    def __init__(
        self,
        model: OpenVLAForActionPrediction,
        *,
        quantization: str = "none",
        use_graphs: bool = True,
        weights: LanguageWeights | None = None,
    ) -> None:
        weights = weights or fuse_language_model(model, quantization)
        operations, why = choose_operations(weights)
        self.device = weights.embedding.device
        self.vision = Vision(model, operations)
        self.language = Language(weights, operations, MAX_POSITIONS)
        self.choices = {"engine": f"{operations.name}: {why}"}
        #: Margin between the two highest logits below which a token accepted from a prefill is
        #: computed again. Infinite, always again, until `calibrate` has measured.
        self.margin = math.inf
        self.patch_positions = model.vision_backbone.num_patches
        self.pixel_shape = (model.vision_backbone.channels, *2 * model.config.image_sizes[:1])
        on_gpu = self.device.type == "cuda"
        self.graph_pool = torch.cuda.graph_pool_handle() if use_graphs and on_gpu else None
        self._programs: OrderedDict[tuple[type, int, int], Program] = OrderedDict()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def generate_action_tokens(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor, action_dim: int
    ) -> GeneratedTokens:
        """Return exactly `action_dim` greedily chosen ids for one image and prompt.

        The choice is over the full vocabulary; neither EOS nor any other id shortens it. The first
        call of a prompt length runs unrecorded, the second records its graphs.

        Args:
            input_ids: (1, T) int64, ending in the empty token.
            pixel_values: (1, 3 or 6, H, W).
            action_dim: Number of ids to generate.

        Raises:
            ConfigurationError: Image and prompt are longer than the cache.
        """
        with self._lock:
            program = cast(PlainProgram, self._program(PlainProgram, input_ids, action_dim))
            program.load(input_ids, pixel_values)
            return program.run()

    @torch.inference_mode()
    def verify_draft(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        action_dim: int,
        draft: Sequence[int],
    ) -> GeneratedTokens:
        """Return the same ids as `generate_action_tokens`, in fewer passes when the draft is good.

        The draft is checked inside the prefill. What it gets wrong is corrected by passes that
        check all remaining positions at once, each of which yields at least one id: there are never
        more passes than plain decoding needs. On a GPU, an action confirmed by the prefill alone
        counts only if its margins exceed `margin`; otherwise one pass computes it as plain decoding
        does.

        Args:
            input_ids: (1, T) int64, ending in the empty token.
            pixel_values: (1, 3 or 6, H, W).
            action_dim: Number of ids to generate.
            draft: `action_dim` expected ids, for example those of the action before. Any ids of the
                vocabulary are allowed; they only decide how long it takes.

        Raises:
            ConfigurationError: Image and prompt are longer than the cache, or the draft's length
                is not `action_dim`.
        """
        if len(draft) != action_dim:
            raise ConfigurationError(
                f"The draft has {len(draft)} ids, the action {action_dim}; give one id for each."
            )
        with self._lock:
            program = cast(DraftProgram, self._program(DraftProgram, input_ids, action_dim))
            program.load(input_ids, pixel_values)
            return program.run(draft, self.margin)

    def calibrate(
        self, input_ids: torch.Tensor, images: Sequence[torch.Tensor], action_dim: int
    ) -> float:
        """Return the margin that the guard uses from now on, measured on these inputs.

        A position computed in a prefill differs by rounding from one computed in a pass. The guard
        asks for several times the largest difference seen between any two logits.

        Args:
            input_ids: (1, T).
            images: Pixel values (1, 3 or 6, H, W) each.
            action_dim: Number of ids.
        """
        largest = 0.0
        for pixels in images:
            self.margin = math.inf
            plain = self.generate_action_tokens(input_ids, pixels, action_dim)
            self.margin = -math.inf
            drafted = self.verify_draft(input_ids, pixels, action_dim, plain.token_ids)
            same = min(drafted.drafts_accepted + 1, action_dim)
            top = plain.logits[:same].topk(8).indices
            change = (drafted.logits[:same] - plain.logits[:same]).gather(1, top)
            largest = max(largest, float(change.abs().max()))
        self.margin = 2 * _CALIBRATION_FACTOR * largest  # two logits, each off by as much
        return self.margin

    def _program(self, kind: type[Program], input_ids: torch.Tensor, action_dim: int) -> Program:
        prompt_length = input_ids.shape[1]
        key = (kind, prompt_length, action_dim)
        if key in self._programs:
            self._programs.move_to_end(key)
            return self._programs[key]
        needed = self.patch_positions + prompt_length + 2 * action_dim
        if needed > self.language.capacity:
            raise ConfigurationError(
                f"Image, prompt and action take {needed} positions; the engine has room for "
                f"{self.language.capacity}. Shorten the instruction."
            )
        self._programs[key] = kind(self, prompt_length, action_dim)
        if len(self._programs) > _KEPT_PROGRAMS:
            self._programs.popitem(last=False)
        return self._programs[key]
