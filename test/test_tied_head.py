"""An output head that shares its matrix with the embeddings, fine-tuned, merged and deployed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapter_results import logits_of, network, write_adapter
from finetune_cases import build_inputs, run_config
from safetensors.torch import load_file, save_file

from openvla_ros.model.merge import merge_adapter
from openvla_ros.policy import OpenVLAPolicy
from openvla_ros.training.finetune import finetune

HEAD, EMBEDDINGS = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


@pytest.fixture(params=["stored twice", "stored once"])
def inputs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = build_inputs(tmp_path / "inputs")
    base = folder / "base"
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"] = True
    (base / "config.json").write_text(json.dumps(config))
    tensors = load_file(base / "model.safetensors")
    tensors[EMBEDDINGS] = tensors.pop(HEAD)  # whose action rows stand out
    if request.param == "stored twice":
        tensors[HEAD] = tensors[EMBEDDINGS].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_an_adapter_on_the_head_leaves_the_embeddings(inputs: Path, tmp_path: Path) -> None:
    base, result = inputs / "base", tmp_path / "result"
    trained = write_adapter(result, base).double()
    merge_adapter(result, tmp_path / "merged", dtype=torch.float64)
    policy = OpenVLAPolicy.from_pretrained(result, engine="off", dtype="float32")
    expected = logits_of(trained, policy.processor)
    exact = logits_of(network(tmp_path / "merged", torch.float64), policy.processor)
    difference = (exact - expected).abs().max().item()
    assert difference < 1e-9, f"logits of the merged files differ by up to {difference:.2g}"
    difference = (logits_of(policy.model, policy.processor) - expected).abs().max().item()
    largest = expected.abs().max().item()
    assert difference < 1e-4 * largest, f"merged on load: {difference:.2g} of {largest:.2g}"


@pytest.mark.parametrize("strategy", ["full", "last_layer"])
def test_training_both_gives_one_matrix(inputs: Path, tmp_path: Path, strategy: str) -> None:
    config = run_config(
        inputs, tmp_path / "run", strategy__name=strategy, optimization__learning_rate=1e-2
    )
    result = finetune(config).folder
    model = network(result)
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(head, embeddings)
    before = load_file(inputs / "base" / "model.safetensors")[EMBEDDINGS].float()
    assert not torch.equal(head, before)
