"""Whole runs on recorded episodes end with policies that act as recorded, and look."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import bridge_episodes
import numpy as np
import pytest
from octo_finetuning import (
    BASE_CAMERA,
    BASE_RATE,
    RATES,
    TUNED_CAMERA,
    build_random_base,
    octo_config,
)

from openvla_ros.data.sources import open_episodes
from openvla_ros.model.action_stats import normalize
from openvla_ros.policy import OpenVLAPolicy
from openvla_ros.ros.frame_sources import shared_data_folder
from openvla_ros.training.config import FinetuneConfig
from openvla_ros.training.finetune import FinetuneResult, finetune

EPISODES = (0, 4, 13)
STEPS = 360
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not bridge_episodes.has_recordings(), reason=bridge_episodes.WHY_NOT),
]


def on_three_episodes(config: FinetuneConfig, recordings: Path) -> FinetuneConfig:
    """The run on fewer episodes, and so in fewer steps."""
    (source,) = config.data.sources
    return replace(
        config,
        data=replace(config.data, sources=(replace(source, path=str(recordings)),)),
        optimization=replace(config.optimization, max_steps=STEPS, warmup_steps=20),
        run=replace(config.run, evaluate_every=0),
    )


def free_running_ids(result: FinetuneResult, recordings: Path, camera: str) -> np.ndarray:
    """(N, 7) bool: where the deployed policy answers what was recorded, without first steps."""
    policy = OpenVLAPolicy.from_pretrained(result.folder, device="cpu", dtype="float32")
    stats = policy.norm_stats[policy.unnorm_key]
    hits = []
    for episode in open_episodes(recordings, camera=camera, rate_hz=5.0):
        recorded = policy.action_tokenizer.encode(normalize(episode.actions, stats))
        for step, image in enumerate(episode.open_images()):
            if step > 0:
                answer = policy.predict_action(image, episode.instruction)
                hits.append(np.array(answer.token_ids) == recorded[step])
    return np.array(hits)


def require_merged_equals_attached(result: FinetuneResult, recordings: Path, camera: str) -> None:
    """Both ways to load an adapter give the same tokens, and logits but for rounding."""
    merged, attached = (
        OpenVLAPolicy.from_pretrained(
            result.folder, device="cpu", dtype="float32", engine="off", adapter_mode=mode
        )
        for mode in ("merge", "attach")
    )
    for episode in open_episodes(recordings, camera=camera, rate_hz=5.0):
        for image in episode.open_images():
            inputs = merged.processor(image, episode.instruction)
            one, other = (
                policy.model.generate_action_tokens(inputs.input_ids, inputs.pixel_values, 7)
                for policy in (merged, attached)
            )
            assert one.token_ids == other.token_ids
            off = (one.logits - other.logits).abs().max() / one.logits.abs().max()
            assert off < 1e-5, f"{off:.1e} of the largest logit, {one.logits.abs().max():.1f}"


def require_learnt(figures: dict[str, Any]) -> None:
    """95 % by itself, better than what needs no model, and not without the right pictures."""
    reached = figures["free_running"]["accuracy"]
    assert reached >= 0.95, figures["free_running"]
    for trivial in ("constant", "previous", "swapped_images"):
        assert figures[trivial]["accuracy"] < 0.5 < reached, (trivial, figures[trivial])


def test_recorded_actions_are_learnt_and_then_seen_from_another_side(tmp_path: Path) -> None:
    """Random weights learn them by `full`; LoRA then learns another camera on what came out."""
    data = shared_data_folder()
    assert data is not None
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for number in EPISODES:
        name = f"episode_{number:03d}.npz"
        shutil.copy(data / bridge_episodes.EPISODES / name, recordings / name)
    start = build_random_base(tmp_path / "random")
    config = octo_config("full", start, tmp_path / "base", BASE_CAMERA, BASE_RATE)
    base = finetune(on_three_episodes(config, recordings))
    require_learnt(base.metrics["evaluation"]["training"])

    config = octo_config("lora", base.folder, tmp_path / "lora", TUNED_CAMERA, RATES["lora"])
    tuned = finetune(on_three_episodes(config, recordings))
    figures = tuned.metrics["evaluation"]["training"]
    require_learnt(figures)
    hits = free_running_ids(tuned, recordings, TUNED_CAMERA)
    assert hits.mean() == pytest.approx(figures["free_running"]["accuracy"]), hits.mean(axis=0)
    require_merged_equals_attached(tuned, recordings, TUNED_CAMERA)
    unseen = free_running_ids(base, recordings, TUNED_CAMERA)
    assert unseen.mean() < 0.5, unseen.mean(axis=0)
