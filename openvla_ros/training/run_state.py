"""Checkpoints of a run under way, from which it goes on as if it had never stopped.

`<run>/checkpoints/step_00001000/` holds safetensors files and `state.json`, which names each file
with its size and SHA-256. A folder gets that name only when everything in it is on the disk, and
one that does not fit its own list is never loaded. This file knows tensors by name; which ones make
a run is `trainee.py`'s business.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from openvla_ros.errors import CheckpointError, StorageError
from openvla_ros.model.shards import save_tensors
from openvla_ros.training.distributed import full_tensor, put_full

MANIFEST = "state.json"
_VERSION = 1
_PARTIAL = ".partial"
_NAME = re.compile(r"step_(\d{8,})")
_FILE_BYTES = 2 * 2**30
#: Left free on the disk, for what is written beside the checkpoint.
_SPARE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class StoredState:
    """A checkpoint that has been found to be intact.

    Attributes:
        folder: Where it lies.
        step: Steps that were done when it was written.
        facts: What was saved beside the tensors: JSON values.
        files: Names of its safetensors files.
    """

    folder: Path
    step: int
    facts: Mapping[str, Any]
    files: tuple[str, ...]

    def restore(self, place_of: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        """Copy every stored tensor to its place; one file at a time is in memory.

        Args:
            place_of: Name and stored tensor -> where it goes, split over processes or not, of the
                same shape.

        Raises:
            CheckpointError: A file has changed since it was found to be intact.
        """
        for name in self.files:
            try:
                tensors = load_file(self.folder / name)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{self.folder / name} cannot be read: {error}") from error
            for key, tensor in tensors.items():
                place = place_of(key, tensor)
                assert place.shape == tensor.shape, (key, place.shape, tensor.shape)
                put_full(place, tensor)


def save_state(
    folder: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any],
    *,
    keep: int,
    write: bool = True,
) -> Path:
    """Write a checkpoint, then remove those the run has left behind; return its folder.

    Args:
        folder: That holds the checkpoints of a run.
        step: Steps that are done.
        tensors: Name -> tensor, split over processes or not; the same names in all processes.
        facts: JSON values.
        keep: How many checkpoints stay, this one among them. Any of a later step, which were
            damaged or the run would have gone on from them, are removed.
        write: False in all processes but one: they only take part in gathering split tensors.

    Raises:
        StorageError: The disk is full or cannot be written; nothing of the checkpoint stays, and
            older ones are untouched.
    """
    final = folder / f"step_{step:08d}"
    if not write:
        for tensor in tensors.values():
            full_tensor(tensor)
        return final
    whole = (
        (name, full_tensor(tensor).detach().cpu().contiguous()) for name, tensor in tensors.items()
    )
    try:
        _require_space(folder, sum(t.numel() * t.element_size() for t in tensors.values()))
        partial = final.with_name(final.name + _PARTIAL)
        _remove(partial)
        partial.mkdir(parents=True)
        files = [_write_file(partial / name, group) for name, group in _groups(whole)]
        _write_manifest(partial / MANIFEST, step, facts, files)
        _sync(partial)
        _remove(final)
        partial.rename(final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        _remove(final.with_name(final.name + _PARTIAL))
        raise StorageError(
            f"The checkpoint of step {step} cannot be written to {folder}: {error}. Older "
            "checkpoints are untouched; make room and start the same command again."
        ) from error
    finally:
        for _ in whole:  # the other processes gather until the last tensor
            pass
    _remove_others(folder, step, keep)
    return final


def newest_state(
    folder: Path, tell: Callable[[str], None] = lambda text: None
) -> StoredState | None:
    """Return the newest intact checkpoint; None when the run has not saved any.

    Args:
        folder: That holds the checkpoints of a run.
        tell: Told of each damaged one that is passed over.

    Raises:
        CheckpointError: There are checkpoints, and all are damaged.
    """
    found = _checkpoints(folder)
    for path in found:
        try:
            return read_state(path)
        except CheckpointError as error:
            tell(f"{error} An older checkpoint is tried.")
    if found:
        raise CheckpointError(
            f"Every checkpoint in {folder} is damaged; start over with --no-resume (resume=False), "
            "or with another run.out."
        )
    return None


def read_state(folder: Path) -> StoredState:
    """Return a checkpoint after comparing every byte with what was written.

    Raises:
        CheckpointError: Something is missing or differs.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        content = manifest["content"]
        if manifest["sha256"] != _digest(content):
            raise ValueError(f"{MANIFEST} has changed since it was written")
        if content["version"] != _VERSION:
            raise ValueError(f"its format is {content['version']}, known is {_VERSION}")
        for entry in content["files"]:
            _require_intact(folder / entry["name"], entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is damaged or incomplete: {error!r}.") from error
    names = tuple(entry["name"] for entry in content["files"])
    return StoredState(folder, content["step"], content["facts"], names)


def remove_states(folder: Path) -> None:
    """Remove all checkpoints of a run, oldest first, so that the newest one is always whole."""
    for path in reversed(_checkpoints(folder)):
        _remove(path)


def _checkpoints(folder: Path) -> list[Path]:
    """Return the folders of checkpoints, newest first."""
    if not folder.is_dir():
        return []
    found = {int(m[1]): path for path in folder.iterdir() if (m := _NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found, reverse=True)]


def _remove_others(folder: Path, step: int, keep: int) -> None:
    names = [path.name for path in _checkpoints(folder)]
    newer = names.index(f"step_{step:08d}")
    for name in names[:newer] + names[newer + keep :]:
        _remove(folder / name)
    for path in folder.glob(f"step_*{_PARTIAL}"):  # left by a process that was killed
        shutil.rmtree(path, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove a folder that is never seen half removed under its own name."""
    if not folder.exists():
        return
    if not folder.name.endswith(_PARTIAL):
        waste = folder.with_name(folder.name + ".old" + _PARTIAL)
        shutil.rmtree(waste, ignore_errors=True)
        folder = folder.rename(waste)
    shutil.rmtree(folder, ignore_errors=True)


def _groups(
    tensors: Iterator[tuple[str, torch.Tensor]],
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield file names with what goes into each; only one file's tensors are held."""
    group: dict[str, torch.Tensor] = {}
    size = number = 0
    for name, tensor in tensors:
        if group and size + tensor.nbytes > _FILE_BYTES:
            yield f"tensors_{number:05d}.safetensors", group
            group, size, number = {}, 0, number + 1
        group[name] = tensor
        size += tensor.nbytes
    if group:
        yield f"tensors_{number:05d}.safetensors", group


def _write_file(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write one file; return its line of the manifest."""
    save_tensors(path, tensors)
    _sync(path)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": _file_digest(path)}


def _write_manifest(
    path: Path, step: int, facts: Mapping[str, Any], files: list[dict[str, Any]]
) -> None:
    content = {"version": _VERSION, "step": step, "facts": dict(facts), "files": files}
    content = json.loads(json.dumps(content))  # as it will be read, so that the digest is of that
    text = json.dumps({"sha256": _digest(content), "content": content}, indent=1)
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _require_space(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise OSError(
            f"it takes {needed:,} bytes, and of {free:,} that are free {_SPARE_BYTES:,} stay free"
        )


def _require_intact(path: Path, entry: Mapping[str, Any]) -> None:
    if path.stat().st_size != entry["bytes"]:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {entry['bytes']}")
    if _file_digest(path) != entry["sha256"]:
        raise ValueError(f"{path.name} has changed since it was written")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
