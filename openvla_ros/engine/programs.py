"""What runs for one length of prompt: static inputs and outputs, and the stages that join them.

A stage runs unrecorded the first time and is captured as a CUDA graph the second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from openvla_ros.model.modeling import GeneratedTokens

if TYPE_CHECKING:
    from openvla_ros.engine.engine import Engine

_EVENTS = 32  # stages of one action, at most


class Program:
    """Inputs, graphs and clock that every way of decoding has.

    Args:
        engine: Vision, language model and graph pool.
        prompt_length: T, ids of the prompt.
        action_dim: n, ids to generate.
    """

    def __init__(self, engine: Engine, prompt_length: int, action_dim: int) -> None:
        device = engine.device
        self.engine = engine
        self.action_dim = action_dim
        self.start = engine.patch_positions + prompt_length  # position of the first action id
        self.input_ids = torch.zeros(prompt_length, dtype=torch.int64, device=device)
        self.pixel_values = torch.zeros(engine.pixel_shape, device=device)
        self.patches = torch.empty(0)
        on_gpu = device.type == "cuda"
        self._host_ids = torch.zeros(prompt_length, dtype=torch.int64)
        self._staging = torch.empty(engine.pixel_shape, pin_memory=on_gpu)
        self.clock = _Clock(device)
        self._runs: dict[str, int] = {}
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}

    def load(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> None:
        """Copy the inputs of the next run."""
        self.clock.begin()
        ids = input_ids[0].cpu()
        if not torch.equal(ids, self._host_ids):
            self._host_ids = ids.clone()
            self.input_ids.copy_(ids)
        if pixel_values.device.type == "cpu":
            # A run ends with the host waiting, so the last copy out of this buffer is done. NumPy
            # copies in this thread: waking torch's others takes longer than the copy.
            np.copyto(self._staging.numpy(), pixel_values[0].numpy())
            self.pixel_values.copy_(self._staging, non_blocking=True)
        else:
            self.pixel_values.copy_(pixel_values[0])
        self.clock.mark("copy_ms")

    def see(self) -> None:
        """Stage: the image as language embeddings."""
        self.patches = self.engine.vision(self.pixel_values)

    def embed_prompt(self) -> list[torch.Tensor]:
        """Return embeddings of BOS, the image and the rest of the prompt, (.., D) each."""
        text = F.embedding(self.input_ids, self.engine.language.weights.embedding)
        return [text[:1], self.patches, text[1:]]

    def stage(self, name: str, run: Callable[[], None]) -> None:
        """Do what `run` does: by itself, or by replaying what it launched before."""
        self._runs[name] = self._runs.get(name, 0) + 1
        if self.engine.graph_pool is None or self._runs[name] == 1:
            run()
        else:
            if name not in self._graphs:
                self._graphs[name] = self._capture(run)
            self._graphs[name].replay()
        self.clock.mark(name)

    def _capture(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        pool = self.engine.graph_pool
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            run()
        return graph


class PlainProgram(Program):
    """One id after another."""

    def __init__(self, engine: Engine, prompt_length: int, action_dim: int) -> None:
        super().__init__(engine, prompt_length, action_dim)
        limit = self.start + action_dim
        self.limit = limit
        self.positions = torch.arange(
            self.start, limit, dtype=torch.int32, device=self.input_ids.device
        )
        self.logits: list[torch.Tensor] = []
        self.tokens: list[torch.Tensor] = []
        self.all_logits = torch.empty(0)
        self.answer = torch.empty(0)

    def run(self) -> GeneratedTokens:
        """Return the ids for the inputs as they are."""
        # Apart from the prompt: the host launches one while the device computes the other.
        self.stage("towers_ms", self.see)
        self.stage("prefill_ms", self._prefill)
        self.stage("decode_ms", self._decode)
        ids, probabilities = self.answer.tolist()  # the one point where the host waits
        return GeneratedTokens(
            token_ids=[int(token) for token in ids],
            token_probabilities=tuple(probabilities),
            logits=self.all_logits.clone(),  # the next run overwrites them
            timings=self.clock.timings(),
            passes=self.action_dim,
        )

    def _prefill(self) -> None:
        logits, tokens = self.engine.language.prefill(torch.cat(self.embed_prompt()), wanted=1)
        self.logits, self.tokens = [logits], [tokens]

    def _decode(self) -> None:
        for i in range(self.action_dim - 1):
            position = self.positions[i : i + 1]
            logits, token = self.engine.language.step(self.tokens[-1], position, self.limit)
            self.logits.append(logits)
            self.tokens.append(token)
        self.all_logits = torch.cat(self.logits).float()  # (n, V)
        ids = torch.cat(self.tokens)
        chosen = self.all_logits.gather(1, ids[:, None])[:, 0]
        probabilities = (chosen - self.all_logits.logsumexp(dim=-1)).exp()
        self.answer = torch.stack([ids.float(), probabilities])  # ids are exact in float32


class DraftProgram(Program):
    """A draft checked inside the prefill, then passes that check all that remains at once.

    The first pass begins at the first action id, whatever the prefill accepted: it costs the same,
    and every key, value and logit of it has the bits of plain decoding. Only an action that needs
    no pass at all rests on the prefill's rounding, and the margin guards it.
    """

    def __init__(self, engine: Engine, prompt_length: int, action_dim: int) -> None:
        super().__init__(engine, prompt_length, action_dim)
        device = self.input_ids.device
        self.limit = self.start + 2 * action_dim
        self.drafts = torch.zeros(action_dim, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int32, device=device)
        self.results: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.logits = torch.empty(0)

    def run(self, draft: Sequence[int], margin: float) -> GeneratedTokens:
        """Return the ids for the inputs as they are.

        Args:
            draft: n ids.
            margin: Least margin of ids that rest on the prefill alone.
        """
        n = self.action_dim
        self.drafts.copy_(torch.tensor(draft), non_blocking=True)
        self.stage("towers_ms", self.see)
        ids, margins, chances = self._read("prefill_ms", self._prefill)
        self.logits = self.results["prefill_ms"][0].clone()
        known = 1 + _leading_matches(draft, ids, n - 1)
        accepted = known - 1
        is_final = known == n and min(margins[1:], default=margin) >= margin
        passes, first = 1, 0
        while not is_final:
            guesses = ids[:]  # row i answers what follows the ids before it
            inputs = (guesses[first:] + guesses)[:n]
            self.drafts.copy_(torch.tensor(inputs), non_blocking=True)
            self.position.fill_(self.start + first)
            found, _, sure = self._read("pass_ms", self._pass)
            passes += 1
            count = n - 1 - first  # rows whose answers belong to this action
            right = 1 + _leading_matches(inputs[1:], found, count - 1)
            ids[first + 1 :], chances[first + 1 :] = found[:count], sure[:count]
            self.logits[first + 1 :] = self.results["pass_ms"][0][:count]
            first += right
            is_final = first >= n - 1
        return GeneratedTokens(
            token_ids=ids,
            token_probabilities=tuple(chances),
            logits=self.logits,
            timings=self.clock.timings(),
            passes=passes,
            drafts_accepted=accepted,
        )

    def _read(
        self, name: str, run: Callable[[], None]
    ) -> tuple[list[int], list[float], list[float]]:
        self.stage(name, run)
        ids, margins, chances = self.results[name][1].tolist()
        return [int(token) for token in ids], margins, chances

    def _prefill(self) -> None:
        language = self.engine.language
        drafted = F.embedding(self.drafts[:-1], language.weights.embedding)
        x = torch.cat([*self.embed_prompt(), drafted])
        self._keep("prefill_ms", *language.prefill(x, wanted=self.action_dim))

    def _pass(self) -> None:
        language = self.engine.language
        self._keep("pass_ms", *language.step(self.drafts, self.position, self.limit))

    def _keep(self, name: str, logits: torch.Tensor, ids: torch.Tensor) -> None:
        """Keep logits (n, V), and ids, margins and probabilities (3, n) for the host."""
        logits = logits.float()
        highest = logits.gather(1, ids[:, None])
        second = logits.scatter(1, ids[:, None], float("-inf")).amax(dim=1)
        chances = (highest[:, 0] - logits.logsumexp(dim=1)).exp()
        answer = torch.stack([ids.float(), highest[:, 0] - second, chances])
        self.results[name] = (logits, answer)


def _leading_matches(expected: Sequence[int], found: Sequence[int], most: int) -> int:
    """Return how many of the first `most` ids agree before one does not."""
    for i in range(most):
        if expected[i] != found[i]:
            return i
    return max(most, 0)


class _Clock:
    """Splits an action into stages on the device's own clock, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._names: list[str] = []
        self._marks: list[Any] = []
        if self.on_gpu:
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(_EVENTS)]

    def begin(self) -> None:
        """Start an action."""
        self._names, self._marks = [], []
        self._add()

    def mark(self, name: str) -> None:
        """End a stage."""
        self._names.append(name)
        self._add()

    def _add(self) -> None:
        if self.on_gpu:
            event = self._events[len(self._marks)]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(1e3 * time.perf_counter())

    def timings(self) -> dict[str, float]:
        """Return milliseconds by stage, stages of one name added up."""
        if self.on_gpu:
            self._marks[-1].synchronize()
        spans: dict[str, float] = {}
        for name, a, b in zip(self._names, self._marks, self._marks[1:], strict=False):
            spans[name] = spans.get(name, 0.0) + (a.elapsed_time(b) if self.on_gpu else b - a)
        return spans
