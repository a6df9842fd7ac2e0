"""The `backend` parameter → a loaded, tested policy."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from openvla_ros.config.policy import ModelConfig, TimingConfig
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.types import PRIMARY, Observation, Policy

TRIAL_INSTRUCTION = "do nothing"
_WORTH_TELLING_BYTES = 2**28  # less is read before anyone has read a line about it


def load_policy(model: ModelConfig, log: Callable[[str], None] | None = None) -> Policy:
    """Return the policy that the parameters name. Takes minutes for a large checkpoint.

    Args:
        model: The parameters.
        log: Gets a line at every tenth of the way.

    Raises:
        OpenVLAError: The checkpoint, its statistics, the device or a library is not usable.
    """
    if model.backend == "mock":
        return MockPolicy(model.mock_action, latency_s=model.mock_latency_s, fault=model.mock_fault)
    # Imported here: torch takes seconds, and the mock works without it.
    from openvla_ros.model.image_options import ImageOptions
    from openvla_ros.policy import OpenVLAPolicy

    image_options = ImageOptions(
        rotate_180=model.rotate_image_180,
        jpeg_round_trip=model.jpeg_round_trip,
        lanczos3=model.lanczos3,
        center_crop=model.center_crop,
    )
    return OpenVLAPolicy.from_pretrained(
        model.checkpoint,
        device=model.device,
        dtype=model.dtype,
        quantization=model.quantization,
        adapter=model.adapter or None,
        unnorm_key=model.unnorm_key or None,
        revision=model.revision or None,
        local_files_only=model.local_files_only,
        attn_implementation=model.attn_implementation,
        min_free_gpu_memory_gib=model.min_free_gpu_memory_gib,
        image_options=image_options,
        engine="auto" if model.use_engine else "off",
        exactness=model.exactness,
        drafts=model.drafts,
        draft_tolerance=model.draft_tolerance,
        progress=tenths(log) if log else None,
    )


def tenths(log: Callable[[str], None]) -> Callable[[int, int, str], None]:
    """Return what takes bytes done, bytes in all and what is done, and logs every tenth."""
    told: dict[str, int] = {}

    def report(done: int, total: int, what: str) -> None:
        tenth = 10 * done // max(total, 1)
        if total >= _WORTH_TELLING_BYTES and tenth > told.get(what, 0):
            told[what] = tenth
            log(f"{what}: {10 * tenth} % of {total / 1e9:.1f} GB")

    return report


def measure_latency_s(
    policy: Policy,
    iterations: int,
    clock: Callable[[], float] = time.monotonic,
    *,
    instruction: str = "",
) -> float | None:
    """Return the time of the fastest trial prediction, on a grey frame; None for no iterations.

    The fastest, because the first one also pays for what is prepared only once, such as the graphs
    of a prompt's length: with the instruction at hand, its first real frame need not. A trial has
    no stamp, so no draft makes it faster than an action can be.
    """
    observation = Observation(
        images={PRIMARY: np.full((480, 640, 3), 127, np.uint8)},
        instruction=instruction or TRIAL_INSTRUCTION,
    )
    times_s = []
    for _ in range(iterations):
        start_s = clock()
        policy.predict(observation)
        times_s.append(clock() - start_s)
    return min(times_s) if times_s else None


def latency_warning(latency_s: float | None, timing: TimingConfig) -> str:
    """Return what the measured latency makes impossible, in words; "" when all is well."""
    if latency_s is None:
        return ""
    if latency_s > timing.max_action_age:
        return (
            f"one prediction takes {latency_s:.2f} s on this machine, longer than max_action_age "
            f"({timing.max_action_age} s): every answer will be dropped as STALE and the arm will "
            "not move."
        )
    if latency_s > 1.0 / timing.policy_rate:
        return (
            f"one prediction takes {latency_s:.2f} s on this machine, so it reaches "
            f"{1.0 / latency_s:.1f} Hz instead of policy_rate ({timing.policy_rate} Hz)."
        )
    return ""
