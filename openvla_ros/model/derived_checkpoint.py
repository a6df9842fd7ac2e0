"""A checkpoint made from another one: everything beside its weights.

This file knows which files a checkpoint in the Hugging Face layout has, and which of them change
when its weights do. Code that a folder may hold is not copied.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from openvla_ros.errors import CheckpointError
from openvla_ros.model.action_stats import STATISTICS_FILE
from openvla_ros.model.image_options import OPTIONS_KEY, ImageOptions
from openvla_ros.model.processing import PROCESSOR_FILE
from openvla_ros.model.result_files import CONFIG_FILE
from openvla_ros.model.shards import write_json
from openvla_ros.model.tensor_files import StoredTensor

_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def copy_settings(
    base: Path, folder: Path, norm_stats: Mapping[str, Any], dtype: torch.dtype
) -> None:
    """Write configuration, statistics and tokenizer of a checkpoint made from `base`.

    Args:
        base: Folder of the other one.
        folder: Existing folder.
        norm_stats: Statistics key -> entry that the new one adds; {} = it has those of the base.
        dtype: Number format of its weights.

    Raises:
        CheckpointError: A file of the base is absent or damaged.
    """
    config = read_json(base / CONFIG_FILE)
    config["norm_stats"] = {**(config.get("norm_stats") or {}), **norm_stats}
    for name in ("torch_dtype", "dtype"):  # transformers 4 and 5
        if name in config:
            config[name] = str(dtype).removeprefix("torch.")
    write_json(folder / CONFIG_FILE, config)
    if norm_stats:
        write_json(folder / STATISTICS_FILE, norm_stats)
    elif (base / STATISTICS_FILE).exists():
        shutil.copyfile(base / STATISTICS_FILE, folder / STATISTICS_FILE)
    for name in _COPIED:
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)


def write_image_path(source: Path, folder: Path, options: ImageOptions | None = None) -> None:
    """Write preprocessor_config.json as another folder has it, with these options if given.

    Raises:
        CheckpointError: The other folder's is absent or damaged.
    """
    settings = read_json(source / PROCESSOR_FILE)
    if options is not None:
        settings[OPTIONS_KEY] = options.to_dict()
    write_json(folder / PROCESSOR_FILE, settings)


def usual_dtype(tensors: Mapping[str, StoredTensor]) -> torch.dtype:
    """Return the number format that most bytes of a checkpoint are in."""
    used: dict[torch.dtype, int] = {}
    for stored in tensors.values():
        used[stored.dtype] = used.get(stored.dtype, 0) + stored.nbytes
    return max(used, key=lambda dtype: used[dtype])


def read_json(path: Path) -> dict[str, Any]:
    """Return one JSON file of a checkpoint folder.

    Raises:
        CheckpointError: It is absent, damaged, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Copy it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(content).__name__}.")
    return content
