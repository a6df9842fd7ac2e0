"""Golden source: openvla @ c8f03f4 with peft 0.11.1, target "all-linear", r = 4."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from openvla_ros.errors import CheckpointError
from openvla_ros.policy import OpenVLAPolicy

ROOT = Path(__file__).resolve().parent / "reference"
ADAPTER = ROOT / "checkpoints" / "A_lora_adapter"
INSTRUCTION = "put the carrot in the bowl"


@pytest.fixture
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(ROOT / "goldens" / "lora.npz"))


@pytest.fixture
def adapter_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ADAPTER, tmp_path / "adapter"))


def first_logits(policy: OpenVLAPolicy, image: np.ndarray) -> np.ndarray:
    inputs = policy.processor(image, INSTRUCTION)
    with torch.inference_mode():
        logits, _ = policy.model.prefill(inputs.input_ids, inputs.pixel_values)
    return logits[0, 31744:32000].numpy()


def image() -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(ROOT / "images" / "img0_256.png").convert("RGB"))


@pytest.mark.parametrize(("mode", "name"), [("merge", "merged"), ("attach", "unmerged")])
def test_actions_with_an_adapter_equal_the_reference(
    mode: str, name: str, golden: dict, reference_checkpoints: Path
) -> None:
    policy = OpenVLAPolicy.from_pretrained(
        reference_checkpoints / "A_fused", adapter=ADAPTER, adapter_mode=mode
    )
    difference = np.abs(
        first_logits(policy, image()) - golden[f"first_step_action_row_logits_{name}"]
    ).max()
    assert difference < 1e-4, f"logits differ by up to {difference:.2g}"
    action = policy.predict_action(image(), INSTRUCTION).action
    assert action.tolist() == golden[f"action_{name}"].tolist()


def test_a_dense_copy_of_the_output_head_is_tolerated(
    adapter_copy: Path, golden: dict, reference_checkpoints: Path
) -> None:
    """PEFT writes one when the output head is adapted."""
    base = load_file(reference_checkpoints / "A_fused" / "model.safetensors")
    tensors = load_file(adapter_copy / "adapter_model.safetensors")
    key = "base_model.model.language_model.lm_head.base_layer.weight"
    tensors[key] = base["language_model.lm_head.weight"]
    save_file(tensors, adapter_copy / "adapter_model.safetensors")
    policy = OpenVLAPolicy.from_pretrained(reference_checkpoints / "A_fused", adapter=adapter_copy)
    action = policy.predict_action(image(), INSTRUCTION).action
    assert action.tolist() == golden["action_merged"].tolist()


def test_the_words_all_linear_are_not_interpreted(
    adapter_copy: Path, golden: dict, reference_checkpoints: Path
) -> None:
    """Its meaning changed over PEFT's versions; the tensors say which modules are adapted."""
    path = adapter_copy / "adapter_config.json"
    config = json.loads(path.read_text()) | {"target_modules": "all-linear"}
    path.write_text(json.dumps(config))
    policy = OpenVLAPolicy.from_pretrained(reference_checkpoints / "A_fused", adapter=adapter_copy)
    action = policy.predict_action(image(), INSTRUCTION).action
    assert action.tolist() == golden["action_merged"].tolist()


def test_statistics_beside_the_adapter_are_used(
    adapter_copy: Path, reference_checkpoints: Path
) -> None:
    entry = {"action": {"q01": [0.0] * 7, "q99": [1.0] * 7}}
    (adapter_copy / "dataset_statistics.json").write_text(json.dumps({"mine": entry}))
    policy = OpenVLAPolicy.from_pretrained(
        reference_checkpoints / "A_fused", adapter=adapter_copy, unnorm_key="mine"
    )
    assert policy.norm_stats["mine"].source == "adapter/dataset_statistics.json"


def test_an_adapter_of_another_base_is_refused(reference_checkpoints: Path) -> None:
    with pytest.raises(CheckpointError, match="base model"):
        OpenVLAPolicy.from_pretrained(reference_checkpoints / "B_siglip_v01", adapter=ADAPTER)


def test_a_missing_tensor_of_the_adapter_is_named(
    adapter_copy: Path, reference_checkpoints: Path
) -> None:
    tensors = load_file(adapter_copy / "adapter_model.safetensors")
    gone = next(key for key in tensors if key.endswith("q_proj.lora_B.weight"))
    del tensors[gone]
    save_file(tensors, adapter_copy / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=gone.replace(".", r"\.")):
        OpenVLAPolicy.from_pretrained(reference_checkpoints / "A_fused", adapter=adapter_copy)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
        (lambda d: (d / "adapter_model.safetensors").write_bytes(b"abc"), "damaged"),
        (lambda d: (d / "adapter_config.json").write_text("{}"), "only LORA"),
        (lambda d: (d / "adapter_config.json").unlink(), "cannot be read"),
    ],
)
def test_a_damaged_adapter_is_refused(
    damage, words: str, adapter_copy: Path, reference_checkpoints: Path
) -> None:
    damage(adapter_copy)
    with pytest.raises(CheckpointError, match=words):
        OpenVLAPolicy.from_pretrained(reference_checkpoints / "A_fused", adapter=adapter_copy)
