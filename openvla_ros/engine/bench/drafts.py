"""What a number of accepted draft ids costs, and that no draft changes an answer.

With random weights a draft is right as often as this file decides. So the latencies say what an
acceptance is worth, never how fast a robot's policy runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from openvla_ros.engine.bench.measure import summary
from openvla_ros.engine.bench.profiles import ACTION_DIM
from openvla_ros.engine.engine import Engine

WARNING = (
    "Drafts are right here as often as the benchmark decides. No rate in Hz follows from this "
    "curve: combine it with an acceptance measured on real actions."
)
_CALIBRATION_IMAGES = 8
_WARM_UP = 2


def draft_curve(
    engine: Engine,
    input_ids: torch.Tensor,
    images: Sequence[torch.Tensor],
    plain: Sequence[list[int]],
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Return latency by the number of right draft ids, plain decoding beside it.

    Args:
        engine: What runs.
        input_ids: (1, T).
        images: Pixel values.
        plain: The engine's own ids of each image.
        log: Told of every point.
    """
    margin = engine.calibrate(input_ids, images[:_CALIBRATION_IMAGES], ACTION_DIM)
    points: list[dict[str, Any]] = [
        {"right_drafts": "plain"} | _time(engine, input_ids, images, [None] * len(plain))
    ]
    for right in range(ACTION_DIM):
        drafts = [wrong_after(tokens, right) for tokens in plain]
        points.append({"right_drafts": right} | _time(engine, input_ids, images, drafts))
        log(f"drafts {right}: {points[-1]['p50_ms']:.2f} ms")
    engine.margin = -math.inf  # what a confirmed action costs, whatever its margins
    points.append({"right_drafts": "all, guard off"} | _time(engine, input_ids, images, plain))
    engine.margin = margin
    return {"warning": WARNING, "margin": margin, "latency": points}


def check_exactness(
    engine: Engine, input_ids: torch.Tensor, images: Sequence[torch.Tensor]
) -> dict[str, int]:
    """Return how many drafts changed an answer, and how often the margin's guard asked again."""
    counts = {"inputs": 0, "drafts": 0, "mismatches": 0, "full_accepts": 0, "guard_fired": 0}
    for i, pixels in enumerate(images):
        plain = engine.generate_action_tokens(input_ids, pixels, ACTION_DIM).token_ids
        counts["inputs"] += 1
        for right in (i % ACTION_DIM, ACTION_DIM):
            draft = wrong_after(plain, right)
            tokens = engine.verify_draft(input_ids, pixels, ACTION_DIM, draft)
            counts["drafts"] += 1
            counts["mismatches"] += tokens.token_ids != plain
            full = tokens.drafts_accepted == ACTION_DIM - 1
            counts["full_accepts"] += full
            counts["guard_fired"] += full and tokens.passes > 1
    return counts


def wrong_after(tokens: Sequence[int], right: int) -> list[int]:
    """Return ids of which the first `right` are those given, and the others are not."""
    return [token if i < right else token ^ 1 for i, token in enumerate(tokens)]


def _time(
    engine: Engine,
    input_ids: torch.Tensor,
    images: Sequence[torch.Tensor],
    drafts: Sequence[list[int] | None],
) -> dict[str, float]:
    spent, passes, accepted = [], [], []
    pairs = list(zip(images, drafts, strict=False))
    for pixels, draft in [*pairs[:_WARM_UP], *pairs]:
        start = time.perf_counter()
        if draft is None:
            tokens = engine.generate_action_tokens(input_ids, pixels, ACTION_DIM)
        else:
            tokens = engine.verify_draft(input_ids, pixels, ACTION_DIM, draft)
        spent.append(1e3 * (time.perf_counter() - start))
        passes.append(tokens.passes)
        accepted.append(tokens.drafts_accepted)
    warm = min(_WARM_UP, len(pairs))
    return {
        "p50_ms": summary([spent[warm:]])["p50_ms"],
        "mean_passes": sum(passes[warm:]) / len(pairs),
        "mean_accepted": sum(accepted[warm:]) / len(pairs),
    }
