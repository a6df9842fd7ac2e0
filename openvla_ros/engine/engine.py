"""`Engine`: the tokens of `OpenVLAForActionPrediction.generate_action_tokens`, sooner.

A frozen runtime around a loaded model: fused weights, static cache, and on a GPU captured graphs,
so that the host starts two graphs and reads one small answer per action.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch

from openvla_ros.engine.calibration import Differences, differences
from openvla_ros.engine.drafting import Acceptance, decode_plainly, verify
from openvla_ros.engine.language import Language
from openvla_ros.engine.operations import choose_operations
from openvla_ros.engine.programs import Program
from openvla_ros.engine.towers import Vision
from openvla_ros.engine.weights import MAX_POSITIONS, LanguageWeights, fuse_language_model
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.modeling import GeneratedTokens, OpenVLAForActionPrediction

#: Prompt lengths whose graphs are kept.
_KEPT_PROGRAMS = 8


class Engine:
    """A model made fast. It takes over the model's weights; one thread uses it at a time.

    Attributes:
        choices: Which arithmetic it runs on, and why.
        margin: Between the two highest logits, below which ids that rest on the prompt's pass alone
            are computed again. Infinite, always again, until `calibrate` has measured.
        passes_are_plain: Whether a pass of several rows gives each the bits of a pass of its own,
            as `calibrate` found it; until then they are not relied upon.
        differences: What `calibrate` measured; None before. If it found the prompt's own logits to
            depend on the draft behind it, drafts are ignored.

    Args:
        model: In evaluation mode, on the device it runs on.
        quantization: Of the language model's layers: "none", "fp8", "int8" or "int4".
        use_graphs: Capture CUDA graphs; without them every call launches its kernels one by one.
        weights: The language model's, fused in this quantization already; None fuses them here.
        keeps_modules: Whether the model must go on running by itself. On a CPU in bfloat16 it then
            runs slower: the weights are not packed for it.

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
        keeps_modules: bool = False,
    ) -> None:
        weights = weights or fuse_language_model(model, quantization)
        weights, operations, why = choose_operations(weights, model, keeps_modules=keeps_modules)
        config = model.config
        self.device = weights.embedding.device
        self.vision = Vision(model, operations)
        self.language = Language(weights, operations, MAX_POSITIONS)
        self.choices = {"engine": f"{operations.name}: {why}"}
        self.margin = math.inf
        self.passes_are_plain = False
        self.differences: Differences | None = None
        self.action_ids = range(
            config.action_vocab_size - config.n_action_bins, config.action_vocab_size
        )
        self.patch_positions = model.vision_backbone.num_patches
        self.pixel_shape = (model.vision_backbone.channels, *2 * config.image_sizes[:1])
        on_gpu = self.device.type == "cuda"
        self.graph_pool = torch.cuda.graph_pool_handle() if use_graphs and on_gpu else None
        self._programs: OrderedDict[tuple[int, int], Program] = OrderedDict()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def generate_action_tokens(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor, action_dim: int
    ) -> GeneratedTokens:
        """Return exactly `action_dim` greedily chosen ids for one image and prompt.

        The choice is over the full vocabulary; neither EOS nor any other id shortens it. The first
        call of a prompt length records its graphs, which takes a moment longer.

        Args:
            input_ids: (1, T) int64, ending in the empty token.
            pixel_values: (1, 3 or 6, H, W).
            action_dim: Number of ids to generate.

        Raises:
            ConfigurationError: Image and prompt are longer than the cache.
        """
        with self._lock:
            program = self._program(input_ids, action_dim)
            program.load(input_ids, pixel_values)
            return decode_plainly(program)

    @torch.inference_mode()
    def verify_draft(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        action_dim: int,
        draft: Sequence[int],
        *,
        tolerance: int = 0,
    ) -> GeneratedTokens:
        """Return the same ids as `generate_action_tokens`, in fewer passes when the draft is good.

        The draft is checked inside the prompt's pass. What it gets wrong is corrected by passes
        that check all remaining ids at once, each of which yields at least one: there are never
        more passes than plain decoding needs. Where such passes have not the bits of plain decoding
        (`passes_are_plain`), plain decoding follows instead. An action that the prompt's pass
        confirms whole counts only if its margins reach `margin`.

        Args:
            input_ids: (1, T) int64, ending in the empty token.
            pixel_values: (1, 3 or 6, H, W).
            action_dim: Number of ids to generate.
            draft: `action_dim` expected ids, for example those of the action before. Any ids of the
                vocabulary are allowed; they only decide how long it takes.
            tolerance: Above 0 the answer is NOT that of plain decoding: a drafted action id counts
                when it is so many bins or fewer from the network's own choice after the ids before
                it, and is itself returned.

        Raises:
            ConfigurationError: Image and prompt are longer than the cache, the draft's length is
                not `action_dim`, an id is none of the vocabulary, or the tolerance is negative.
        """
        if len(draft) != action_dim:
            raise ConfigurationError(
                f"The draft has {len(draft)} ids, the action {action_dim}; give one id for each."
            )
        vocabulary = len(self.language.weights.embedding)
        outside = [drafted for drafted in draft if not 0 <= drafted < vocabulary]
        if outside:
            raise ConfigurationError(
                f"The draft has the id {outside[0]}; ids are 0 to {vocabulary - 1}."
            )
        if tolerance < 0:
            raise ConfigurationError(f"tolerance is {tolerance}; give 0 (exact) or more bins.")
        with self._lock:
            program = self._program(input_ids, action_dim)
            program.load(input_ids, pixel_values)
            if self.differences is not None and not self.differences.prompt_is_plain:
                return decode_plainly(program)
            acceptance = Acceptance(self.margin, self.passes_are_plain, tolerance, self.action_ids)
            return verify(program, draft, acceptance)

    @torch.inference_mode()
    def calibrate(
        self,
        input_ids: torch.Tensor,
        images: Iterable[torch.Tensor],
        action_dim: int,
        *,
        within_s: float = math.inf,
    ) -> float:
        """Return the margin that the guard uses from now on, measured on these inputs.

        A position computed in the prompt's pass differs by rounding from one computed in a pass of
        its own: the guard asks for several times the largest difference seen. Whether passes of
        several rows differ, too, is measured by the way.

        Args:
            input_ids: (1, T).
            images: Pixel values (1, 3 or 6, H, W) each; at least one.
            action_dim: Number of ids.
            within_s: No further image is begun after so many seconds, but two are always used.
        """
        started = time.perf_counter()
        found: Differences | None = None
        with self._lock:
            program = self._program(input_ids, action_dim)
            for pixels in images:
                seen = differences(program, input_ids, pixels)
                found = seen if found is None else found.joined(seen)
                if found.images >= 2 and time.perf_counter() - started > within_s:
                    break
        assert found is not None, "calibration needs an image"
        self.differences = found
        self.margin = found.margin
        self.passes_are_plain = found.prompt_is_plain and found.passes_are_plain
        return self.margin

    def _program(self, input_ids: torch.Tensor, action_dim: int) -> Program:
        prompt_length = input_ids.shape[1]
        key = (prompt_length, action_dim)
        if key in self._programs:
            self._programs.move_to_end(key)
            return self._programs[key]
        needed = self.patch_positions + prompt_length + 2 * action_dim
        if needed > self.language.capacity:
            raise ConfigurationError(
                f"Image, prompt and action take {needed} positions; the engine has room for "
                f"{self.language.capacity}. Shorten the instruction."
            )
        while len(self._programs) >= _KEPT_PROGRAMS:
            self._programs.popitem(last=False)
        program = Program(self, prompt_length, action_dim)
        try:
            program.record()
        except torch.OutOfMemoryError:
            self._programs.clear()  # who tries again finds the memory of the other graphs free
            raise
        self._programs[key] = program
        return program
