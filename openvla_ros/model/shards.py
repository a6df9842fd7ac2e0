"""Writing a checkpoint folder: all of it or none, with one shard in memory at a time.

This file knows tensors and file names, not what they mean.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from openvla_ros.errors import ConfigurationError, StorageError

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
_SHARD_BYTES = 2 * 2**30

Shape = tuple[int, ...]


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes `out` only when the block ends without an error.

    Raises:
        ConfigurationError: `out` exists and is not an empty folder.
        StorageError: The disk is full or cannot be written; nothing is left behind.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(f"{out} is not an empty folder; give a new one.")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{out} cannot be written: {error}. Make room, or choose another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON file of a checkpoint folder."""
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write one safetensors file, readable by whom the umask lets read.

    The library's own files are for their owner alone: a robot that runs as another user could not
    load them.

    Args:
        path: File.
        tensors: Name -> contiguous tensor.
        metadata: Of the file's header.

    Raises:
        OSError, SafetensorError: The disk is full or cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata=metadata)
    path.chmod(mode)


def write_shards(
    folder: Path,
    shapes: Mapping[str, Shape],
    tensor_of: Callable[[str], torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Write model.safetensors, or numbered shards and their index, as `save_pretrained` would.

    Args:
        folder: Existing folder.
        shapes: Key -> shape of everything to write.
        tensor_of: Gives the tensor of a key; called once per key, shard by shard.
        dtype: Number format in the files.
    """
    shards = _split(shapes, dtype.itemsize)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [WEIGHTS_FILE]
    for name, keys in zip(names, shards, strict=True):
        tensors = {key: tensor_of(key).to(dtype).contiguous() for key in keys}
        save_tensors(folder / name, tensors, {"format": "pt"})
    if len(shards) > 1:
        total = sum(dtype.itemsize * math.prod(shape) for shape in shapes.values())
        weight_map = {k: name for name, keys in zip(names, shards, strict=True) for k in keys}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / WEIGHTS_INDEX_FILE, index)


def _split(shapes: Mapping[str, Shape], item_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for key, shape in shapes.items():
        size = item_bytes * math.prod(shape)
        if shards[-1] and used + size > _SHARD_BYTES:
            shards.append([])
            used = 0
        shards[-1].append(key)
        used += size
    return shards
