"""What rounded weights are made from and with: when all of it is the same, so are their bits.

This file knows files and versions, not weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch

import openvla_ros
from openvla_ros.engine import low_bit, weights
from openvla_ros.model.checkpoint import weight_files
from openvla_ros.model.result_files import CONFIG_FILE
from openvla_ros.model.tensor_files import read_header

_FORMAT = 1  # of the file
_SAMPLES = 64  # blocks of a file that its fingerprint reads
_SAMPLE_BYTES = 4096
_HUB_FOLDER = re.compile(r"models--(.+)")


@dataclass(frozen=True)
class Recipe:
    """What rounded weights are made from and with.

    Attributes:
        name: A file name for the checkpoint's folder and the choices below, whatever its content.
        quantization: One of `low_bit.KINDS`.
        dtype: Number format of what is not rounded.
        identity: Everything the bits depend on, by name.
    """

    name: str
    quantization: str
    dtype: torch.dtype
    identity: dict[str, str]


def recipe_of(
    checkpoint_dir: Path, quantization: str, dtype: torch.dtype, device: torch.device
) -> Recipe:
    """Return the recipe for the files that are in a checkpoint's folder now.

    Raises:
        CheckpointError: They cannot be read.
    """
    folder = checkpoint_dir.resolve()
    dtype_name = str(dtype).removeprefix("torch.")
    identity = {
        "format": str(_FORMAT),
        "checkpoint": str(folder),
        "weight files": fingerprint(weight_files(folder)),
        CONFIG_FILE: hashlib.sha256((folder / CONFIG_FILE).read_bytes()).hexdigest(),
        "quantization": quantization,
        "dtype": dtype_name,
        # Sums come out differently on a GPU, and with them a few roundings.
        "device": device.type,
        "torch": torch.__version__,
        "openvla_ros": openvla_ros.__version__,
        "rounding code": _code_version(),
    }
    name = f"{_readable(folder)}-{quantization}-{dtype_name}-{device.type}"
    return Recipe(f"{name}-{zlib.crc32(str(folder).encode()):08x}", quantization, dtype, identity)


def fingerprint(files: list[Path]) -> str:
    """Return what changes when one of these safetensors files does.

    Of every file: its name, its size, its whole header, 64 blocks of 4 KiB spread over it, and the
    time it was last changed; or, in the hub's own folders, the name of its blob, which is a hash
    of all its content. To hash 15 GB takes as long as what a kept file saves. What this does not
    see is a change of single weights outside the blocks that also puts the time back; training
    changes nearly all weights.

    Raises:
        CheckpointError: A file is damaged.
    """
    digest = hashlib.sha256()
    for path in files:
        target = path.resolve()
        state = target.stat()
        is_blob = path.is_symlink() and target.parent.name == "blobs"
        version = target.name if is_blob else str(state.st_mtime_ns)
        digest.update(json.dumps([path.name, state.st_size, version]).encode())
        digest.update(read_header(path).raw)
        with target.open("rb") as file:
            for number in range(_SAMPLES):
                file.seek(number * max(state.st_size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _readable(folder: Path) -> str:
    """Return a checkpoint's name as far as its folder tells: the hub's own ends in a commit."""
    of_hub = (_HUB_FOLDER.fullmatch(part) for part in folder.parts)
    name = next((match[1] for match in of_hub if match), folder.name)
    return re.sub(r"[^\w.-]+", "_", name)


@functools.cache
def _code_version() -> str:
    """Return what changes whenever rounding or layout may: a version number is easily forgotten."""
    files = (low_bit.__file__, weights.__file__)
    return f"{zlib.crc32(b''.join(Path(name).read_bytes() for name in files)):08x}"
