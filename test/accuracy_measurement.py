"""Answers of one checkpoint in every number format, and what becomes of drafts, on real frames."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bridge_episodes import Episode, octo_episodes
from draft_acceptance import Acceptance, challenge, follow, passes_as_on_gpu, show
from int4_rounding import ROUNDINGS, Rounding, relative_error
from overfitted_policy import recorded_tokens

from openvla_ros.evaluation.metrics.token_metrics import most_frequent_tokens
from openvla_ros.policy import OpenVLAPolicy

ENGINE_MODES = ("none", "fp8", "int8", "int4")


@dataclass(frozen=True)
class FrameSet:
    """Episodes of one kind."""

    name: str
    episodes: list[Episode]

    @property
    def tokens(self) -> np.ndarray:
        """(N, 7) ids of the recorded actions."""
        return np.concatenate([recorded_tokens(episode) for episode in self.episodes])


@dataclass(frozen=True)
class Comparison:
    """Answers of every variant and baseline to the frames of one set, (N, 7) ids each."""

    frames: FrameSet
    variants: dict[str, np.ndarray]
    baselines: dict[str, np.ndarray]


@dataclass(frozen=True)
class Drafts:
    """What became of drafts in one number format.

    Attributes:
        mode: The number format.
        margin: That the guard asked for.
        passes_are_plain: Whether passes of several rows had the bits of plain decoding.
        followed: By set of frames, the action before as the draft.
        on_gpu: The same with passes counted as on a GPU.
        relaxed: The same with a tolerance of one bin.
        challenged: Drafts that look for differences.
    """

    mode: str
    margin: float
    passes_are_plain: bool
    followed: dict[str, Acceptance]
    on_gpu: dict[str, Acceptance]
    relaxed: dict[str, Acceptance]
    challenged: Acceptance


def frame_sets() -> list[FrameSet]:
    """Return the frames to learn, those of other episodes, and those of another camera."""
    episodes = octo_episodes()
    others = octo_episodes(camera=1)
    return [
        FrameSet("frames it has learnt", episodes[1::2]),
        FrameSet("episodes it has never seen", episodes[::2]),
        FrameSet("a camera it has never seen", others),
    ]


def variants() -> dict[str, dict[str, str]]:
    """Return the name of each number format -> arguments of `load`.

    The first is the reference. Formats of bitsandbytes only where it is installed.
    """
    modes = [*ENGINE_MODES[1:]]
    if importlib.util.find_spec("bitsandbytes"):
        modes += ["nf4", "bnb_int8"]
    return {
        "bf16": {},
        "float32": {"dtype": "float32"},
        **{mode: {"quantization": mode} for mode in modes},
    }


def answers(policy: OpenVLAPolicy, episodes: Sequence[Episode]) -> np.ndarray:
    """Return (N, 7) ids that the policy gives for every frame."""
    return np.array(
        [
            policy.predict_action(frame, episode.instruction).token_ids
            for episode in episodes
            for frame in episode.frames
        ]
    )


def compare(checkpoint: Path, sets: Sequence[FrameSet]) -> list[Comparison]:
    """Return the answers of every variant and baseline to every set."""
    found: dict[str, list[np.ndarray]] = {}
    for name, arguments in variants().items():
        policy = load(checkpoint, **arguments)
        found[name] = [answers(policy, frames.episodes) for frames in sets]
    constant = most_frequent_tokens(sets[0].tokens)
    return [
        Comparison(
            frames,
            {name: by_set[i] for name, by_set in found.items()},
            baselines(frames, constant),
        )
        for i, frames in enumerate(sets)
    ]


def baselines(frames: FrameSet, constant: np.ndarray) -> dict[str, np.ndarray]:
    """Return answers that need no network.

    Args:
        frames: What to answer.
        constant: (7,) most frequent id of each dimension among the learnt frames.
    """
    before = [np.concatenate([constant[None], recorded_tokens(e)[:-1]]) for e in frames.episodes]
    return {
        "constant action": np.repeat(constant[None], len(frames.tokens), axis=0),
        "previous action": np.concatenate(before),
    }


def measure_drafts(checkpoint: Path, sets: Sequence[FrameSet]) -> list[Drafts]:
    """Return what becomes of drafts in every number format of the engine."""
    measured = []
    for mode in ENGINE_MODES:
        policy = load(checkpoint, quantization=mode, drafts=True)  # which calibrates the guard
        assert policy.engine is not None
        shown = {frames.name: show(policy, frames.episodes) for frames in sets}
        followed = {name: follow(policy, episodes) for name, episodes in shown.items()}
        challenged = challenge(policy, [e for episodes in shown.values() for e in episodes])
        with passes_as_on_gpu(policy):
            on_gpu = {name: follow(policy, episodes) for name, episodes in shown.items()}
            relaxed = {name: follow(policy, episodes, 1) for name, episodes in shown.items()}
        measured.append(
            Drafts(
                mode,
                policy.engine.margin,
                policy.engine.passes_are_plain,
                followed,
                on_gpu,
                relaxed,
                challenged,
            )
        )
    return measured


def load(checkpoint: Path, **arguments: Any) -> OpenVLAPolicy:
    """Return the checkpoint on a CPU, in bfloat16 unless told otherwise, decoding plainly."""
    defaults = {"device": "cpu", "dtype": "bfloat16", "drafts": False}
    return OpenVLAPolicy.from_pretrained(checkpoint, **(defaults | arguments))


@dataclass(frozen=True)
class RoundingResult:
    """What one way of rounding to int4 does.

    Attributes:
        name: Of the way.
        fits: Whether the engine's format holds it.
        trained_error: Mean relative error of the policy's matrices.
        normal_error: Relative error of a normally distributed matrix.
        answers: (N, 7) ids for every set of frames.
    """

    name: str
    fits: bool
    trained_error: float
    normal_error: float
    answers: list[np.ndarray]


def measure_roundings(checkpoint: Path, sets: Sequence[FrameSet]) -> list[RoundingResult]:
    """Return what each way of rounding does to weights and answers."""
    normal = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    results = []
    for name, (rounding, fits) in ROUNDINGS.items():
        policy = load(checkpoint, engine="off")
        errors = round_in_place(policy, rounding)
        found = [answers(policy, frames.episodes) for frames in sets]
        results.append(
            RoundingResult(
                name, fits, float(np.mean(errors)), relative_error(normal, rounding), found
            )
        )
    return results


def round_in_place(policy: OpenVLAPolicy, rounding: Rounding) -> list[float]:
    """Round every linear of the decoder's layers, and return the relative error of each."""
    errors = []
    with torch.no_grad():
        for module in policy.model.language_model.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                errors.append(relative_error(module.weight, rounding))
                module.weight.copy_(rounding(module.weight))
    return errors
