"""A LoRA adapter folded into the files of its base: a plain checkpoint that needs no PEFT.

Tensor by tensor from file to file: memory holds one shard, never a model. This file knows the
mathematics of plain LoRA; whatever changes it is refused.
Source: Hu et al., LoRA, 2021: W' = W + scale B A; scale = alpha / r, or alpha / sqrt(r) (rsLoRA,
Kalajdzievski, 2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from openvla_ros.action_specs import ACTION_SPECS_FILE, action_specs_json, read_action_specs
from openvla_ros.errors import CheckpointError
from openvla_ros.model.action_stats import STATISTICS_FILE, read_raw_norm_stats
from openvla_ros.model.adapter import (
    EMBEDDINGS,
    HEAD,
    adapted_modules,
    read_adapter_config,
    read_adapter_tensors,
    tensor_key,
)
from openvla_ros.model.base_reference import resolve_folders
from openvla_ros.model.checkpoint import read_config, stored_tensors
from openvla_ros.model.derived_checkpoint import (
    copy_settings,
    read_json,
    usual_dtype,
    write_image_path,
)
from openvla_ros.model.processing import PROCESSOR_FILE
from openvla_ros.model.result_files import (
    CONFIG_FILE,
    FINETUNE_FILE,
    is_adapter,
    read_base_reference,
)
from openvla_ros.model.shards import new_folder, write_json, write_shards
from openvla_ros.model.tensor_files import Progress, StoredTensor, TensorReader

_CPU = torch.device("cpu")
_ROWS = 1024  # merged at a time
#: Settings of PEFT that change what an adapter does, and the values that leave it plain LoRA.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "alora_invocation_tokens": (None, []),
    "alpha_pattern": ({}, None),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    # Others start from a changed base (PiSSA, OLoRA, LoftQ), which the adapter is relative to.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", None),
    "layer_replication": (None, []),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "use_dora": (False, None),
    "use_qalora": (False, None),
}


@dataclass(frozen=True)
class Lora:
    """The change that an adapter makes to one matrix or patch convolution.

    Attributes:
        down: A, (r, inputs) or (r, channels, height, width).
        up: B, (outputs, r) or (outputs, r, 1, 1).
        scale: Of their product.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether this changes a weight of that shape."""
        rank = len(self.down)
        tail = (1,) * (len(shape) - 2)
        return shape[1:] == tuple(self.down.shape[1:]) and tuple(self.up.shape) == (
            shape[0],
            rank,
            *tail,
        )

    def merged(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the changed weight, summed in float32 or finer and rounded once."""
        fine = torch.promote_types(torch.float32, dtype)
        down, up = self.down.flatten(1).to(fine), self.up.flatten(1).to(fine)
        merged = torch.empty(weight.shape, dtype=dtype)
        for first in range(0, len(weight), _ROWS):  # an output head in float32 is half a gigabyte
            rows = slice(first, first + _ROWS)
            change = (up[rows] @ down).mul_(self.scale).view(weight[rows].shape)
            merged[rows] = change.add_(weight[rows].to(fine))
        return merged


def merge_adapter(
    adapter_dir: Path,
    out: Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Return `out`, a checkpoint in the Hugging Face layout with the adapter in its weights.

    Statistics, image path and meaning of the actions come along.

    Args:
        adapter_dir: A result of fine-tuning, or another PEFT LoRA folder.
        out: New folder.
        base: Folder or hub id of the checkpoint that it was trained on; None = the one that the
            result names.
        dtype: Number format of the files; None = that of the base.
        local_files_only: Never reach for the network.
        progress: Told bytes done, bytes in all and what is done.

    Raises:
        CheckpointError: Not a plain LoRA adapter, not of this base, or something is damaged.
        ConfigurationError: `out` is taken.
        StorageError: The disk is full; nothing is left behind.
    """
    if not is_adapter(adapter_dir):
        raise CheckpointError(
            f"{adapter_dir} is not an adapter folder, so there is nothing to merge. A result of a "
            "strategy other than lora and qlora is a whole checkpoint already."
        )
    if base is None and read_base_reference(adapter_dir) is None:
        raise CheckpointError(
            f"{adapter_dir} does not say which checkpoint it was trained on: it has no "
            f"{FINETUNE_FILE}. Name it with --base."
        )
    adapter = adapter_dir if base is not None else None
    folders = resolve_folders(base or adapter_dir, adapter, local_files_only=local_files_only)
    tensors = stored_tensors(folders.base)
    is_tied = read_config(folders.base).tie_word_embeddings
    if is_tied:  # the head may have no entry of its own, and may change where embeddings stay
        tensors.setdefault(f"{HEAD}.weight", tensors[f"{EMBEDDINGS}.weight"])
    changes = _read_changes(adapter_dir, tensors)
    dtype = dtype or usual_dtype(tensors)
    with (
        new_folder(out) as folder,
        TensorReader(tensors, _CPU, progress=progress, what="merging") as reader,
    ):

        def tensor_of(key: str) -> torch.Tensor:
            weight = reader.tensor(key)
            return changes[key].merged(weight, dtype) if key in changes else weight

        write_shards(folder, {k: s.shape for k, s in tensors.items()}, tensor_of, dtype)
        _write_rest(folder, folders.base, adapter_dir, dtype)
        if is_tied:
            _untie(folder)
    return out


def _read_changes(adapter_dir: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, Lora]:
    """Return key of the base -> what the adapter does to it.

    Raises:
        CheckpointError: The adapter is not plain LoRA, or does not fit the base.
    """
    config = read_adapter_config(adapter_dir)
    odd = [
        f"{name} = {config[name]!r}"
        for name, plain in _PLAIN.items()
        if name in config and config[name] not in plain
    ]
    if odd:
        raise CheckpointError(
            f"{adapter_dir} is more than plain LoRA ({', '.join(odd)}) and cannot be merged here. "
            "Load it attached, or merge it with PEFT."
        )
    stored = read_adapter_tensors(adapter_dir)
    changes, wrong = {}, []
    for module in sorted(adapted_modules(stored)):
        down, up = (stored.pop(tensor_key(module, matrix), None) for matrix in "AB")
        weight = tensors.get(f"{module}.weight")
        if down is None or up is None or weight is None:
            wrong.append(module)
            continue
        change = Lora(down, up, _scale(config, len(down), adapter_dir))
        if not change.fits(weight.shape):
            wrong.append(module)
        changes[f"{module}.weight"] = change
    wrong += sorted(stored)
    if wrong or not changes:
        raise CheckpointError(
            f"The adapter {adapter_dir} does not fit this base: {len(wrong)} of its parts have no "
            f"weight of their shape, such as {', '.join(wrong[:4]) or 'none at all'}. Check that "
            "it was trained on this base."
        )
    return changes


def _scale(config: Mapping[str, Any], rank: int, adapter_dir: Path) -> float:
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise CheckpointError(f"{adapter_dir}: lora_alpha is {alpha!r}; it must be a number.")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _write_rest(folder: Path, base: Path, adapter_dir: Path, dtype: torch.dtype) -> None:
    """Write everything beside the weights; the adapter knows better than its base."""
    has_statistics = (adapter_dir / STATISTICS_FILE).exists()
    own = read_raw_norm_stats(adapter_dir) if has_statistics else {}
    copy_settings(base, folder, {key: entry for key, (entry, _) in own.items()}, dtype)
    has_images = (adapter_dir / PROCESSOR_FILE).exists()
    write_image_path(adapter_dir if has_images else base, folder)
    specs = read_action_specs(base) | read_action_specs(adapter_dir)
    if specs:
        write_json(folder / ACTION_SPECS_FILE, action_specs_json(specs))
    told = adapter_dir / FINETUNE_FILE
    if told.exists():
        write_json(folder / FINETUNE_FILE, read_json(told) | {"kind": "merged"})


def _untie(folder: Path) -> None:
    """Say in config.json that output head and embeddings are two matrices."""
    config = read_json(folder / CONFIG_FILE)
    for part in (config, config["text_config"]):
        part["tie_word_embeddings"] = False
    write_json(folder / CONFIG_FILE, config)
