"""The folder that a run ends with: what `OpenVLAPolicy`, the node and PEFT load.

An adapter, or a whole checkpoint, with the statistics of its data, the image path, what the numbers
of its actions mean, and where it comes from. Parameters of auxiliary losses never enter. This file
knows how the folder looks, not how its weights were found.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from openvla_ros.action_specs import ACTION_SPECS_FILE, action_specs_json
from openvla_ros.evaluation.replay.folder import plain
from openvla_ros.evaluation.replay.plan import versions
from openvla_ros.model.action_stats import STATISTICS_FILE
from openvla_ros.model.adapter import ADAPTER_FILE, adapter_key
from openvla_ros.model.checkpoint import stored_tensors
from openvla_ros.model.derived_checkpoint import copy_settings, usual_dtype, write_image_path
from openvla_ros.model.image_options import ImageOptions
from openvla_ros.model.result_files import ADAPTER_CONFIG_FILE, FINETUNE_FILE, BaseReference
from openvla_ros.model.shards import new_folder, save_tensors, write_json, write_shards
from openvla_ros.model.tensor_files import TensorReader
from openvla_ros.types import ActionSpec

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class AdapterWeights:
    """A LoRA adapter.

    Attributes:
        config: `LoraConfig.to_dict()`.
        tensors: Name in the model, such as "...q_proj.lora_A.default.weight", to its tensor.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class FullWeights:
    """Weights of the model itself.

    Attributes:
        trained: Names in the model. All others are copied from the base, bit for bit.
        tensor_of: Gives the whole tensor of a trained name. Several processes may have to call it
            together: each calls it once per name, in the same order.
        dtype: Number format in the files; None = that of the base.
    """

    trained: Collection[str]
    tensor_of: Callable[[str], torch.Tensor]
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class ResultFacts:
    """What a result says beside its weights.

    Attributes:
        norm_stats: Statistics key -> entry as in dataset_statistics.json: of the run's data alone.
        image_options: The image path, as it was trained; it replaces that of the base.
        action_specs: Statistics key -> what its numbers mean.
        config: The run's configuration, as JSON types.
        metrics: Its last figures.
    """

    norm_stats: Mapping[str, Mapping[str, Any]]
    image_options: ImageOptions
    action_specs: Mapping[str, ActionSpec] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


def write_result(
    out: Path,
    weights: AdapterWeights | FullWeights,
    facts: ResultFacts,
    *,
    base: BaseReference,
    base_folder: Path,
    write: bool = True,
) -> None:
    """Fill `out` with the result of a run: all of it or none. An older result there is replaced.

    Args:
        out: Folder.
        weights: What was trained.
        facts: What is told about it.
        base: The checkpoint that the run started from; see `refer_to_base`.
        base_folder: Where it lies.
        write: False in every process but the first: it takes part in what `FullWeights.tensor_of`
            asks of all, also when the first has failed, and writes nothing.

    Raises:
        ConfigurationError: `out` holds something else than a result.
        CheckpointError: The base is damaged.
        StorageError: The disk is full or cannot be written; an older result stays.
    """
    assert facts.norm_stats, "a result without statistics has no units"
    if isinstance(weights, AdapterWeights):
        if write:
            with _replaced_folder(out) as folder:
                _write_adapter(folder, weights, base)
                write_json(folder / STATISTICS_FILE, plain(facts.norm_stats))
                _write_facts(folder, "adapter", facts, base, base_folder)
        return
    tensors = stored_tensors(base_folder)
    gathering = _Gathering(weights, list(tensors))
    try:
        if write:
            dtype = weights.dtype or usual_dtype(tensors)
            with _replaced_folder(out) as folder, TensorReader(tensors, _CPU) as frozen:
                shapes = {key: stored.shape for key, stored in tensors.items()}
                write_shards(
                    folder,
                    shapes,
                    lambda key: gathering.take(key) if key in gathering else frozen.tensor(key),
                    dtype,
                )
                copy_settings(base_folder, folder, plain(facts.norm_stats), dtype)
                _write_facts(folder, "checkpoint", facts, base, base_folder)
    finally:
        gathering.take_rest()


class _Gathering:
    """Calls `FullWeights.tensor_of` once per trained name, in the order of the base's files."""

    def __init__(self, weights: FullWeights, order: list[str]) -> None:
        unknown = sorted(set(weights.trained) - set(order))
        assert not unknown, f"the base has no {unknown[:4]}"
        self._tensor_of = weights.tensor_of
        trained = set(weights.trained)
        self._left = [key for key in order if key in trained]
        self._trained = trained

    def __contains__(self, key: str) -> bool:
        return key in self._trained

    def take(self, key: str) -> torch.Tensor:
        """Return the tensor that is next."""
        assert self._left[0] == key, f"{key} is asked for, {self._left[0]} is next"
        self._left.pop(0)
        return self._tensor_of(key).detach().to(_CPU)

    def take_rest(self) -> None:
        """Take part in what the other processes still gather, and keep nothing of it."""
        while self._left:
            self._tensor_of(self._left.pop(0))


@contextmanager
def _replaced_folder(out: Path) -> Iterator[Path]:
    """As `new_folder`; a result that is there already makes way when the new one is whole."""
    if not (out / FINETUNE_FILE).exists():
        with new_folder(out) as folder:
            yield folder
        return
    fresh, old = out.with_name(out.name + ".new"), out.with_name(out.name + ".old")
    for left_over in (fresh, old):
        shutil.rmtree(left_over, ignore_errors=True)
    with new_folder(fresh) as folder:
        yield folder
    out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _write_adapter(folder: Path, weights: AdapterWeights, base: BaseReference) -> None:
    tensors = {
        adapter_key(name): tensor.detach().to(_CPU).contiguous()
        for name, tensor in weights.tensors.items()
    }
    save_tensors(folder / ADAPTER_FILE, tensors, {"format": "pt"})
    config = {name: _as_json(value) for name, value in weights.config.items()}
    config["base_model_name_or_path"] = base.checkpoint
    config["revision"] = base.revision or None
    config["inference_mode"] = True
    write_json(folder / ADAPTER_CONFIG_FILE, config)


def _write_facts(
    folder: Path, kind: str, facts: ResultFacts, base: BaseReference, base_folder: Path
) -> None:
    write_image_path(base_folder, folder, facts.image_options)
    write_json(folder / ACTION_SPECS_FILE, action_specs_json(facts.action_specs))
    content = {
        "kind": kind,
        "base": base.to_dict(),
        "config": plain(facts.config),
        "metrics": plain(facts.metrics),
        "versions": versions() | {"peft": version("peft")},
    }
    write_json(folder / FINETUNE_FILE, content)


def _as_json(value: Any) -> Any:
    """Return a value of a PEFT configuration as PEFT writes it."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
