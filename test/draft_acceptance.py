"""How often the action before is right as a draft: on recorded actions, and on a trained policy.

What a draft saves depends on it alone: the latency as a function of accepted ids is measured on a
GPU with random weights (`openvla_ros.engine.bench`), the share of each number of ids here. Both
together give a latency that is calculated, and called so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from bridge_episodes import (
    Episode,
    action_windows,
    bridge_stats,
    is_pause,
    normalize,
    reached_actions,
)
from overfitted_policy import ACTION_DIM

from openvla_ros.engine.engine import Engine
from openvla_ros.evaluation.metrics.token_metrics import leading_matches
from openvla_ros.model.action_tokenizer import ActionTokenizer
from openvla_ros.model.modeling import GeneratedTokens
from openvla_ros.policy import OpenVLAPolicy

#: Ids that a draft can save: the last one comes out of the pass that confirms the six before it.
USEFUL = ACTION_DIM - 1
TOKENIZER = ActionTokenizer()


@dataclass(frozen=True)
class Recorded:
    """Leading ids that consecutive recorded actions have in common.

    Attributes:
        name: Where they come from, and which of them.
        matches: (N,) 0 .. 6.
        near: (N,) the same with one bin of tolerance.
        episodes: (N,) which episode each belongs to.
    """

    name: str
    matches: np.ndarray
    near: np.ndarray
    episodes: np.ndarray


def recorded_acceptance(episodes: Sequence[Episode]) -> Iterator[Recorded]:
    """Yield the statistics of all recorded sequences, and of their pauses and movements."""
    sources = {
        "first ten steps, as commanded": [episode.actions for episode in episodes],
        "first ten steps, as reached": [reached_actions(episode) for episode in episodes],
        "up to ten steps anywhere, as commanded": action_windows(),
    }
    for name, sequences in sources.items():
        sequences = [actions for actions in sequences if len(actions) > 1]
        ids = [TOKENIZER.encode(normalize(actions, bridge_stats())) for actions in sequences]
        before = np.concatenate([a[:-1] for a in ids])
        after = np.concatenate([a[1:] for a in ids])
        paused = is_pause(np.concatenate([actions[1:] for actions in sequences]))
        episode = np.concatenate([np.full(len(a) - 1, i) for i, a in enumerate(ids)])
        matches = np.minimum(leading_matches(before, after, TOKENIZER), USEFUL)
        near = np.minimum(leading_matches(before, after, TOKENIZER, tolerance_bins=1), USEFUL)
        for part, chosen in (("moving", ~paused), ("paused", paused)):
            if chosen.any():
                yield Recorded(f"{name}; {part}", matches[chosen], near[chosen], episode[chosen])


@dataclass
class Acceptance:
    """What became of drafts on consecutive frames.

    Attributes:
        accepted: Number of drafts by accepted ids, 0 .. 6.
        passes: Number of actions by passes, 0 .. 7.
        guard_fired: Drafts confirmed by the prefill that a pass had to confirm again.
        found: Ids of every action.
        plain: Ids of plain decoding for the same frames.
    """

    accepted: np.ndarray = field(default_factory=lambda: np.zeros(USEFUL + 1, int))
    passes: np.ndarray = field(default_factory=lambda: np.zeros(ACTION_DIM + 1, int))
    guard_fired: int = 0
    found: list[list[int]] = field(default_factory=list)
    plain: list[list[int]] = field(default_factory=list)

    def add(self, answer: GeneratedTokens, plain: Sequence[int]) -> None:
        """Count one answer."""
        self.accepted[answer.drafts_accepted] += 1
        self.passes[answer.passes] += 1
        self.guard_fired += answer.guard_fired
        self.found.append(answer.token_ids)
        self.plain.append(list(plain))

    @property
    def mismatches(self) -> int:
        """Actions that differ from plain decoding."""
        return sum(a != b for a, b in zip(self.found, self.plain, strict=True))


@dataclass(frozen=True)
class Shown:
    """One frame as the network takes it, and what plain decoding makes of it."""

    input_ids: torch.Tensor  # (1, T)
    pixel_values: torch.Tensor  # (1, 6, 224, 224)
    plain: list[int]


def show(policy: OpenVLAPolicy, episodes: Sequence[Episode]) -> list[list[Shown]]:
    """Return every frame of every episode with its plain answer."""
    engine = _engine(policy)
    shown: list[list[Shown]] = []
    for episode in episodes:
        shown.append([])
        for frame in episode.frames:
            made = policy.processor(frame, episode.instruction)
            inputs = made.input_ids, made.pixel_values
            plain = engine.generate_action_tokens(*inputs, ACTION_DIM).token_ids
            shown[-1].append(Shown(*inputs, plain))
    return shown


def follow(
    policy: OpenVLAPolicy, episodes: Sequence[Sequence[Shown]], tolerance: int = 0
) -> Acceptance:
    """Return the acceptance when each frame's draft is the answer to the frame before.

    Args:
        policy: On its engine.
        episodes: Their first frames have no draft and are not counted.
        tolerance: Bins by which an accepted id may differ; 0 is exact.
    """
    counts = Acceptance()
    for first, *others in episodes:
        previous = first.plain
        for frame in others:
            previous = _verify(policy, frame, previous, counts, tolerance)
    return counts


def challenge(
    policy: OpenVLAPolicy, episodes: Sequence[Sequence[Shown]], seed: int = 0
) -> Acceptance:
    """Return what became of three drafts per frame that look for a difference to plain decoding.

    The right answer, the right answer with one id a bin off, and seven random action ids.
    """
    generator = np.random.default_rng(seed)
    counts = Acceptance()
    for frame in (frame for episode in episodes for frame in episode):
        near = list(frame.plain)
        near[int(generator.integers(USEFUL))] -= 1
        noise = generator.integers(31744, 32000, ACTION_DIM).tolist()
        for draft in (frame.plain, near, noise):
            _verify(policy, frame, draft, counts)
    return counts


def _verify(
    policy: OpenVLAPolicy,
    frame: Shown,
    draft: Sequence[int],
    counts: Acceptance,
    tolerance: int = 0,
) -> list[int]:
    answer = _engine(policy).verify_draft(
        frame.input_ids, frame.pixel_values, ACTION_DIM, draft, tolerance=tolerance
    )
    counts.add(answer, frame.plain)
    return answer.token_ids


@contextmanager
def passes_as_on_gpu(policy: OpenVLAPolicy) -> Iterator[None]:
    """Let passes of several rows count although a CPU rounds them otherwise than single ones.

    The engine's own GPU kernels give both the same bits. Only so can a CPU say how many passes an
    action takes there; the answers may then differ from plain decoding by rounding.
    """
    engine = _engine(policy)
    before = engine.passes_are_plain
    engine.passes_are_plain = True
    try:
        yield
    finally:
        engine.passes_are_plain = before


def _engine(policy: OpenVLAPolicy) -> Engine:
    assert policy.engine is not None, "drafts are the engine's"
    return policy.engine


@dataclass(frozen=True)
class LatencyCurve:
    """What an accepted id is worth, as a bench file says.

    Attributes:
        source: File name.
        plain_ms: p50 of plain decoding.
        by_accepted_ms: (7,) p50 with 0 .. 6 right ids in the draft.
        base_ms: Of the line through the measured (mean passes, p50).
        pass_ms: Its slope.
    """

    source: str
    plain_ms: float
    by_accepted_ms: np.ndarray
    base_ms: float
    pass_ms: float

    @classmethod
    def read(cls, path: Path) -> LatencyCurve:
        """Return the curve of a `--json` file of the bench that measured drafts."""
        measured = json.loads(path.read_text(encoding="utf-8"))
        rows = [r for r in measured["drafts"]["latency"] if r["right_drafts"] != "plain"]
        by_accepted = {row["right_drafts"]: row["p50_ms"] for row in rows}
        line = [(row["mean_passes"], row["p50_ms"]) for row in rows]
        slope, base = np.polyfit(*zip(*line, strict=True), deg=1)
        return cls(
            source=path.name,
            plain_ms=measured["variants"]["ours_plain"]["p50_ms"],
            by_accepted_ms=np.array([by_accepted[k] for k in range(USEFUL + 1)]),
            base_ms=float(base),
            pass_ms=float(slope),
        )

    def by_accepted(self, histogram: np.ndarray) -> float:
        """Return the mean latency, ms, for drafts of which (7,) had 0 .. 6 ids accepted."""
        return float(histogram @ self.by_accepted_ms / histogram.sum())

    def by_passes(self, histogram: np.ndarray) -> float:
        """Return the mean latency, ms, for actions of which (8,) took 0 .. 7 passes."""
        passes = histogram @ np.arange(len(histogram)) / histogram.sum()
        return self.base_ms + self.pass_ms * float(passes)
