"""Rounded weights kept on disk: the next start reads a half or a third of the bytes, rounds none.

One safetensors file per checkpoint, mode, number format and kind of device, in the layout that the
engine reads. Its header says what it was made from and with; a file whose header says anything else
than would be written today is stale, one whose checksums do not fit is damaged. Neither is used.
Files appear whole or not at all, so several processes may read and write them at once.

Full-precision weights are not kept: the checkpoint holds them already, in as many bytes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import torch

from openvla_ros.config.folders import cache_folder
from openvla_ros.engine.low_bit import LowBitMatrix
from openvla_ros.engine.recipe import Recipe
from openvla_ros.engine.weights import (
    LanguageWeights,
    decoder_layers,
    join_weights,
    layer_linears,
    matrix_shape,
    place_rest,
    release,
)
from openvla_ros.errors import CheckpointError
from openvla_ros.model.checkpoint import key_problems
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.tensor_files import (
    CHUNK_BYTES,
    DTYPE_NAMES,
    Header,
    Progress,
    TensorReader,
    read_header,
)

#: Environment variable: another folder for these files, or `OFF`.
VARIABLE = "OPENVLA_ROS_CACHE"
OFF = "off"

_SUFFIX = ".safetensors"
_PARTIAL_SUFFIX = ".partial"
_ABANDONED_S = 3600.0  # a partial file that nobody wrote to for so long belongs to a dead process
_OUTSIDE = "model."  # before the keys of what is no part of a layer's matrices


class UnusableError(CheckpointError):
    """A file is stale or damaged; the text says which."""


@dataclass(frozen=True)
class Entry:
    """One kept file.

    Attributes:
        path: Where it is.
        nbytes: Its size.
        recipe: What it was made from and with, by name; empty when it cannot be read.
    """

    path: Path
    nbytes: int
    recipe: dict[str, str]


def folder() -> Path | None:
    """Return where these files are kept; None when `VARIABLE` says `OFF` or there is no home."""
    value = os.environ.get(VARIABLE, "")
    if value.lower() == OFF:
        return None
    try:
        return Path(value).expanduser() if value else cache_folder() / "engine"
    except RuntimeError:  # of pathlib, for a user without a home
        return None


def entry_path(recipe: Recipe) -> Path | None:
    """Return the one file for this checkpoint, mode, format and kind of device, be it there or not.

    A newer file takes the place of an older one: the folder grows with the number of checkpoints
    and modes in use, not with time.
    """
    kept_in = folder()
    return kept_in / f"{recipe.name}{_SUFFIX}" if kept_in else None


def entries() -> list[Entry]:
    """Return every kept file, by name."""
    kept_in = folder()
    paths = sorted(kept_in.glob(f"*{_SUFFIX}")) if kept_in and kept_in.is_dir() else []
    return [Entry(path, path.stat().st_size, _recipe_of(path)) for path in paths]


def read(
    entry: Path,
    recipe: Recipe,
    model: OpenVLAForActionPrediction,
    device: torch.device,
    progress: Progress | None = None,
) -> LanguageWeights:
    """Return the language part of a model, with the bits that were written.

    Args:
        entry: A file of `write`.
        recipe: What it must have been made from and with.
        model: From `empty_model`. Its other parameters are read too, and the linears of its layers
            are released; after an error they still have their shapes.
        device: Where the weights go.
        progress: Told how far it is.

    Raises:
        UnusableError: The file is stale or damaged.
    """
    try:
        header = read_header(entry)
        _require_recipe(header, recipe)
        matrices = _empty_matrices(header, model, recipe, device)
        places = {_OUTSIDE + key: place for key, place in place_rest(model, device).items()}
        for prefix, matrix in matrices.items():
            places |= {f"{prefix}.{name}": part for name, part in _parts(matrix).items()}
        shapes = {key: tuple(place.shape) for key, place in places.items()}
        problems = key_problems({k: stored.shape for k, stored in header.tensors.items()}, shapes)
        if problems:
            raise UnusableError(f"it does not fit the model: {'; '.join(problems)}")
        digits = json.loads(header.metadata["checksums"])
        checksums = {key: [int(checksum) for checksum in row] for key, row in digits.items()}
        what = "reading the rounded weights"
        with TensorReader(
            header.tensors, device, checksums=checksums, progress=progress, what=what
        ) as reader:
            reader.read(places)
    except UnusableError:
        raise
    except CheckpointError as error:
        raise UnusableError(str(error)) from error
    release(layer_linears(model), device)
    by_layer: dict[int, dict[str, LowBitMatrix]] = defaultdict(dict)
    for prefix, matrix in matrices.items():
        _, number, name = prefix.split(".")
        by_layer[int(number)][name] = matrix
    return join_weights(model, [by_layer[number] for number in sorted(by_layer)])


def write(
    entry: Path,
    recipe: Recipe,
    model: OpenVLAForActionPrediction,
    weights: LanguageWeights,
    progress: Progress | None = None,
) -> int:
    """Write the weights of a model for the next start, and return the bytes that took.

    Args:
        entry: From `entry_path`; a file that is there is replaced.
        recipe: What the weights were made from and with.
        model: Its parameters outside the layers' matrices are written.
        weights: Its language part, rounded.
        progress: Told how far it is.

    Raises:
        OSError: The folder cannot be written, or the disk has no room; nothing is left behind.
    """
    tensors = _tensors_of(model, weights)
    size = sum(tensor.nbytes for tensor in tensors.values())
    entry.parent.mkdir(parents=True, exist_ok=True)
    entry.unlink(missing_ok=True)  # nobody can use it, and the disk may need the room
    _remove_abandoned(entry.parent)
    free = shutil.disk_usage(entry.parent).free
    if free < size + CHUNK_BYTES:
        raise OSError(
            errno.ENOSPC,
            f"{size / 1e9:.2f} GB are needed in {entry.parent}, {free / 1e9:.2f} GB are free",
        )
    descriptor, name = tempfile.mkstemp(_PARTIAL_SUFFIX, f".{entry.stem}-", entry.parent)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write_file(file, tensors, recipe, progress)
        partial.replace(entry)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return entry.stat().st_size


def _tensors_of(
    model: OpenVLAForActionPrediction, weights: LanguageWeights
) -> dict[str, torch.Tensor]:
    """Return key -> tensor of everything that is written, wide numbers first: all are aligned."""
    released = {id(linear.weight) for linear in layer_linears(model)}
    tensors = {
        _OUTSIDE + key: parameter.detach()
        for key, parameter in model.named_parameters()
        if id(parameter) not in released
    }
    for number, layer in enumerate(weights.layers):
        for field in fields(layer):
            matrix = getattr(layer, field.name)
            if isinstance(matrix, LowBitMatrix):
                prefix = f"layers.{number}.{field.name}"
                tensors |= {f"{prefix}.{name}": part for name, part in _parts(matrix).items()}
    return dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))


def _parts(matrix: LowBitMatrix) -> dict[str, torch.Tensor]:
    """Return the tensors of a matrix by the name of their field."""
    named = {field.name: getattr(matrix, field.name) for field in fields(matrix)}
    return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}


def _empty_matrices(
    header: Header, model: OpenVLAForActionPrediction, recipe: Recipe, device: torch.device
) -> dict[str, LowBitMatrix]:
    """Return "layers.0.qkv", ... -> a matrix with places for its tensors."""
    places: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, stored in header.tensors.items():
        if not key.startswith(_OUTSIDE):
            prefix, _, name = key.rpartition(".")
            places[prefix][name] = torch.empty(stored.shape, dtype=stored.dtype, device=device)
    layers = decoder_layers(model)
    matrices = {}
    for prefix, parts in places.items():
        _, number, name = prefix.split(".")
        shape = matrix_shape(layers[int(number)], name)
        matrices[prefix] = LowBitMatrix(
            kind=recipe.quantization, shape=shape, dtype=recipe.dtype, **parts
        )
    return matrices


def _write_file(
    file: BinaryIO, tensors: Mapping[str, torch.Tensor], recipe: Recipe, progress: Progress | None
) -> None:
    """Write header and tensors. Checksums are known last, and go into the room left for them."""
    total, done = sum(tensor.nbytes for tensor in tensors.values()), 0
    unknown = {key: [0] * -(-tensor.nbytes // CHUNK_BYTES) for key, tensor in tensors.items()}
    file.write(_header(tensors, recipe, unknown))
    checksums: dict[str, list[int]] = {}
    for key, tensor in tensors.items():
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        checksums[key] = []
        for chunk in flat.split(CHUNK_BYTES) if len(flat) else ():
            content = chunk.cpu().numpy().data
            checksums[key].append(zlib.crc32(content))
            file.write(content)
            done += len(content)
            if progress:
                progress(done, total, "writing the rounded weights")
    file.seek(0)
    file.write(_header(tensors, recipe, checksums))


def _header(
    tensors: Mapping[str, torch.Tensor], recipe: Recipe, checksums: Mapping[str, list[int]]
) -> bytes:
    """Return the first bytes of a file; as many whatever the checksums are."""
    table: dict[str, Any] = {}
    end = 0
    for key, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        dtype = DTYPE_NAMES[tensor.dtype]
        table[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    digits = {key: [f"{checksum:010d}" for checksum in row] for key, row in checksums.items()}
    metadata = {"recipe": json.dumps(recipe.identity), "checksums": json.dumps(digits)}
    metadata["header"] = _header_checksum(table, metadata)
    text = json.dumps({"__metadata__": metadata, **table}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _header_checksum(table: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    return f"{zlib.crc32(json.dumps([table, metadata], sort_keys=True).encode()):010d}"


def _require_recipe(header: Header, recipe: Recipe) -> None:
    """Return when a header is whole and its file made from and with the same.

    Raises:
        UnusableError: It is not.
    """
    table = json.loads(header.raw)
    metadata = table.pop("__metadata__", None) or {}
    checksum = metadata.pop("header", None)
    if checksum != _header_checksum(table, metadata):
        raise UnusableError("its header is damaged")
    written = json.loads(metadata["recipe"])
    for name, value in recipe.identity.items():
        if written.get(name) != value:
            raise UnusableError(f"it is stale: {name} was {written.get(name)}, now is {value}")


def _recipe_of(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(read_header(path).metadata["recipe"]))
    except (CheckpointError, KeyError, ValueError):
        return {}


def _remove_abandoned(kept_in: Path) -> None:
    """Remove what processes that died while writing have left."""
    for partial in kept_in.glob(f".*{_PARTIAL_SUFFIX}"):
        try:
            if time.time() - partial.stat().st_mtime > _ABANDONED_S:
                partial.unlink()
        except FileNotFoundError:
            continue  # another process was quicker
