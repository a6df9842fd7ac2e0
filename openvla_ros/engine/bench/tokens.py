"""Whose ids agree with whose, and how sure a float32 copy was where they do not.

Decoding runs freely: after one differing id the rest answers another question. So float32 is asked
about each id given the ids before it that the same variant chose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from openvla_ros.engine.bench.profiles import ACTION_DIM
from openvla_ros.model.modeling import OpenVLAForActionPrediction

Actions = Sequence[Sequence[int]]

MARGIN_NOTE = (
    "margin: distance of the two highest logits of the same network in float32, after the ids that "
    "the variant chose before; mismatch: the variant's id is not float32's"
)


def equal_actions(tokens: Actions, reference: Actions) -> float:
    """Return the share of actions whose ids are all equal."""
    same = [list(a) == list(b) for a, b in zip(tokens, reference, strict=True)]
    return sum(same) / len(same)


def equal_first_ids(tokens: Actions, reference: Actions) -> float:
    """Return the share of actions whose first id is equal."""
    same = [a[0] == b[0] for a, b in zip(tokens, reference, strict=True)]
    return sum(same) / len(same)


def mismatches(tokens: Mapping[str, Actions]) -> dict[str, Any]:
    """Return the share of differing actions, and of differing first ids, for every pair."""
    names = list(tokens)

    def matrix(equal: Any) -> list[list[float]]:
        return [[1.0 - equal(tokens[a], tokens[b]) for b in names] for a in names]

    return {
        "variants": names,
        "actions": matrix(equal_actions),
        "first_ids": matrix(equal_first_ids),
    }


class Judge:
    """The network in float32, asked about ids that others chose.

    Args:
        model: With float32 weights.
        input_ids: (1, T) prompt on the host.
        images: Pixel values on the host.
    """

    def __init__(
        self,
        model: OpenVLAForActionPrediction,
        input_ids: torch.Tensor,
        images: Sequence[torch.Tensor],
    ) -> None:
        self.model = model
        self.input_ids = input_ids
        self.images = list(images)
        self._known: dict[tuple[int, ...], list[tuple[int, float]]] = {}

    def margins(self, tokens: Actions) -> dict[str, Any]:
        """Return a variant's mismatches with float32: how many, and beside which margins."""
        points = []
        for i, action in enumerate(tokens[: len(self.images)]):
            answers = self._answers(i, tuple(action))
            points += [
                (margin, token == best)
                for token, (best, margin) in zip(action, answers, strict=True)
            ]
        wrong = [margin for margin, same in points if not same]
        ordered = sorted(margin for margin, _ in points)
        return {
            "ids": len(points),
            "mismatches": len(wrong),
            "largest_margin_of_a_mismatch": max(wrong, default=None),
            "median_margin": ordered[len(ordered) // 2],
            "points": [[round(margin, 4), same] for margin, same in points],
        }

    @torch.inference_mode()
    def _answers(self, image: int, action: tuple[int, ...]) -> list[tuple[int, float]]:
        """Return float32's id and margin at every position of an action."""
        key = (image, *action[:-1])
        if key not in self._known:
            ids = torch.cat([self.input_ids, torch.tensor([action[:-1]])], dim=1)
            device = self.model.device
            output = self.model(
                input_ids=ids.to(device),
                pixel_values=self.images[image].to(device),
                logits_to_keep=ACTION_DIM,
            )
            best = output.logits[0].float().topk(2)
            margins = (best.values[:, 0] - best.values[:, 1]).tolist()
            self._known[key] = list(zip(best.indices[:, 0].tolist(), margins, strict=True))
        return self._known[key]
