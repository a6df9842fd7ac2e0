"""Pickled checkpoints to safetensors in the Hugging Face layout, once, without running their code.

Two kinds come in: a native Prismatic run (`config.json`, `dataset_statistics.json`,
`checkpoints/*.pt`) and a Hugging Face folder whose weights are `*.bin`. Both are read with
`weights_only=True`.
Source: openvla @ c8f03f4, vla-scripts/extern/convert_openvla_weights_to_hf.py (key names).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from openvla_ros.errors import CheckpointError
from openvla_ros.model.action_stats import STATISTICS_FILE
from openvla_ros.model.checkpoint import expected_shapes, key_problems, read_config
from openvla_ros.model.configuration import OpenVLAConfig
from openvla_ros.model.processing import PROCESSOR_FILE, load_tokenizer, settings_of
from openvla_ros.model.result_files import CONFIG_FILE
from openvla_ros.model.shards import new_folder, write_json, write_shards

#: `vla.base_vlm` of a native run -> what its config.json leaves unsaid.
#: Source: openvla @ c8f03f4, prismatic/conf/models.py.
BASE_VLMS: dict[str, dict[str, Any]] = {
    "prism-dinosiglip-224px+7b": {
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "llm_backbone_id": "llama2-7b-pure",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "image_resize_strategy": "resize-naive",
    },
    "siglip-224px+7b": {
        "vision_backbone_id": "siglip-vit-so400m",
        "llm_backbone_id": "vicuna-v15-7b",
        "arch_specifier": "no-align+gelu-mlp",
        "image_resize_strategy": "letterbox",
    },
}

_TEXT_CONFIG = {"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000}
_PAD_TOKEN, _PAD_TOKEN_ID = "<PAD>", 32000
_TOWER_PREFIXES = {
    "dino_featurizer.": "featurizer.",
    "siglip_featurizer.": "fused_featurizer.",
    "clip_featurizer.": "fused_featurizer.",
    "featurizer.": "featurizer.",
}
_PROJECTOR_LAYERS = {"0": "fc1", "2": "fc2", "4": "fc3"}


def convert_checkpoint(
    source: Path,
    out: Path,
    *,
    tokenizer: Path | None = None,
    base_vlm: str | None = None,
    config_file: Path | None = None,
) -> Path:
    """Return `out`, a folder that `OpenVLAPolicy` loads, made from pickled weights.

    Weights are written in bfloat16, one shard in memory at a time.

    Args:
        source: A `.pt` file, the run folder it belongs to, or a Hugging Face folder with `*.bin`.
        out: New folder.
        tokenizer: Folder with the language model's tokenizer.json. A native run has none of its
            own; a Hugging Face folder keeps its own.
        base_vlm: Overrides `vla.base_vlm` of a native run.
        config_file: config.json in the Hugging Face form, for networks outside `BASE_VLMS`.

    Raises:
        CheckpointError: Something needed is absent, or keys do not fit the configuration.
        ConfigurationError: `out` is taken.
    """
    if source.is_dir() and any(source.glob("*.bin")):
        return _convert_huggingface(source, out)
    weights = _native_weights(source)
    run = weights.parent.parent if weights.parent.name == "checkpoints" else weights.parent
    config = _native_config(run, base_vlm, config_file)
    if tokenizer is None:
        raise CheckpointError(
            f"A native run has no tokenizer. Give --tokenizer FOLDER with the tokenizer.json of "
            f"{config.llm_backbone_id}'s language model."
        )
    statistics = run / STATISTICS_FILE
    if not statistics.exists():
        raise CheckpointError(
            f"{run} has no {STATISTICS_FILE}; without statistics its actions have no units. "
            "Copy the file from the training run."
        )
    config.norm_stats = json.loads(statistics.read_text(encoding="utf-8"))
    tensors = _native_tensors(_load_pickle(weights), weights)
    with new_folder(out) as folder:
        _write_verified(folder, tensors, config, weights)
        config.save_pretrained(folder)
        write_json(folder / PROCESSOR_FILE, settings_of(config))
        shutil.copyfile(statistics, folder / STATISTICS_FILE)
        _save_tokenizer(load_tokenizer(tokenizer), folder)
    return out


def native_key(key: str) -> str:
    """Return the Hugging Face key of "<part>/<name>" in a native checkpoint.

    Raises:
        CheckpointError: A name that no native OpenVLA checkpoint has.
    """
    part, name = key.split("/", 1)
    if part == "llm_backbone" and name.startswith("llm."):
        return "language_model." + name.removeprefix("llm.")
    if part == "projector":
        pieces = name.split(".")  # projector.<layer>.<weight or bias>
        if len(pieces) == 3 and pieces[1] in _PROJECTOR_LAYERS:
            return f"projector.{_PROJECTOR_LAYERS[pieces[1]]}.{pieces[2]}"
    if part == "vision_backbone":
        for prefix, renamed in _TOWER_PREFIXES.items():
            if name.startswith(prefix):
                tail = rename_layer_scale(name.removeprefix(prefix))
                return f"vision_backbone.{renamed}{tail}"
    raise CheckpointError(
        f"The native checkpoint has an unknown entry {key!r}; it is not OpenVLA's."
    )


def rename_layer_scale(key: str) -> str:
    """Return the key with timm's `gamma` under the name of the Hugging Face layout."""
    return key.removesuffix(".gamma") + ".scale_factor" if key.endswith(".gamma") else key


def _convert_huggingface(source: Path, out: Path) -> Path:
    config = read_config(source)
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(source.glob("*.bin")):
        for key, tensor in _load_pickle(path).items():
            tensors[rename_layer_scale(key)] = tensor
    with new_folder(out) as folder:
        _write_verified(folder, tensors, config, source)
        for path in source.iterdir():
            if (
                path.suffix == ".json" and ".bin." not in path.name
            ) or path.name == "tokenizer.model":
                shutil.copyfile(path, folder / path.name)
    return out


def _native_weights(source: Path) -> Path:
    if source.is_file():
        return source
    files = sorted(source.glob("checkpoints/*.pt")) or sorted(source.glob("*.pt"))
    latest = [path for path in files if path.name == "latest-checkpoint.pt"]
    chosen = latest or files[-1:]
    if not chosen:
        raise CheckpointError(
            f"{source} holds neither *.bin nor checkpoints/*.pt; there is nothing to convert."
        )
    return chosen[0]


def _native_config(run: Path, base_vlm: str | None, config_file: Path | None) -> OpenVLAConfig:
    if config_file is not None:
        return OpenVLAConfig(**json.loads(config_file.read_text(encoding="utf-8")))
    if base_vlm is None:
        base_vlm = _stored_base_vlm(run / CONFIG_FILE)
    if base_vlm not in BASE_VLMS:
        raise CheckpointError(
            f"base_vlm {base_vlm!r} is unknown. Known: {', '.join(BASE_VLMS)}. Name one with "
            "--base-vlm, or describe the network with --config FILE in the Hugging Face form."
        )
    return OpenVLAConfig(
        **BASE_VLMS[base_vlm],
        text_config=dict(_TEXT_CONFIG),
        architectures=["OpenVLAForActionPrediction"],
        dtype="bfloat16",
    )


def _stored_base_vlm(path: Path) -> str | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content["vla"]["base_vlm"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _load_pickle(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # the unpickler raises many types; all mean "not plain weights"
        raise CheckpointError(
            f"{path} cannot be read as plain weights ({error}). Files that hold more than "
            "tensors are refused, because opening them would run code."
        ) from error


def _native_tensors(loaded: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    parts = loaded.get("model")
    if not isinstance(parts, dict):
        raise CheckpointError(
            f"{path} has no 'model' entry; it is not a native OpenVLA checkpoint."
        )
    return {
        native_key(f"{part}/{name}"): tensor
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }


def _write_verified(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    config: OpenVLAConfig,
    source: Path,
) -> None:
    expected = expected_shapes(config)
    problems = key_problems({k: tuple(t.shape) for k, t in tensors.items()}, expected)
    if problems:
        raise CheckpointError(f"{source} does not fit its configuration: {'; '.join(problems)}.")
    write_shards(folder, expected, lambda key: tensors[key], torch.bfloat16)


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer with OpenVLA's padding token, which Llama's own does not have."""
    if len(tokenizer) == _PAD_TOKEN_ID:
        tokenizer.add_special_tokens({"pad_token": _PAD_TOKEN})
    if tokenizer.convert_tokens_to_ids(_PAD_TOKEN) != _PAD_TOKEN_ID:
        raise CheckpointError(
            f"The tokenizer must have {_PAD_TOKEN_ID} ids, or {_PAD_TOKEN} at {_PAD_TOKEN_ID}; it "
            f"has {len(tokenizer)}. Give the tokenizer of Llama-2 or Vicuna v1.5."
        )
    tokenizer.save_pretrained(folder)
