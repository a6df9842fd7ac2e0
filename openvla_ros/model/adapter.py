"""A PEFT LoRA adapter on a loaded model: merged into its weights, or attached beside them.

This file knows PEFT and the adapter folder; the mathematics of LoRA is PEFT's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from openvla_ros.errors import CheckpointError, DependencyError
from openvla_ros.model.checkpoint import key_problems
from openvla_ros.model.library_noise import without_library_noise
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.result_files import ADAPTER_CONFIG_FILE

ADAPTER_FILE = "adapter_model.safetensors"
#: Modules of the base that may share one matrix (`tie_word_embeddings`).
HEAD = "language_model.lm_head"
EMBEDDINGS = "language_model.model.embed_tokens"
_PREFIX = "base_model.model."
# PEFT saves a dense copy of an output head it adapts; the base model already has those weights.
_DENSE_COPY = ".base_layer.weight"


@without_library_noise()
def load_adapter(
    model: OpenVLAForActionPrediction, adapter_dir: Path, *, merge: bool
) -> OpenVLAForActionPrediction:
    """Return the model with the adapter applied.

    Args:
        model: The base model; it is changed in place.
        adapter_dir: Folder with adapter_config.json and adapter_model.safetensors.
        merge: True folds the adapter into the weights (no cost per step); False keeps it beside
            them, which a quantised model needs.

    Raises:
        CheckpointError: The folder is not a LoRA adapter, or its tensors do not fit this model.
        DependencyError: peft is not installed.
    """
    try:
        from peft import LoraConfig, PeftModel, get_peft_model_state_dict
        from peft.utils import set_peft_model_state_dict
    except ImportError as error:
        raise DependencyError("An adapter needs peft: pip install peft") from error
    tensors = read_adapter_tensors(adapter_dir)
    read_adapter_config(adapter_dir)
    try:
        config = LoraConfig.from_pretrained(str(adapter_dir))
        config.target_modules = sorted(adapted_modules(tensors))
        config.inference_mode = True
        if merge and HEAD in config.target_modules:
            _untie_head(model)
        adapted = PeftModel(model, config)
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"The adapter {adapter_dir} does not fit this model: {error}. Check its base model."
        ) from error
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    expected = {key: tuple(tensor.shape) for key, tensor in wanted.items()}
    problems = key_problems({k: tuple(t.shape) for k, t in tensors.items()}, expected)
    if problems:
        raise CheckpointError(
            f"The adapter {adapter_dir} does not fit this model: {'; '.join(problems)}. "
            "Check that it was trained on this base model."
        )
    set_peft_model_state_dict(adapted, tensors)
    return adapted.merge_and_unload() if merge else adapted.base_model.model


def _untie_head(model: OpenVLAForActionPrediction) -> None:
    """Give the output head weights of its own: what is merged into it leaves the embeddings."""
    head: Any = model.get_output_embeddings()
    embeddings: Any = model.get_input_embeddings()
    if head.weight is embeddings.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        for config in (model.config, model.config.text_config):
            config.tie_word_embeddings = False


def adapter_key(name: str) -> str:
    """Return the key in an adapter's file of a tensor that PEFT has put into the model.

    Args:
        name: In the model, such as "language_model...q_proj.lora_A.default.weight".
    """
    module, found, rest = name.rpartition(".lora_")
    assert found, f"{name} is no part of an adapter"
    return tensor_key(module.removeprefix(_PREFIX), rest.split(".")[0])


def tensor_key(module: str, matrix: str) -> str:
    """Return the key in an adapter's file of matrix "A" or "B" of a module of the base."""
    return f"{_PREFIX}{module}.lora_{matrix}.weight"


def read_adapter_tensors(adapter_dir: Path) -> dict[str, torch.Tensor]:
    """Return key -> tensor of an adapter folder, without the copy of an adapted output head.

    Raises:
        CheckpointError: The file is absent, pickled or damaged.
    """
    path = adapter_dir / ADAPTER_FILE
    if not path.exists():
        pickled = sorted(p.name for p in adapter_dir.glob("*.bin"))
        hint = f" It holds {pickled[0]}, a pickle, which is refused." if pickled else ""
        raise CheckpointError(
            f"{adapter_dir} is not an adapter folder: it has no {ADAPTER_FILE}.{hint} "
            "Save the adapter with PEFT's safe_serialization."
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or incomplete ({error}). Copy it again."
        ) from error
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(_DENSE_COPY)}


def read_adapter_config(adapter_dir: Path) -> dict[str, Any]:
    """Return adapter_config.json of a LoRA adapter.

    Raises:
        CheckpointError: The file is absent or damaged, or the adapter is of another kind.
    """
    path = adapter_dir / ADAPTER_CONFIG_FILE
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = config.get("peft_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if kind != "LORA":
        raise CheckpointError(f"{path} is a {kind} adapter; only LORA is supported.")
    return config


def adapted_modules(tensors: dict[str, torch.Tensor]) -> set[str]:
    """Return the full names of the adapted modules.

    Read from the tensors, because what PEFT understands by "all-linear" changed over its versions.
    """
    return {key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for key in tensors if ".lora_" in key}
