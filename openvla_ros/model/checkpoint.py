"""From a checkpoint's name to a model whose every weight came from its files.

This file knows folders, shards and the hub; it never unpickles and never runs code from a folder.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError

from openvla_ros.errors import CheckpointError, OpenVLAError
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.embedded import EMBEDDED, embedded_checkpoint
from openvla_ros.model.library_noise import without_library_noise
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.result_files import ADAPTER_CONFIG_FILE, CONFIG_FILE
from openvla_ros.model.runtime_choices import quantization_config
from openvla_ros.model.shards import WEIGHTS_FILE, WEIGHTS_INDEX_FILE, Shape
from openvla_ros.model.tensor_files import StoredTensor, read_header

_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "checkpoints/*.pt")
_SHOWN = 8  # names listed in an error before "and N more"


def resolve_checkpoint(
    checkpoint: str | Path, revision: str | None = None, local_files_only: bool = False
) -> Path:
    """Return the folder of a checkpoint, downloading it when it is a hub id.

    Args:
        checkpoint: Folder, hub id such as "openvla/openvla-7b", or "openvla-tiny", which is in the
            package.
        revision: Hub commit, tag or branch. A folder has none.
        local_files_only: Use only what was downloaded before.

    Raises:
        CheckpointError: Neither a folder nor reachable on the hub.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    name = str(checkpoint)
    if name == EMBEDDED:
        return embedded_checkpoint()
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"{name!r} is neither a folder nor a hub id like 'openvla/openvla-7b', nor "
            f"{EMBEDDED!r}. Check the path."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                local_files_only=local_files_only,
                allow_patterns=_HUB_FILES,
            )
        )
    except Exception as error:  # the hub client raises many types; all mean "not available"
        raise CheckpointError(
            f"{name!r} is no folder here and could not be had from the hub "
            f"(revision {revision or 'default'}, local_files_only {local_files_only}): "
            f"{type(error).__name__}: {error}. Check the name and the network, or give a folder."
        ) from error


def read_config(checkpoint_dir: Path) -> OpenVLAConfig:
    """Return config.json of a checkpoint folder.

    Raises:
        CheckpointError: Not there, not OpenVLA's, or it describes something unsupported.
    """
    path = checkpoint_dir / CONFIG_FILE
    if not path.exists():
        raise CheckpointError(_why_no_config(checkpoint_dir))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        model_type = content.get("model_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a JSON object: {error}") from error
    if model_type != OpenVLAConfig.model_type:
        raise CheckpointError(
            f"{path} describes a model of type {model_type!r}; this package runs 'openvla' "
            "checkpoints. A native Prismatic run is turned into one by `openvla-ros convert`."
        )
    try:
        return OpenVLAConfig.from_pretrained(checkpoint_dir)
    except OpenVLAError:
        raise
    except Exception as error:  # the library's own validation raises many types
        raise CheckpointError(f"{path} cannot be used: {_one_line(error)}") from error


@without_library_noise()
def load_model(
    checkpoint_dir: Path,
    config: OpenVLAConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str = "none",
    attn_implementation: str = "sdpa",
) -> OpenVLAForActionPrediction:
    """Return the model in evaluation mode, with every weight read from safetensors files.

    Args:
        checkpoint_dir: Folder with config.json and model*.safetensors.
        config: From `read_config`.
        device: Where the weights go.
        dtype: Number format of the weights that are not quantised.
        quantization: One of `config.policy.QUANTIZATIONS`. A quantised model must not be moved.
        attn_implementation: Of the language model: "sdpa" or "eager".

    Raises:
        CheckpointError: A key is missing, unexpected or mis-shaped, or a file is damaged.
    """
    verify_keys(checkpoint_dir, expected_shapes(config), config)
    quantized = quantization_config(quantization, dtype)
    # A device map streams shards straight to the GPU; on a CPU the plain path needs no accelerate.
    placement = {"device_map": {"": device}} if device.type != "cpu" or quantized else {}
    try:
        model, info = OpenVLAForActionPrediction.from_pretrained(
            checkpoint_dir,
            config=config,
            dtype=dtype,
            quantization_config=quantized,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **placement,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint_dir} cannot be loaded: {error}") from error
    left_random = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    if left_random:
        raise CheckpointError(f"{checkpoint_dir}: no weights for {_listed(left_random)}.")
    return model.eval()


def expected_shapes(config: OpenVLAConfig) -> dict[str, Shape]:
    """Return key -> shape of every tensor that a checkpoint of this configuration holds.

    Raises:
        CheckpointError: No network can be built from the numbers in config.json.
    """
    return {key: tuple(value.shape) for key, value in _on_meta(config).state_dict().items()}


def empty_model(
    config: OpenVLAConfig, dtype: torch.dtype, attn_implementation: str = "sdpa"
) -> OpenVLAForActionPrediction:
    """Return the model in evaluation mode, all of it on `meta`: shapes without memory.

    Args:
        config: From `read_config`.
        dtype: Number format of the weights.
        attn_implementation: Of the language model: "sdpa" or "eager".

    Raises:
        CheckpointError: No network can be built from the numbers in config.json.
    """
    config = copy.deepcopy(config)
    config._attn_implementation = attn_implementation
    config.dtype = config.text_config.dtype = dtype
    return _on_meta(config).to(dtype).requires_grad_(False).eval()


def stored_tensors(checkpoint_dir: Path) -> dict[str, StoredTensor]:
    """Return key -> where it lies in a folder's safetensors files, reading headers only.

    Raises:
        CheckpointError: No safetensors files, a shard is absent, or a file is damaged.
    """
    found: dict[str, StoredTensor] = {}
    for path in weight_files(checkpoint_dir):
        found |= read_header(path).tensors
    return found


def stored_shapes(checkpoint_dir: Path) -> dict[str, Shape]:
    """Return key -> shape of every tensor in a folder's safetensors files, reading headers only.

    Raises:
        CheckpointError: As `stored_tensors`.
    """
    return {key: stored.shape for key, stored in stored_tensors(checkpoint_dir).items()}


def stored_parameters(checkpoint_dir: Path) -> int:
    """Return the number of weights in a folder's safetensors files.

    Raises:
        CheckpointError: As `stored_tensors`.
    """
    return sum(math.prod(shape) for shape in stored_shapes(checkpoint_dir).values())


def weight_files(checkpoint_dir: Path) -> list[Path]:
    """Return the safetensors files of a folder.

    Raises:
        CheckpointError: There are none, or the index names a file that is absent.
    """
    index = checkpoint_dir / WEIGHTS_INDEX_FILE
    if index.exists():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} cannot be read: {error}") from error
        absent = [name for name in names if not (checkpoint_dir / name).exists()]
        if absent:
            raise CheckpointError(
                f"{checkpoint_dir} is incomplete: {_listed(absent)} named in {index.name} "
                "cannot be found. Copy or download the folder again."
            )
        return [checkpoint_dir / name for name in names]
    if (checkpoint_dir / WEIGHTS_FILE).exists():
        return [checkpoint_dir / WEIGHTS_FILE]
    raise CheckpointError(_why_no_weights(checkpoint_dir))


def verify_keys(checkpoint_dir: Path, expected: Mapping[str, Shape], config: OpenVLAConfig) -> None:
    """Return when the files hold exactly the tensors that the configuration asks for.

    Raises:
        CheckpointError: Names what is missing, unexpected or mis-shaped.
    """
    stored = stored_shapes(checkpoint_dir)
    tied = {"language_model.lm_head.weight"} if config.tie_word_embeddings else set()
    problems = key_problems(stored, expected, may_be_absent=tied)
    if problems:
        raise CheckpointError(
            f"The weights in {checkpoint_dir} do not fit its config.json: {'; '.join(problems)}. "
            "Nothing was loaded. Check that config.json and weights belong together."
        )


def key_problems(
    stored: Mapping[str, Shape],
    expected: Mapping[str, Shape],
    may_be_absent: Iterable[str] = (),
) -> list[str]:
    """Return sentences that name missing, unexpected and mis-shaped keys; empty when they agree."""
    missing = sorted(set(expected) - set(stored) - set(may_be_absent))
    unexpected = sorted(set(stored) - set(expected))
    misshaped = [
        f"{key} {list(stored[key])} instead of {list(expected[key])}"
        for key in sorted(set(stored) & set(expected))
        if stored[key] != expected[key]
    ]
    named = {"missing": missing, "unexpected": unexpected, "mis-shaped": misshaped}
    return [f"{word} {_listed(keys)}" for word, keys in named.items() if keys]


def _on_meta(config: OpenVLAConfig) -> OpenVLAForActionPrediction:
    try:
        with torch.device("meta"):
            return OpenVLAForActionPrediction(config)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"{CONFIG_FILE} describes a network that cannot be built: {_one_line(error)}. Compare "
            "it with the checkpoint this one was made from."
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _why_no_config(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG_FILE).exists():
        return (
            f"{folder} is a PEFT adapter, not a checkpoint. Give the base model as the checkpoint "
            "and this folder as the adapter."
        )
    return f"{folder} is not a checkpoint folder: it has no {CONFIG_FILE}."


def _why_no_weights(folder: Path) -> str:
    pickles = [str(p.relative_to(folder)) for pattern in _PICKLES for p in folder.glob(pattern)]
    if pickles:
        return (
            f"{folder} holds pickled weights ({_listed(sorted(set(pickles)))}), which can run code "
            "when opened and are refused. Turn them into safetensors once: "
            f"openvla-ros convert {folder} NEW_FOLDER"
        )
    return f"{folder} has no weights: neither {WEIGHTS_FILE} nor {WEIGHTS_INDEX_FILE}."
