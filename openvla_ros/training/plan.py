"""What a run would do, without doing it: data, parameters, memory, disk, steps, time."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openvla_ros.errors import CheckpointError
from openvla_ros.model.checkpoint import expected_shapes, read_config
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.image_options import MODEL_IMAGE_SIZE
from openvla_ros.model.result_files import CONFIG_FILE
from openvla_ros.training.action_meaning import describe_sets, open_questions
from openvla_ros.training.config import FinetuneConfig
from openvla_ros.training.datasets import TrainingSet, open_training_sets
from openvla_ros.training.memory import TEXT_TOKENS, MemoryEstimate, estimate_memory
from openvla_ros.training.run_log import TIMINGS_FILE, read_lines
from openvla_ros.training.strategies import count_parameters

_LABELS = 8  # seven ids and EOS
_MLP_SHARE = 2 / 3  # of the work of a block of the language model
_MASTER_BYTES = 4
_BASE_BYTES = 2
#: How often each part is computed, in forward passes: 1 forward, 1 for gradients of its input, 1
#: for those of its weights.
_PASSES: Mapping[str, Mapping[str, int]] = {
    "full": {"vision": 3, "projector": 3, "language": 3},
    "frozen_vision": {"vision": 1, "projector": 3, "language": 3},
    "sandwich": {"vision": 3, "projector": 3, "language": 2},
    "last_layer": {"vision": 1, "projector": 1, "language": 2},  # embeddings are trained
    "lora": {"vision": 2, "projector": 2, "language": 2},
    "qlora": {"vision": 2, "projector": 2, "language": 2},
}


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        base: Where it starts.
        strategy: Which weights are trained.
        data: Statistics key -> episodes, steps, what is held out and left out.
        trained: Trained weights.
        total: All weights.
        memory: Of each device.
        checkpoint_bytes: Of all checkpoints of the run that lie on the disk at once.
        picture_bytes: Of prepared pictures; None where they keep the size of the recordings.
        result_bytes: Of the result.
        free_bytes: On the disk of run.out.
        open_questions: What the robot will ask about the actions, because nothing says it.
        steps: Of the run.
        samples_per_step: Over all processes.
        epochs: How often each step is seen, on average.
        work_tflop: Of the whole run, all processes together.
        duration_s: How long it takes; None = not known.
        duration_source: Where that comes from.
    """

    base: str
    strategy: str
    data: Mapping[str, Mapping[str, Any]]
    trained: int
    total: int
    memory: MemoryEstimate
    checkpoint_bytes: int
    picture_bytes: int | None
    result_bytes: int
    free_bytes: int
    open_questions: Sequence[str]
    steps: int
    samples_per_step: int
    epochs: float
    work_tflop: float
    duration_s: float | None
    duration_source: str


def make_plan(config: FinetuneConfig, *, world_size: int = 1, tflop_s: float = 0.0) -> Plan:
    """Return what a run would do; recordings are read, weights are not.

    Args:
        config: Of the run.
        world_size: Processes.
        tflop_s: What a device sustains in such a run, 10¹² operations per second; 0 = not known.

    Raises:
        ConfigurationError: The data or the strategy is refused.
        CheckpointError: The configuration of the base cannot be had.
    """
    model_config = _base_config(config)
    sets = open_training_sets(config.data, config.run.seed)
    optimization = config.optimization
    samples = optimization.batch_size * optimization.accumulation * world_size
    steps = sum(one.steps for one in sets)
    trained, total = count_parameters(model_config, config.strategy)
    work = optimization.max_steps * samples * work_per_sample_tflop(model_config, config)
    copies = 4 if optimization.ema_decay else 3  # weights and both moments
    duration_s, source = _duration(config, samples, work, world_size, tflop_s)
    is_adapter = config.strategy.is_adapter
    return Plan(
        base=config.base,
        strategy=config.strategy.name,
        data={one.name: data_figures(one) for one in sets},
        trained=trained,
        total=total,
        memory=estimate_memory(model_config, config, world_size),
        # One more than is kept, while the newest is written.
        checkpoint_bytes=trained * _MASTER_BYTES * copies * (config.run.keep + 1),
        picture_bytes=_picture_bytes(config, sets),
        result_bytes=trained * _MASTER_BYTES if is_adapter else total * _BASE_BYTES,
        free_bytes=_free_bytes(Path(config.run.out).expanduser()),
        open_questions=open_questions(describe_sets(config.data, sets)),
        steps=optimization.max_steps,
        samples_per_step=samples,
        epochs=optimization.max_steps * samples / steps,
        work_tflop=work,
        duration_s=duration_s,
        duration_source=source,
    )


def data_figures(one: TrainingSet) -> dict[str, Any]:
    """Return what is told about a source: episodes, steps, what was left out."""
    return {
        "episodes": len(one.episodes),
        "steps": one.steps,
        "held_out_episodes": len(one.held_out),
        "held_out_steps": sum(map(len, one.held_out)),
        "left_out": dict(one.dropped),
    }


def work_per_sample_tflop(config: OpenVLAConfig, finetune: FinetuneConfig) -> float:
    """Return the operations of one sample's part of a step, in 10¹², matrix products alone.

    Two per weight and position, for each time that a part is computed; attention itself adds a few
    percent.
    """
    passes = dict(_PASSES[finetune.strategy.name])
    again = {"none": 0.0, "selective": _MLP_SHARE, "full": 1.0}
    extra = again[finetune.run.activation_checkpointing]
    patches = (config.image_sizes[0] // config.towers()[0].patch_size) ** 2
    positions = {"vision": patches, "projector": patches, "language": patches + TEXT_TOKENS}
    work = 0.0
    for key, shape in expected_shapes(config).items():
        part = key.partition("_")[0].partition(".")[0]
        if len(shape) < 2 or "embed_tokens" in key:
            continue
        count = _LABELS if "lm_head" in key else positions[part]
        computed = passes[part] + (extra if passes[part] > 1 else 0.0)
        work += 2.0 * math.prod(shape) * count * computed
    return work / 1e12


def _base_config(config: FinetuneConfig) -> OpenVLAConfig:
    """Return the configuration of the base, without its weights where it is on the hub."""
    folder = Path(config.base).expanduser()
    if folder.exists() or config.base.count("/") != 1:
        return read_config(folder)
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(config.base, CONFIG_FILE, revision=config.revision or None)
    except Exception as error:  # the hub client raises many types; all mean "not available"
        raise CheckpointError(
            f"{config.base!r} is no folder here, and its {CONFIG_FILE} could not be had from the "
            f"hub: {type(error).__name__}: {error}. Check base and the network, or give a folder."
        ) from error
    return read_config(Path(path).parent)


def _duration(
    config: FinetuneConfig, samples: int, work_tflop: float, world_size: int, tflop_s: float
) -> tuple[float | None, str]:
    if tflop_s > 0.0:
        return work_tflop / (tflop_s * world_size), f"at {tflop_s:g} TFLOP/s per device"
    timings = read_lines(Path(config.run.out).expanduser() / TIMINGS_FILE)
    if timings:
        rate = timings[-1]["samples_per_s"]
        seconds = config.optimization.max_steps * samples / rate
        return seconds, f"at the {rate:.1f} samples/s that were measured in {config.run.out}"
    return None, "not known before the first steps"


def _picture_bytes(config: FinetuneConfig, sets: Sequence[TrainingSet]) -> int | None:
    if not config.data.lanczos3:
        return None
    steps = sum(len(e) for one in sets for e in (*one.episodes, *one.held_out))
    return steps * MODEL_IMAGE_SIZE**2 * 3


def _free_bytes(folder: Path) -> int:
    existing = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.is_dir())
    return shutil.disk_usage(existing).free
