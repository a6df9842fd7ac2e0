"""Results of fine-tuning without the training: folders that tests load, merge and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model

from openvla_ros.action_specs import TRAINING_SOURCE, load_action_spec
from openvla_ros.model.base_reference import refer_to_base
from openvla_ros.model.checkpoint import load_model, read_config
from openvla_ros.model.image_options import ImageOptions
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.model.processing import OpenVLAProcessor
from openvla_ros.training.result import AdapterWeights, ResultFacts, write_result

KEY = "my_arm"
ENTRY = {
    "action": {"q01": [-0.5] * 7, "q99": [0.5] * 7, "mask": [True] * 6 + [False]},
    "num_transitions": 10,
    "num_trajectories": 2,
}
#: Every kind of module that OpenVLA's own script adapts: matrices, patch convolutions, lm_head.
TARGETS = (
    "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj lm_head qkv proj fc1 fc2 fc3 q kv"
).split()
FACTS = ResultFacts(
    norm_stats={KEY: ENTRY},
    image_options=ImageOptions(lanczos3=True, center_crop=True),
    action_specs={
        KEY: load_action_spec(KEY, {"robot": "my arm", "action_hz": 10}, source=TRAINING_SOURCE)
    },
    config={"base": "A_fused"},
    metrics={"loss": float("nan"), "accuracy": np.float32(0.5)},
)
IMAGE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
INSTRUCTION = "lift the cup"


def network(folder: Path, dtype: torch.dtype = torch.float32) -> OpenVLAForActionPrediction:
    """Return the network of a folder."""
    return load_model(folder, read_config(folder), device=torch.device("cpu"), dtype=dtype)


def trained_adapter(
    base: Path, *, std: float = 0.05, use_rslora: bool = False
) -> tuple[OpenVLAForActionPrediction, AdapterWeights]:
    """Return a network with adapters beside its weights, as if trained, and their tensors."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        init_lora_weights="gaussian",
        target_modules=list(TARGETS),
        use_rslora=use_rslora,
    )
    torch.manual_seed(0)
    model = network(base)
    inject_adapter_in_model(config, model)
    tensors = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.normal_(std=std)
    return model.eval(), AdapterWeights(config.to_dict(), tensors)


def write_adapter(out: Path, base: Path, **how: float) -> OpenVLAForActionPrediction:
    """Fill a folder with an adapter result; return the network that it came from."""
    model, weights = trained_adapter(base, **how)
    write_result(out, weights, FACTS, base=refer_to_base(base, "", base), base_folder=base)
    return model


def logits_of(model: OpenVLAForActionPrediction, processor: OpenVLAProcessor) -> torch.Tensor:
    """Return (1, V) logits of the first id."""
    inputs = processor(IMAGE, INSTRUCTION)
    with torch.inference_mode():
        return model.prefill(inputs.input_ids, inputs.pixel_values.to(model.dtype))[0]
