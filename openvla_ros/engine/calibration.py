"""How far the engine's ways of computing a logit differ, and the margin that covers it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from openvla_ros.engine.programs import Program

#: The guard asks for so many times the largest difference that was seen.
SAFETY_FACTOR = 1.5
#: Only the highest logits can change places; a rounding error grows with the logit.
_COMPARED = 8
#: Least margin, in steps of the number format at the highest logit: a difference of none at all on
#: a few images proves nothing about the next one.
_LEAST_STEPS = 2


@dataclass(frozen=True)
class Differences:
    """What a few images showed.

    Attributes:
        images: How many they were.
        change: Largest difference of one of the highest logits between two ways of computing it.
        step: Spacing of the number format at the highest logit.
        prompt_is_plain: Whether the prompt's logits had the same bits whatever followed the prompt.
        passes_are_plain: Whether every logit of a pass of several rows had the bits of plain
            decoding.
    """

    images: int
    change: float
    step: float
    prompt_is_plain: bool = True
    passes_are_plain: bool = False

    @property
    def margin(self) -> float:
        """Between two logits, from which on both ways choose the same id."""
        # Two logits, each off by as much.
        return max(2 * SAFETY_FACTOR * self.change, _LEAST_STEPS * self.step)

    def joined(self, other: Differences) -> Differences:
        """Return what both showed together."""
        return Differences(
            self.images + other.images,
            max(self.change, other.change),
            max(self.step, other.step),
            self.prompt_is_plain and other.prompt_is_plain,
            self.passes_are_plain and other.passes_are_plain,
        )


def largest_change(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference among the highest logits of rows (M, V)."""
    top = expected.topk(_COMPARED).indices
    return float((found - expected).gather(1, top).abs().max())


def step_of(logits: torch.Tensor, dtype: torch.dtype) -> float:
    """Return the spacing of `dtype` at the highest of the logits."""
    return torch.finfo(dtype).eps * float(logits.abs().max())


def differences(
    program: Program, input_ids: torch.Tensor, pixel_values: torch.Tensor
) -> Differences:
    """Return how the prompt's pass and passes of several rows differ from plain decoding.

    Args:
        program: For these inputs' length.
        input_ids: (1, T).
        pixel_values: (1, 3 or 6, H, W).
    """
    program.load(input_ids, pixel_values)
    program.begin()
    plain = program.decode()
    expected = plain.logits.clone()
    program.load(input_ids, pixel_values)
    program.begin(plain.ids)
    drafted = program.drafted().logits
    n = program.action_dim
    same = torch.equal(drafted[0], expected[0])
    prompt_is_plain = same
    for first in (0, n // 2):  # the second attends to what the first has cached
        found = program.check(plain.ids, first).logits
        count = min(program.rows, n - 1 - first)
        same = same and torch.equal(found[:count], expected[first + 1 : first + 1 + count])
    dtype = program.engine.language.weights.embedding.dtype
    change = largest_change(drafted, expected[: program.rows])
    return Differences(1, change, step_of(expected, dtype), prompt_is_plain, same)
