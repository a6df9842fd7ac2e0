"""`openvla-ros doctor --run`: the policy loaded for a moment, what it chose, measured and did."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from openvla_ros.cli.output import needs
from openvla_ros.errors import OpenVLAError
from openvla_ros.types import Finding

if TYPE_CHECKING:
    from openvla_ros.policy import OpenVLAPolicy

_FRAMES = 12
_STEP_PX = 2  # the made-up camera turns by so much from frame to frame
_INSTRUCTION = "pick up the cup"


def policy_findings(checkpoint: str, quantization: str, exactness: str) -> list[Finding]:
    """Return choices, self test, latency and statistics of a policy on made-up frames."""
    try:
        with needs("Running a policy"):
            from openvla_ros.policy import OpenVLAPolicy
        policy = OpenVLAPolicy.from_pretrained(
            checkpoint, quantization=quantization, exactness=exactness, local_files_only=True
        )
        policy.self_test()
        return [*_choices(policy), *_answers(policy)]
    except OpenVLAError as error:
        return [Finding("policy", checkpoint, "cannot run", str(error), "problem")]


def _choices(policy: OpenVLAPolicy) -> Iterator[Finding]:
    for name, choice in policy.info.choices.items():
        value, _, reason = choice.partition(": ")
        yield Finding("policy", name, value, reason)
    yield Finding("policy", "self test", "passed", "it looks at its image, and repeats itself")


def _answers(policy: OpenVLAPolicy) -> Iterator[Finding]:
    from openvla_ros.engine.self_test import smooth_frames

    key = policy.info.unnorm_key or next(iter(policy.norm_stats))
    (picture,) = smooth_frames(1)
    times_ms = []
    for i in range(_FRAMES):
        frame = np.roll(picture, i * _STEP_PX, axis=1)
        times_ms.append(
            policy.predict_action(frame, _INSTRUCTION, unnorm_key=key).timings["total_ms"]
        )
    yield Finding(
        "policy",
        "latency",
        f"{statistics.median(times_ms):.0f} ms",
        f"median of {_FRAMES} frames, slowest {max(times_ms):.0f} ms",
    )
    for name, value in policy.statistics.described().items():
        yield Finding("policy", name, value, "a slow pan over a made-up picture, not your robot")
