"""Action statistics of a checkpoint, and the one place where actions get their units back.

This file knows no torch and no network: it reads two JSON files and does arithmetic on n numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros.errors import ActionStatsError, CheckpointError
from openvla_ros.model.result_files import CONFIG_FILE, FINETUNE_FILE, is_adapter

STATISTICS_FILE = "dataset_statistics.json"


@dataclass(frozen=True)
class ActionStats:
    """Quantiles of one training dataset, which map normalised actions to its units.

    Attributes:
        unnorm_key: Name of the dataset.
        q01: (n,) float64, the value that -1 stands for.
        q99: (n,) float64, the value that +1 stands for.
        mask: (n,) bool; False leaves that number as it is (the gripper).
        source: Name of the file in the checkpoint folder that these numbers came from.
        constant: (n,) bool; True where every recorded value was the same. Training replaces such a
            number by 0. A single False where the file does not say it (no min and max).
    """

    unnorm_key: str
    q01: np.ndarray
    q99: np.ndarray
    mask: np.ndarray
    source: str
    constant: np.ndarray = field(default_factory=lambda: np.zeros((), bool))

    @property
    def action_dim(self) -> int:
        """Numbers per action, and therefore tokens per action."""
        return len(self.q01)


def parse_action_stats(unnorm_key: str, entry: Mapping[str, Any], source: str) -> ActionStats:
    """Return the statistics of one dataset as arrays.

    Args:
        unnorm_key: Name of the dataset.
        entry: Its value in `norm_stats`: {"action": {"q01": [...], "q99": [...], "mask": [...]}}.
            A missing mask means that every number is un-normalised; min and max may be missing.
        source: File that the entry came from.

    Raises:
        ActionStatsError: A quantile is missing, not finite, or the lengths differ.
    """
    where = f"statistics key {unnorm_key!r} in {source}"
    try:
        action = entry["action"]
        q01 = np.asarray(action["q01"], dtype=np.float64)
        q99 = np.asarray(action["q99"], dtype=np.float64)
        mask = np.asarray(action.get("mask", np.ones(q01.shape, bool)))
        constant = _constant_numbers(action)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ActionStatsError(
            f"{where} cannot be read ({type(error).__name__}: {error}). It needs action.q01 and "
            "action.q99 as lists of numbers; take the file from the training run again."
        ) from error
    if q01.ndim != 1 or not len(q01) or q01.shape != q99.shape or q01.shape != mask.shape:
        raise ActionStatsError(
            f"{where}: q01, q99 and mask must have one length, "
            f"not {q01.shape}, {q99.shape} and {mask.shape}."
        )
    if constant.ndim and constant.shape != q01.shape:
        raise ActionStatsError(f"{where}: min and max must have the length of q01, {len(q01)}.")
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise ActionStatsError(f"{where}: mask must hold true and false, not {mask.tolist()}.")
    mask = mask.astype(bool)
    if not (np.isfinite(q01).all() and np.isfinite(q99).all()):
        raise ActionStatsError(f"{where}: q01 or q99 holds NaN or infinity.")
    for array in (q01, q99, mask, constant):
        array.setflags(write=False)
    return ActionStats(unnorm_key, q01, q99, mask, source, constant)


def _constant_numbers(action: Mapping[str, Any]) -> np.ndarray:
    """(n,) bool: where min and max of an entry are the same; a single False without them."""
    if "min" not in action or "max" not in action:
        return np.zeros((), bool)
    low, high = (np.asarray(action[name], dtype=np.float64) for name in ("min", "max"))
    if low.shape != high.shape:
        raise ValueError(f"min has shape {low.shape}, max {high.shape}")
    return low == high


def read_raw_norm_stats(checkpoint_dir: Path) -> dict[str, tuple[Mapping[str, Any], str]]:
    """Return statistics key -> (entry as stored, file it came from).

    `config.json` comes first and `dataset_statistics.json` replaces its keys: fine-tunes keep the
    25 keys of the base model in the former and write their own into the latter. An adapter has
    only the latter; the keys of its base are not among its own.

    Raises:
        CheckpointError: A file is absent or not JSON.
        ActionStatsError: Neither file has statistics.
    """
    merged: dict[str, tuple[Mapping[str, Any], str]] = {}
    found = {}
    if not is_adapter(checkpoint_dir):
        found[CONFIG_FILE] = _read_json(checkpoint_dir / CONFIG_FILE).get("norm_stats") or {}
    if (checkpoint_dir / STATISTICS_FILE).exists():
        found[STATISTICS_FILE] = _read_json(checkpoint_dir / STATISTICS_FILE)
    for source, entries in found.items():
        if not isinstance(entries, Mapping):
            raise ActionStatsError(
                f"The statistics in {checkpoint_dir / source} are a {type(entries).__name__}; "
                "they must map dataset names to entries."
            )
        merged.update({key: (entry, source) for key, entry in entries.items()})
    if not merged:
        raise ActionStatsError(
            f"{checkpoint_dir} has no action statistics: neither norm_stats in {CONFIG_FILE} nor "
            f"{STATISTICS_FILE}. Copy {STATISTICS_FILE} from the training run into the folder."
        )
    return merged


def read_norm_stats(checkpoint_dir: Path) -> dict[str, ActionStats]:
    """Return statistics key -> `ActionStats` of a checkpoint folder.

    Raises:
        CheckpointError: A file is absent or not JSON.
        ActionStatsError: There are no statistics, or an entry is malformed.
    """
    raw = read_raw_norm_stats(checkpoint_dir)
    return {key: parse_action_stats(key, entry, source) for key, (entry, source) in raw.items()}


def read_adapter_stats(adapter_dir: Path) -> dict[str, ActionStats]:
    """Return the statistics that a fine-tuning run left beside its adapter; {} when there are none.

    Raises:
        CheckpointError: dataset_statistics.json is not JSON.
        ActionStatsError: An entry is malformed.
    """
    if not (adapter_dir / STATISTICS_FILE).exists():
        return {}
    source = f"{adapter_dir.name}/{STATISTICS_FILE}"
    entries = _read_json(adapter_dir / STATISTICS_FILE)
    return {key: parse_action_stats(key, entry, source) for key, entry in entries.items()}


def tuned_unnorm_key(checkpoint_dir: Path) -> str:
    """Return the key that the result of a run on one dataset is for, or "".

    The keys that it has beside it are its base's, and its answers are not meant in their units. Of
    a folder that is not the result of a run (no finetune.json), nobody knows.

    Raises:
        CheckpointError: dataset_statistics.json is absent or not JSON.
    """
    if not (checkpoint_dir / FINETUNE_FILE).exists():
        return ""
    keys = list(_read_json(checkpoint_dir / STATISTICS_FILE))
    return keys[0] if len(keys) == 1 else ""


def resolve_unnorm_key(available: Mapping[str, Any], unnorm_key: str | None) -> str:
    """Return the statistics key to use; only a sole key may be left unnamed.

    Raises:
        ActionStatsError: `unnorm_key` is unknown, or None while several keys exist.
    """
    choices = ", ".join(sorted(available))
    if not unnorm_key:
        if len(available) == 1:
            return next(iter(available))
        raise ActionStatsError(
            f"This checkpoint holds statistics of {len(available)} datasets and unnorm_key is not "
            f"set. Choose the one recorded with your robot and frame: {choices}."
        )
    if unnorm_key not in available:
        raise ActionStatsError(
            f"unnorm_key {unnorm_key!r} is not in this checkpoint. It has: {choices}."
        )
    return unnorm_key


def unnormalize(normalized: np.ndarray, stats: ActionStats) -> np.ndarray:
    """Return the action in the units its dataset was recorded in.

    Args:
        normalized: (..., n) in [-1, 1], as decoded by `ActionTokenizer`.
        stats: Quantiles of the dataset the checkpoint was trained on.

    Returns:
        (..., n) float64. For 7-D: translation 0:3, rotation 3:6, gripper 6 (0 closed, 1 open).

    Raises:
        ActionStatsError: `normalized` and `stats` differ in length.

    Source: openvla @ c8f03f4, predict_action; the order of operations decides the last bit.
    """
    _require_length(normalized, stats)
    scaled = 0.5 * (normalized + 1) * (stats.q99 - stats.q01) + stats.q01
    return np.where(stats.mask, scaled, normalized)


def normalize(action: np.ndarray, stats: ActionStats) -> np.ndarray:
    """Return the action as training shows it to the model: what `unnormalize` undoes.

    It cannot undo what is lost here: a value beyond q01 or q99 is clipped, a constant one is 0.

    Args:
        action: (..., n) in the units its dataset was recorded in; NaN stays NaN.
        stats: Quantiles of the dataset the checkpoint was trained on.

    Returns:
        (..., n) float64 with the values of training's float32 arithmetic, so that the token ids
        are those of its labels. In [-1, 1] where masked, as it was elsewhere.

    Raises:
        ActionStatsError: `action` and `stats` differ in length.

    Source: openvla @ c8f03f4, normalize_action_and_proprio with BOUNDS_Q99.
    """
    _require_length(action, stats)
    kept = np.asarray(action, dtype=np.float32)
    low = stats.q01.astype(np.float32)
    span = (stats.q99 - stats.q01 + 1e-8).astype(np.float32)
    scaled = np.clip(np.float32(2) * (kept - low) / span - np.float32(1), -1, 1)
    shown = np.where(stats.mask, scaled, kept)
    return np.where(stats.constant, 0.0, shown).astype(np.float64)


def _require_length(action: np.ndarray, stats: ActionStats) -> None:
    if action.shape[-1] != stats.action_dim:
        raise ActionStatsError(
            f"An action of {action.shape[-1]} numbers does not fit the statistics key "
            f"{stats.unnorm_key!r}, which has {stats.action_dim}."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} is not a checkpoint folder: it has no {path.name}."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(content).__name__}.")
    return content
