"""A checkpoint's files become the engine's weights: each tensor is read once, into its last place.

The model is built on `meta`, without memory. Then every parameter gets its place on the device -
queries, keys and values as rows of one matrix, gate and up rows alternating - and the files are
read into these places. Low-bit matrices are rounded one by one as they are complete, or come from
the prepacked file of an earlier start. Nothing but a few pieces of bounded size is held twice.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from openvla_ros.engine import prepacked
from openvla_ros.engine.recipe import Recipe, recipe_of
from openvla_ros.engine.weights import (
    LanguageWeights,
    fuse_language_model,
    place_rest,
    require_quantizable,
    why_unsupported,
)
from openvla_ros.model.checkpoint import stored_tensors, verify_keys
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.tensor_files import Progress, TensorReader

_log = logging.getLogger(__name__)

_HEAD = "language_model.lm_head.weight"


def why_not_streamed(model: OpenVLAForActionPrediction, checkpoint_dir: Path) -> str | None:
    """Return why the files of a model cannot be read into the engine's places, or None.

    Args:
        model: From `empty_model`.
        checkpoint_dir: Folder of its files.

    Raises:
        CheckpointError: A file is absent or damaged.
    """
    if model.config.tie_word_embeddings and _HEAD in stored_tensors(checkpoint_dir):
        return "its files hold an output head, which config.json says is the embedding"
    return why_unsupported(model)


def stream(
    model: OpenVLAForActionPrediction,
    checkpoint_dir: Path,
    *,
    device: torch.device,
    quantization: str = "none",
    progress: Progress | None = None,
) -> tuple[LanguageWeights, str]:
    """Return the language part of a model for `Engine`, and what its start took, in words.

    Args:
        model: From `empty_model`; `why_not_streamed` has nothing against it. It is given its
            weights, and on an error must not be used.
        checkpoint_dir: Folder of its files.
        device: Where the weights go.
        quantization: "none", or one of `low_bit.KINDS`.
        progress: Told how far it is.

    Raises:
        CheckpointError: A key is missing, unexpected or mis-shaped, or a file is damaged.
        ConfigurationError: The matrices of this model cannot be stored so.
    """
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    verify_keys(checkpoint_dir, expected, model.config)
    require_quantizable(model, quantization)
    if quantization == "none":  # a file of the same weights would be read as fast as the checkpoint
        return _read_checkpoint(model, checkpoint_dir, device, quantization, progress)
    recipe = recipe_of(checkpoint_dir, quantization, model.dtype, device)
    entry = prepacked.entry_path(recipe)
    found = "" if entry is None else _read_prepacked(entry, recipe, model, device, progress)
    if not isinstance(found, str):
        return found
    weights, took = _read_checkpoint(model, checkpoint_dir, device, quantization, progress)
    return weights, f"{took}; {_keep(entry, recipe, model, weights, progress)}{found}"


def _read_checkpoint(
    model: OpenVLAForActionPrediction,
    checkpoint_dir: Path,
    device: torch.device,
    quantization: str,
    progress: Progress | None,
) -> tuple[LanguageWeights, str]:
    start = time.perf_counter()
    names = {module: name for name, module in model.named_modules()}
    places = place_rest(model, device)
    with TensorReader(stored_tensors(checkpoint_dir), device, progress=progress) as reader:

        def fill(linears: Sequence[nn.Linear]) -> None:
            places.update({f"{names[one]}.weight": one.weight for one in linears})
            if quantization != "none":  # the next matrix may take the memory of this one
                reader.read(places)
                places.clear()

        weights = fuse_language_model(model, quantization, device=device, fill=fill)
        reader.read(places)
        read_s, size = reader.seconds, reader.done_bytes
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # what held one matrix in full precision
    rounded_s = time.perf_counter() - start - read_s
    took = f"{size / 1e9:.2f} GB read in {read_s:.1f} s"
    return weights, took if quantization == "none" else f"{took}, rounded in {rounded_s:.1f} s"


def _read_prepacked(
    entry: Path,
    recipe: Recipe,
    model: OpenVLAForActionPrediction,
    device: torch.device,
    progress: Progress | None,
) -> tuple[LanguageWeights, str] | str:
    """Return what an earlier start has kept, or why that cannot be used: "" when there is none."""
    if not os.access(entry, os.R_OK):
        return ""
    start = time.perf_counter()
    try:
        size = entry.stat().st_size  # now: a file that has been read may go away
        weights = prepacked.read(entry, recipe, model, device, progress)
    except FileNotFoundError:
        return ""
    except prepacked.UnusableError as error:
        _log.warning("%s is made again: %s", entry, error)
        return f"; an older file was of no use: {error}"
    seconds = time.perf_counter() - start
    return weights, f"{size / 1e9:.2f} GB read in {seconds:.1f} s, rounded before, from {entry}"


def _keep(
    entry: Path | None,
    recipe: Recipe,
    model: OpenVLAForActionPrediction,
    weights: LanguageWeights,
    progress: Progress | None,
) -> str:
    """Return where the rounded weights were written for the next start, or why they were not."""
    if entry is None:
        return f"not kept: {prepacked.VARIABLE} is {prepacked.OFF!r}, or this user has no home"
    start = time.perf_counter()
    try:
        size = prepacked.write(entry, recipe, model, weights, progress)
    except OSError as error:
        _log.warning("rounded weights are not kept for the next start: %s", error)
        return f"not kept: {error}"
    return f"{size / 1e9:.2f} GB written in {time.perf_counter() - start:.1f} s to {entry}"
