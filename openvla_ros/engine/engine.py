"""`Engine`: the tokens of `OpenVLAForActionPrediction.generate_action_tokens`, sooner.

A frozen runtime around a loaded model: fused weights, static cache, and on a GPU captured graphs,
so that the host starts two graphs and reads one small answer per action.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from openvla_ros.engine.language import Language
from openvla_ros.engine.operations import choose_operations
from openvla_ros.engine.towers import Vision
from openvla_ros.engine.weights import MAX_POSITIONS, fuse_language_model
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.modeling import GeneratedTokens, OpenVLAForActionPrediction

#: Prompt lengths whose graphs are kept.
_KEPT_PROGRAMS = 8


class Engine:
    """A model made fast. It takes over the model's weights; one thread uses it at a time.

    Args:
        model: In evaluation mode, on the device it runs on.
        quantization: Of the language model's layers: "none", "fp8", "int8" or "int4".
        use_graphs: Capture CUDA graphs; without them every call launches its kernels one by one.

    Raises:
        ConfigurationError: The engine does not support this model; the text says why.
    """

    def __init__(
        self,
        model: OpenVLAForActionPrediction,
        *,
        quantization: str = "none",
        use_graphs: bool = True,
    ) -> None:
        weights = fuse_language_model(model, quantization)
        operations, why = choose_operations(weights)
        self.device = weights.embedding.device
        self.vision = Vision(model, operations)
        self.language = Language(weights, operations, MAX_POSITIONS)
        self.use_graphs = use_graphs and self.device.type == "cuda"
        self.choices = {"engine": f"{operations.name}: {why}"}
        self.patch_positions = model.vision_backbone.num_patches
        self._channels = model.vision_backbone.channels
        self._sizes = model.config.image_sizes
        self._programs: OrderedDict[tuple[int, int], _Program] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if self.use_graphs else None
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
            program = self._program(input_ids.shape[1], action_dim)
            program.input_ids.copy_(input_ids[0], non_blocking=True)
            program.pixel_values.copy_(pixel_values[0], non_blocking=True)
            return program.run()

    def _program(self, prompt_length: int, action_dim: int) -> _Program:
        key = (prompt_length, action_dim)
        if key in self._programs:
            self._programs.move_to_end(key)
            return self._programs[key]
        needed = self.patch_positions + prompt_length + action_dim
        if needed > self.language.capacity:
            raise ConfigurationError(
                f"Image, prompt and action take {needed} positions; the engine has room for "
                f"{self.language.capacity}. Shorten the instruction."
            )
        size = self._sizes[0]
        program = _Program(
            self,
            torch.zeros(prompt_length, dtype=torch.int64, device=self.device),
            torch.zeros(self._channels, size, size, device=self.device),
            action_dim,
        )
        self._programs[key] = program
        if len(self._programs) > _KEPT_PROGRAMS:
            self._programs.popitem(last=False)
        return program

    def run_prefill(self, program: _Program) -> None:
        """Towers, projector, prompt, and the first token."""
        patches = self.vision(program.pixel_values)
        text = F.embedding(program.input_ids, self.language.weights.embedding)
        x = torch.cat([text[:1], patches, text[1:]])  # (P + T, D)
        program.logits, program.tokens = ([part] for part in self.language.prefill(x, wanted=1))

    def run_decode(self, program: _Program) -> None:
        """The other tokens, one by one, and what the host reads."""
        for i in range(program.action_dim - 1):
            position = program.positions[i : i + 1]
            logits, token = self.language.step(program.tokens[-1], position, program.limit)
            program.logits.append(logits)
            program.tokens.append(token)
        all_logits = torch.cat(program.logits).float()  # (n, V)
        ids = torch.cat(program.tokens)
        chosen = all_logits.gather(1, ids[:, None])[:, 0]
        probabilities = (chosen - all_logits.logsumexp(dim=-1)).exp()
        program.all_logits = all_logits
        program.answer = torch.stack([ids.float(), probabilities])  # ids are exact in float32

    def capture(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Return a graph of what `run` launches."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        return graph


@dataclass
class _Program:
    """Static inputs and outputs of one prompt length, and the graphs that join them."""

    engine: Engine
    input_ids: torch.Tensor  # (T,)
    pixel_values: torch.Tensor  # (3 or 6, H, W)
    action_dim: int
    calls: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)
    tokens: list[torch.Tensor] = field(default_factory=list)
    graphs: list[torch.cuda.CUDAGraph] = field(default_factory=list)

    def __post_init__(self) -> None:
        start = self.engine.patch_positions + len(self.input_ids)
        self.limit = start + self.action_dim
        self.positions = torch.arange(
            start, self.limit, dtype=torch.int32, device=self.input_ids.device
        )
        self.all_logits = torch.empty(0)
        self.answer = torch.empty(0)
        self.clock = _Clock(self.input_ids.device)

    def run(self) -> GeneratedTokens:
        """Return the tokens for the inputs as they are."""
        engine = self.engine
        stages: list[Callable[[], None]] = [
            lambda: engine.run_prefill(self),
            lambda: engine.run_decode(self),
        ]
        self.calls += 1
        if engine.use_graphs and self.calls > 1:
            if not self.graphs:
                self.graphs = [engine.capture(stage) for stage in stages]
            stages = [graph.replay for graph in self.graphs]
        self.clock.start()
        for name, stage in zip(("prefill_ms", "decode_ms"), stages, strict=True):
            stage()
            self.clock.stage(name)
        ids, probabilities = self.answer.tolist()  # the one point where the host waits
        return GeneratedTokens(
            token_ids=[int(token) for token in ids],
            token_probabilities=tuple(probabilities),
            logits=self.all_logits.clone(),  # the next call overwrites them
            timings=self.clock.timings(),
            passes=self.action_dim,
        )


class _Clock:
    """Splits an action into stages on the device's own clock, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._names: list[str] = []
        self._events = (
            [torch.cuda.Event(enable_timing=True) for _ in range(8)] if self.on_gpu else []
        )
        self._times: list[float] = []

    def start(self) -> None:
        self._names, self._times = [], []
        self._mark()

    def stage(self, name: str) -> None:
        self._names.append(name)
        self._mark()

    def _mark(self) -> None:
        if self.on_gpu:
            self._events[len(self._names)].record()
        else:
            self._times.append(1e3 * time.perf_counter())

    def timings(self) -> dict[str, float]:
        """Return milliseconds by stage; on a GPU after the host has waited for the last."""
        if self.on_gpu:
            self._events[len(self._names)].synchronize()
            pairs = zip(self._events, self._events[1:])
            spans = [
                first.elapsed_time(second) for first, second in list(pairs)[: len(self._names)]
            ]
        else:
            spans = [b - a for a, b in zip(self._times, self._times[1:])]
        return dict(zip(self._names, spans, strict=True))
