"""What replay tests share: a small checkpoint, made-up episodes, and policies that misbehave.

Importable by other processes: workers and children load their policies from here.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros.data.episode import Episode
from openvla_ros.errors import SelfTestError
from openvla_ros.evaluation.episode_record import EpisodeRecord, read_record
from openvla_ros.evaluation.replay.variants import MadeVariant
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.types import PRIMARY, Observation, Prediction

ACTION = (0.01, -0.02, 0.005, 0.0, 0.0, 0.1, 1.0)
PERIOD_NS = 200_000_000

#: 224 pixels in patches of 56: an action takes milliseconds.
_TOWERS = {
    "small_dinov2": {
        "patch_size": 56,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 4,
        "reg_tokens": 4,
        "no_embed_class": True,
        "init_values": 1.0,
    },
    "small_siglip": {
        "patch_size": 56,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 4,
        "mlp_ratio": 3.0,
        "class_token": False,
        "global_pool": "map",
    },
}
_TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32064,
    "pad_token_id": 32000,
    "dtype": "bfloat16",
}


def small_checkpoint(out: Path, seed: int = 0) -> Path:
    """Return `out`, filled with random weights; its answers depend on image and instruction."""
    import torch  # here: made policies do without, and so do the processes that load them

    from openvla_ros.model.action_stats import STATISTICS_FILE
    from openvla_ros.model.checkpoint import expected_shapes
    from openvla_ros.model.configuration import OpenVLAConfig
    from openvla_ros.model.processing import PROCESSOR_FILE, settings_of
    from openvla_ros.model.random_weights import BRIDGE_STATISTICS, copy_tokenizer, random_tensor
    from openvla_ros.model.shards import new_folder, write_json, write_shards

    config = OpenVLAConfig(
        timm_model_ids=list(_TOWERS),
        vit_specs=_TOWERS,
        text_config=_TEXT,
        norm_stats=BRIDGE_STATISTICS,
        architectures=["OpenVLAForActionPrediction"],
        dtype="bfloat16",
    )
    shapes = expected_shapes(config)
    with new_folder(out) as folder:
        write_shards(
            folder,
            shapes,
            lambda key: random_tensor(key, shapes[key], config, seed),
            torch.bfloat16,
        )
        config.save_pretrained(folder)
        write_json(folder / PROCESSOR_FILE, settings_of(config))
        write_json(folder / STATISTICS_FILE, BRIDGE_STATISTICS)
        copy_tokenizer(folder)
    return out


@cache
def shared_checkpoint() -> str:
    """Return a folder with the small checkpoint, built once per process; do not change it."""
    folder = Path(tempfile.mkdtemp(prefix="replay_cases_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(small_checkpoint(folder / "checkpoint"))


def made_up_episodes(
    count: int = 3, steps: int = 4, *, source: str = "made up", side: int = 32
) -> list[Episode]:
    """Return episodes of noise: the same for the same arguments, whoever opens them."""
    return [_made_up(index, steps, source, side) for index in range(count)]


def _made_up(index: int, steps: int, source: str, side: int) -> Episode:
    random = np.random.default_rng(index)
    scale = np.array([0.02, 0.02, 0.02, 0.05, 0.05, 0.1, 0.0])
    actions = random.normal(size=(steps, 7)) * scale
    actions[:, 6] = random.integers(0, 2, steps)
    return Episode(
        name=f"episode_{index:06d}",
        source=source,
        instruction=f"put cup {index} on the plate",
        rate_hz=5.0,
        stamps_ns=10**18 + np.arange(steps, dtype=np.int64) * PERIOD_NS,
        actions=actions,
        open_images=partial(noise_images, index, steps, side),
    )


def noise_images(index: int, steps: int, side: int) -> Iterator[np.ndarray]:
    """Yield images of noise, (side, side, 3) each."""
    random = np.random.default_rng(1000 + index)
    for _ in range(steps):
        yield random.integers(0, 256, (side, side, 3), np.uint8)


def with_images(episode: Episode, images: Callable[[], Iterator[np.ndarray]]) -> Episode:
    """Return the episode with other images."""
    return replace(episode, open_images=images)


class PixelPolicy(MockPolicy):
    """Answers what the mean colour of the picture says, and the length of the instruction."""

    def __init__(self) -> None:
        super().__init__(ACTION)

    def predict(self, observation: Observation) -> Prediction:
        """Return an action that depends on the observation alone."""
        means = observation.images[PRIMARY].mean(axis=(0, 1)) / 255.0
        numbers = [*(means - 0.5), len(observation.instruction) / 100.0]
        self._action = np.array([*numbers, 0.0, 0.0, 1.0])
        return super().predict(observation)


class BlindPolicy(MockPolicy):
    """Fails its self test as a model does that never gets its image."""

    def __init__(self) -> None:
        super().__init__(ACTION)

    def self_test(self) -> None:
        """Say so."""
        raise SelfTestError("The model does not look at its image: black and white are the same.")


class DeadlyPolicy(PixelPolicy):
    """Kills its process, as the kernel does without memory, when it is told to.

    `lives` holds one file per life: each death takes one away, and without any it lives on.
    """

    def __init__(self, lives: Path, instruction: str) -> None:
        super().__init__()
        self._lives = lives
        self._instruction = instruction

    def predict(self, observation: Observation) -> Prediction:
        """Answer, or die of this instruction."""
        if observation.instruction == self._instruction:
            for life in sorted(self._lives.iterdir()):
                life.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(observation)


def pixel_variant(name: str = "base") -> MadeVariant:
    """Return a variant that another process can load, of answers that depend on the picture."""
    return MadeVariant(name, make=PixelPolicy)


def without_report(monkeypatch: Any) -> None:
    """Let replay write a line in place of the report, whose charts take seconds."""
    from openvla_ros.evaluation import report

    def write(out: Path) -> Path:
        assert (out / "metrics.json").exists()
        (out / "report.html").write_text("a report")
        return out / "report.html"

    monkeypatch.setattr(report, "write_report", write)


def differences(a: EpisodeRecord, b: EpisodeRecord) -> list[str]:
    """Return the names of fields that differ in any bit, latency apart."""
    found = []
    for f in fields(EpisodeRecord):
        one, other = getattr(a, f.name), getattr(b, f.name)
        if f.name == "worst_frames":
            same = len(one) == len(other) and all(map(np.array_equal, one, other))
        elif f.name == "latency_ms":
            same = one.shape == other.shape
        else:
            same = np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind == "f")
        found += [] if same else [f.name]
    return found


def require_equal_records(one: Path, other: Path, variants: Sequence[str] = ("base",)) -> int:
    """Compare the records of two replay folders; return how many there are."""
    count = 0
    for variant in variants:
        paths = sorted((one / "records" / variant).glob("*.npz"))
        names = [path.name for path in paths]
        assert names == [p.name for p in sorted((other / "records" / variant).glob("*.npz"))]
        for path in paths:
            found = differences(
                read_record(path), read_record(other / "records" / variant / path.name)
            )
            assert not found, (variant, path.name, found)
        count += len(paths)
    return count
