"""One evaluation from checkpoint to result.json: what is checked, loaded, run and written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openvla_ros.data.atomic_files import write_whole_file
from openvla_ros.errors import ConfigurationError, StorageError
from openvla_ros.evaluation.libero.environment import Libero, load_tasks
from openvla_ros.evaluation.libero.protocol import (
    EPISODES_PER_TASK,
    MAX_STEPS,
    Episode,
    camera_path,
    choose_unnorm_key,
    run_suite,
    summarize,
)
from openvla_ros.model.action_stats import read_adapter_stats, read_norm_stats
from openvla_ros.model.base_reference import resolve_folders
from openvla_ros.model.image_options import ImageOptions
from openvla_ros.model.result_files import read_base_reference
from openvla_ros.model.tensor_files import Progress
from openvla_ros.policy import OpenVLAPolicy
from openvla_ros.types import Policy

EPISODES_FILE = "episodes.jsonl"
RESULT_FILE = "result.json"
REFERENCE_SEED = 7


@dataclass(frozen=True)
class LiberoRun:
    """What is evaluated, and how; the defaults are the reference's.

    Attributes:
        checkpoint: Folder or hub id.
        suite: A key of `MAX_STEPS`.
        folder: New folder for the results.
        assets: LIBERO's asset files; None looks where they usually are.
        episodes_per_task: At most 50.
        seed: Of Python's, NumPy's and torch's random numbers.
        center_crop: None: as the result of our fine-tuning says; of any other checkpoint, yes.
        adapter: LoRA folder or hub id, or "".
        unnorm_key: "" is the suite, or the suite and `_no_noops`.
        quantization, exactness, device, dtype, revision: As of `OpenVLAPolicy.from_pretrained`.
    """

    checkpoint: str
    suite: str
    folder: Path
    assets: Path | None = None
    episodes_per_task: int = EPISODES_PER_TASK
    seed: int = REFERENCE_SEED
    center_crop: bool | None = None
    adapter: str = ""
    unnorm_key: str = ""
    quantization: str = "none"
    exactness: str = "self"
    device: str = "auto"
    dtype: str = "auto"
    revision: str = ""

    def __post_init__(self) -> None:
        if self.suite not in MAX_STEPS:
            raise ConfigurationError(
                f"--suite is {self.suite!r}; use one of {', '.join(MAX_STEPS)}."
            )
        if self.episodes_per_task < 1:
            raise ConfigurationError("--episodes-per-task must be 1 or more.")
        if (self.folder / EPISODES_FILE).exists():
            raise ConfigurationError(f"{self.folder} holds an evaluation; give --out a new folder.")


def load_policy(run: LiberoRun, progress: Progress | None = None) -> OpenVLAPolicy:
    """Return the policy with the suite's statistics and the reference's image path.

    Raises:
        ActionStatsError: The checkpoint was not trained on this suite; nothing was loaded.
        CheckpointError, DeviceError, GpuMemoryError: As `OpenVLAPolicy.from_pretrained`.
    """
    key, image_options = protocol_options(run)
    return OpenVLAPolicy.from_pretrained(
        run.checkpoint,
        device=run.device,
        dtype=run.dtype,
        quantization=run.quantization,
        exactness=run.exactness,
        adapter=run.adapter or None,
        unnorm_key=key,
        revision=run.revision or None,
        image_options=image_options,
        progress=progress,
    )


def protocol_options(run: LiberoRun) -> tuple[str, ImageOptions]:
    """Return the statistics key and the image steps to add to those the checkpoint tells of.

    Raises:
        ActionStatsError: The checkpoint was not trained on this suite.
        CheckpointError: It cannot be had, or is damaged.
    """
    folders = resolve_folders(run.checkpoint, run.adapter or None, run.revision or None)
    norm_stats = read_norm_stats(folders.base)
    if folders.adapter:
        norm_stats |= read_adapter_stats(folders.adapter)
    # Our fine-tuning stores whether it cropped; a published checkpoint stores nothing.
    is_ours = read_base_reference(folders.adapter or folders.base) is not None
    crop = run.center_crop if run.center_crop is not None else not is_ours
    return run.unnorm_key or choose_unnorm_key(norm_stats, run.suite), camera_path(crop)


def evaluate(
    run: LiberoRun, libero: Libero, policy: Policy, report: Callable[[Episode], None]
) -> dict[str, Any]:
    """Return what result.json holds; every episode is written when it ends.

    LIBERO prints to standard output.

    Args:
        run: What to evaluate.
        libero: Of `find_libero`.
        policy: Of `load_policy`.
        report: Told every episode that has ended.

    Raises:
        DependencyError: A package that LIBERO imports is missing.
        ConfigurationError: More episodes are asked for than there are initial states.
        StorageError: It cannot be written.
    """
    tasks = load_tasks(libero, run.suite, run.folder)
    _seed(run.seed)

    def keep(episode: Episode) -> None:
        try:
            with (run.folder / EPISODES_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(episode)) + "\n")
        except OSError as error:
            raise StorageError(f"{run.folder} cannot be written: {error}.") from error
        report(episode)

    max_steps = MAX_STEPS[run.suite]
    episodes = run_suite(tasks, policy, max_steps, run.episodes_per_task, keep)
    result = {
        "suite": run.suite,
        "checkpoint": run.checkpoint,
        "adapter": run.adapter,
        "unnorm_key": policy.info.unnorm_key,
        "seed": run.seed,
        "episodes_per_task": run.episodes_per_task,
        "max_steps": max_steps,
        "assets": str(libero.assets),
        "choices": dict(policy.info.choices),
        **summarize(episodes),
    }
    write_whole_file(run.folder / RESULT_FILE, [json.dumps(result, indent=2).encode()])
    return result


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
