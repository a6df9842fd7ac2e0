"""What runs for one length of prompt: static inputs and outputs, and the stages that join them.

On a GPU every stage is recorded as a CUDA graph when the program is made, so an action's first call
costs as much as its hundredth. Which ids count is not decided here: see `drafting`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from openvla_ros.model.stage_clock import StageClock

if TYPE_CHECKING:
    from openvla_ros.engine.engine import Engine

#: Positions that a pass takes at once, at most: what the GPU kernels are made for.
MAX_ROWS = 8


@dataclass(frozen=True)
class Rows:
    """What follows each of M consecutive positions.

    Attributes:
        ids: (M,) ids of the highest logits.
        margins: (M,) by how much those are higher than the second highest.
        probabilities: (M,) of the ids.
        logits: (M, V) float32 on the device; the program's next run overwrites them.
    """

    ids: list[int]
    margins: list[float]
    probabilities: list[float]
    logits: torch.Tensor


class Program:
    """Inputs, stages, graphs and clock for one length of prompt and of action.

    The prompt's pass always has room for a draft behind the prompt, used or not: the prompt's own
    rows then go through products of one shape, and have the same bits with any draft and without.

    Args:
        engine: Vision, language model and graph pool.
        prompt_length: T, ids of the prompt.
        action_dim: n, ids to generate.
    """

    def __init__(self, engine: Engine, prompt_length: int, action_dim: int) -> None:
        device = engine.device
        on_gpu = device.type == "cuda"
        self.engine = engine
        self.action_dim = action_dim
        self.rows = min(action_dim, MAX_ROWS)  # of the draft's part of `begin`, and of a pass
        self.start = engine.patch_positions + prompt_length  # position of the first action id
        self.limit = self.start + 2 * action_dim  # where a pass from the last id ends
        self.input_ids = torch.zeros(prompt_length, dtype=torch.int64, device=device)
        self.pixel_values = torch.zeros(engine.pixel_shape, device=device)
        self.drafts = torch.zeros(self.rows, dtype=torch.int64, device=device)
        self.position = torch.full((1,), self.start, dtype=torch.int32, device=device)
        self.positions = torch.arange(self.start, self.limit, dtype=torch.int32, device=device)
        self.patches = torch.empty(0)
        self.clock = StageClock(device)
        self._host_ids = torch.zeros(prompt_length, dtype=torch.int64)
        self._staging = torch.empty(engine.pixel_shape, pin_memory=on_gpu)
        self._stages: dict[str, Callable[[], None]] = {
            "towers_ms": self._see,
            "prefill_ms": self._prefill,
            "decode_ms": self._decode,
            "pass_ms": self._pass,
        }
        self._results: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}

    def record(self) -> None:
        """Run every stage once and record it, where there are graphs.

        Raises:
            Exception: What a stage raised, for example out of memory; the program is then unusable.
        """
        if self.engine.graph_pool is None:
            return
        for run in self._stages.values():  # unrecorded: compiles kernels, makes libraries ready
            run()
        for name, run in self._stages.items():
            self._graphs[name] = self._capture(run)

    def load(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> None:
        """Copy the inputs of the next run."""
        self.clock.begin()
        ids = input_ids[0].cpu()
        if not torch.equal(ids, self._host_ids):
            self._host_ids = ids.clone()
            self.input_ids.copy_(ids)
        if pixel_values.device.type == "cpu" and not pixel_values.is_pinned():
            # A run ends with the host waiting, so the last copy out of this buffer is done. NumPy
            # copies in this thread: waking torch's others takes longer than the copy.
            np.copyto(self._staging.numpy(), pixel_values[0].numpy())
            self.pixel_values.copy_(self._staging, non_blocking=True)
        else:
            self.pixel_values.copy_(pixel_values[0], non_blocking=True)
        self.clock.mark("copy_ms")

    def begin(self, draft: Sequence[int] | None = None) -> None:
        """Launch towers and prompt; a draft's first `rows` - 1 ids follow the prompt."""
        if draft is None:
            self.drafts.zero_()
        else:
            self.drafts.copy_(torch.tensor(draft[: self.rows]), non_blocking=True)
        # Apart from the prompt: the host launches one while the device computes the other.
        self._run("towers_ms")
        self._run("prefill_ms")

    def drafted(self) -> Rows:
        """Return the `rows` rows of `begin`: what follows the prompt, and each drafted id."""
        return self._read("prefill_ms")

    def decode(self) -> Rows:
        """Return n rows: the first of `begin`, then one id after another."""
        self._run("decode_ms")
        return self._read("decode_ms")

    def check(self, ids: Sequence[int], first: int) -> Rows:
        """Return `rows` rows of one pass: what follows each of the ids from action id `first` on.

        Args:
            ids: At least `first` + 1 of the action's. What is missing is filled up with any.
            first: Place of the first id of the pass in the action.
        """
        taken = [*ids[first : first + self.rows], *([0] * self.rows)][: self.rows]
        self.drafts.copy_(torch.tensor(taken), non_blocking=True)
        self.position.fill_(self.start + first)
        self._run("pass_ms")
        return self._read("pass_ms")

    def _see(self) -> None:
        self.patches = self.engine.vision(self.pixel_values)

    def _prefill(self) -> None:
        language = self.engine.language
        table = language.weights.embedding
        text, drafted = F.embedding(self.input_ids, table), F.embedding(self.drafts[:-1], table)
        x = torch.cat([text[:1], self.patches, text[1:], drafted])  # BOS, image, prompt, draft
        self._keep("prefill_ms", *language.prefill(x, wanted=self.rows))

    def _decode(self) -> None:
        logits, ids, _ = self._results["prefill_ms"]
        rows, tokens = [logits[:1]], [ids[:1]]
        for i in range(self.action_dim - 1):
            found, token = self.engine.language.step(
                tokens[-1], self.positions[i : i + 1], self.limit
            )
            rows.append(found.float())
            tokens.append(token)
        self._keep("decode_ms", torch.cat(rows), torch.cat(tokens))

    def _pass(self) -> None:
        self._keep("pass_ms", *self.engine.language.step(self.drafts, self.position, self.limit))

    def _keep(self, name: str, logits: torch.Tensor, ids: torch.Tensor) -> None:
        """Keep logits (M, V), ids (M,), and both with margins and probabilities for the host."""
        logits = logits.float()
        highest = logits.gather(1, ids[:, None])
        second = logits.scatter(1, ids[:, None], float("-inf")).amax(dim=1)
        chances = (highest[:, 0] - logits.logsumexp(dim=1)).exp()
        answer = torch.stack([ids.float(), highest[:, 0] - second, chances])  # ids are exact
        self._results[name] = (logits, ids, answer)

    def _read(self, name: str) -> Rows:
        logits, _, answer = self._results[name]
        ids, margins, chances = answer.tolist()  # the one point where the host waits
        return Rows([int(token) for token in ids], margins, chances, logits)

    def _run(self, name: str) -> None:
        if name in self._graphs:
            self._graphs[name].replay()
        else:
            self._stages[name]()
        self.clock.mark(name)

    def _capture(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        failure: Exception | None = None
        pool = self.engine.graph_pool
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                try:
                    run()
                except Exception as error:  # ending the capture raises too, and would hide it
                    failure = error
        except RuntimeError as ending:
            raise failure or ending from ending
        if failure is not None:
            raise failure
        return graph
