"""Which checkpoint a result was trained from, told by its weights and not by its name.

An adapter gives plausible actions on every network of the right shape. The fingerprint is what
tells the one it was trained on from the others.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from openvla_ros.errors import CheckpointError
from openvla_ros.model.checkpoint import resolve_checkpoint, stored_tensors
from openvla_ros.model.result_files import BaseReference, is_adapter, read_base_reference
from openvla_ros.model.tensor_files import DTYPE_NAMES, StoredTensor

_SNAPSHOTS = "snapshots"  # where the hub's client keeps each commit, under its name
_BLOCKS = 8
_BLOCK_BYTES = 4096


@dataclass(frozen=True)
class CheckpointFolders:
    """Where the parts of a policy lie.

    Attributes:
        base: A whole checkpoint.
        adapter: What is applied to it, or None.
        reason: How the base was found, in words; "" when it is what the user named.
    """

    base: Path
    adapter: Path | None = None
    reason: str = ""

    @property
    def choices(self) -> dict[str, str]:
        """What was chosen without being asked for, as "value: reason"."""
        return {"base": self.reason} if self.reason else {}

    def usable_mode(self, adapter_mode: str) -> str:
        """Return how the adapter is applied; without one there is nothing to attach."""
        return "auto" if adapter_mode == "attach" and self.adapter is None else adapter_mode


def weights_fingerprint(checkpoint_dir: Path) -> str:
    """Return a hash of the weights of a folder, the same however they are split into files.

    It covers the name, number format and shape of every tensor, and evenly spread samples of its
    bytes: a fine-tune changes all of a matrix, so that 32 KiB of each tell them apart, and 15 GB
    need not be read. It finds mistakes, not forgery.

    Raises:
        CheckpointError: There are no weights, or a file is damaged.
    """
    tensors = stored_tensors(checkpoint_dir)
    digest = hashlib.sha256()
    for key in sorted(tensors):
        stored = tensors[key]
        digest.update(f"{key} {DTYPE_NAMES[stored.dtype]} {list(stored.shape)}\n".encode())
        try:
            with stored.path.open("rb") as file:
                for start, size in _blocks(stored):
                    digest.update(os.pread(file.fileno(), size, start))
        except OSError as error:
            raise CheckpointError(f"{stored.path} cannot be read: {error}") from error
    return digest.hexdigest()


def refer_to_base(checkpoint: str | Path, revision: str, folder: Path) -> BaseReference:
    """Return the reference that a result keeps to the checkpoint it is trained from.

    Args:
        checkpoint: What the user calls it: a folder, which is kept as an absolute path, or a hub
            id.
        revision: Hub commit, tag or branch, or "": what is kept is the commit, if it can be told.
        folder: Where it lies.

    Raises:
        CheckpointError: It has no weights, or a file is damaged.
    """
    local = Path(checkpoint).expanduser()
    if local.is_dir():
        return BaseReference(str(local.resolve()), "", weights_fingerprint(folder))
    if folder.parent.name == _SNAPSHOTS:
        revision = folder.name
    return BaseReference(str(checkpoint), revision, weights_fingerprint(folder))


def require_base(folder: Path, reference: BaseReference) -> None:
    """Return when a folder holds the weights that a result was trained from.

    Raises:
        CheckpointError: It holds others, or none.
    """
    found = weights_fingerprint(folder)
    if found != reference.fingerprint:
        raise CheckpointError(
            f"{folder} is not the base of this adapter: its weights have the fingerprint "
            f"{found[:16]}, the adapter was trained on {reference.checkpoint} with "
            f"{reference.fingerprint[:16]}. On other weights its actions mean nothing. Give the "
            "checkpoint that it was trained on."
        )


def resolve_folders(
    checkpoint: str | Path,
    adapter: str | Path | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> CheckpointFolders:
    """Return the folders of a checkpoint and its adapter, downloading what is a hub id.

    A result that holds an adapter may be given as the checkpoint: its base is then the one that it
    names. When that has moved, give the base as the checkpoint and the result as the adapter.

    Args:
        checkpoint: Folder or hub id; a whole checkpoint, or a result.
        adapter: Folder or hub id, or None.
        revision: Hub commit of the checkpoint.
        local_files_only: Use only what was downloaded before.

    Raises:
        CheckpointError: Something cannot be had, or is not the base of the adapter.
    """
    folder = resolve_checkpoint(checkpoint, revision, local_files_only)
    if adapter:
        adapter_dir = resolve_checkpoint(adapter, None, local_files_only)
        if is_adapter(folder):
            raise CheckpointError(
                f"The checkpoint {checkpoint} is an adapter itself, and the adapter {adapter} was "
                "given too. Merge the first into its base (openvla-ros merge), or leave one out."
            )
        reference = read_base_reference(adapter_dir)
        if reference is not None:
            require_base(folder, reference)
        return CheckpointFolders(folder, adapter_dir)
    reference = read_base_reference(folder) if is_adapter(folder) else None
    if reference is None:
        return CheckpointFolders(folder)
    base = _recorded_base(folder, reference, local_files_only)
    require_base(base, reference)
    return CheckpointFolders(base, folder, f"{reference.checkpoint}: named by {folder.name}")


def _recorded_base(folder: Path, reference: BaseReference, local_files_only: bool) -> Path:
    try:
        return resolve_checkpoint(reference.checkpoint, reference.revision, local_files_only)
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder} was trained from {reference.checkpoint}, which cannot be had: {error} If it "
            f"has moved, give its folder as the checkpoint and {folder} as the adapter."
        ) from error


def _blocks(stored: StoredTensor) -> list[tuple[int, int]]:
    """Return (position in the file, bytes) of the samples of a tensor, first and last included."""
    if stored.nbytes <= _BLOCKS * _BLOCK_BYTES:
        return [(stored.start, stored.nbytes)]
    span = stored.nbytes - _BLOCK_BYTES
    return [(stored.start + span * i // (_BLOCKS - 1), _BLOCK_BYTES) for i in range(_BLOCKS)]
