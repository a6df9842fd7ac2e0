"""The `backend` parameter → a loaded, tested policy."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from openvla_ros.config.policy import ModelConfig, TimingConfig
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.types import PRIMARY, Observation, Policy

TRIAL_INSTRUCTION = "do nothing"


def load_policy(model: ModelConfig) -> Policy:
    """Return the policy that the parameters name. Takes minutes for a large checkpoint.

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
    )


def measure_latency_s(
    policy: Policy, iterations: int, clock: Callable[[], float] = time.monotonic
) -> float | None:
    """Return the time of the fastest trial prediction, on a grey frame; None for no iterations.

    The fastest, because the first one also pays for what is prepared only once.
    """
    observation = Observation(
        images={PRIMARY: np.full((480, 640, 3), 127, np.uint8)}, instruction=TRIAL_INSTRUCTION
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
