from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openvla_ros.errors import CheckpointError, ConfigurationError
from openvla_ros.model.convert import convert_checkpoint, native_key, rename_layer_scale
from openvla_ros.policy import OpenVLAPolicy

TOKENIZER = Path(__file__).resolve().parents[1] / "openvla_ros" / "resources" / "tokenizer"
PROJECTOR = {"fc1": "0", "fc2": "2", "fc3": "4"}


def native_name(key: str) -> tuple[str, str]:
    """The inverse of the conversion, written independently: where a run stores an HF key."""
    part, rest = key.split(".", 1)
    if part == "language_model":
        return "llm_backbone", f"llm.{rest}"
    if part == "projector":
        layer, leaf = rest.split(".")
        return "projector", f"projector.{PROJECTOR[layer]}.{leaf}"
    tower = {"featurizer": "dino_featurizer", "fused_featurizer": "siglip_featurizer"}
    name, tail = rest.split(".", 1)
    return "vision_backbone", f"{tower[name]}.{tail.replace('scale_factor', 'gamma')}"


@pytest.fixture
def native_run(reference_checkpoints: Path, tmp_path: Path) -> Path:
    """A_fused as the original training code would have saved it."""
    source = reference_checkpoints / "A_fused"
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    model: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(source / "model.safetensors").items():
        part, name = native_name(key)
        model.setdefault(part, {})[name] = tensor.float()
    torch.save({"model": model}, run / "checkpoints" / "step-000010-epoch-00-loss=1.0.pt")
    shutil.copyfile(source / "dataset_statistics.json", run / "dataset_statistics.json")
    (run / "config.json").write_text(json.dumps({"vla": {"base_vlm": "my-own+7b"}}))
    return run


def test_a_native_run_becomes_the_checkpoint_it_came_from(
    native_run: Path, reference_checkpoints: Path, tmp_path: Path
) -> None:
    source = reference_checkpoints / "A_fused"
    out = convert_checkpoint(
        native_run, tmp_path / "hf", tokenizer=TOKENIZER, config_file=source / "config.json"
    )
    converted, original = (load_file(d / "model.safetensors") for d in (out, source))
    assert set(converted) == set(original)
    assert all(torch.equal(converted[key], original[key]) for key in original)
    policy = OpenVLAPolicy.from_pretrained(out)
    policy.self_test()
    assert policy.unnorm_key == "tiny_bridge"
    assert policy.processor.encode_prompt("In:")[0, 0] == 1  # BOS


def test_the_released_base_models_are_known(native_run: Path, tmp_path: Path) -> None:
    """The tiny weights do not fit openvla-7b's shapes: the message proves which were expected."""
    with pytest.raises(CheckpointError, match=r"\[32064, 48\] instead of \[32064, 4096\]"):
        convert_checkpoint(
            native_run,
            tmp_path / "hf",
            tokenizer=TOKENIZER,
            base_vlm="prism-dinosiglip-224px+7b",
        )
    assert not (tmp_path / "hf").exists()


def test_an_unknown_base_model_is_refused_with_the_known_ones(
    native_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="prism-dinosiglip-224px"):
        convert_checkpoint(native_run, tmp_path / "hf", tokenizer=TOKENIZER)


def test_a_hugging_face_folder_of_pickles_becomes_safetensors(
    reference_checkpoints: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(reference_checkpoints / "A_fused", tmp_path / "bin"))
    tensors = load_file(source / "model.safetensors")
    old_names = {key.replace(".scale_factor", ".gamma"): t for key, t in tensors.items()}
    torch.save(old_names, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    out = convert_checkpoint(source, tmp_path / "hf")
    converted = load_file(out / "model.safetensors")
    assert all(torch.equal(converted[key], tensors[key]) for key in tensors)
    assert (out / "preprocessor_config.json").exists()
    OpenVLAPolicy.from_pretrained(out).self_test()


class _RunsCode:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('code ran while opening the file')",))


def test_a_file_that_would_run_code_is_refused(native_run: Path, tmp_path: Path) -> None:
    weights = next((native_run / "checkpoints").glob("*.pt"))
    torch.save({"model": _RunsCode()}, weights)
    with pytest.raises(CheckpointError, match="plain weights"):
        convert_checkpoint(
            native_run,
            tmp_path / "hf",
            tokenizer=TOKENIZER,
            base_vlm="prism-dinosiglip-224px+7b",
        )


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"a": 1})])
def test_a_file_that_is_no_checkpoint_is_refused(
    content: bytes, native_run: Path, tmp_path: Path
) -> None:
    next((native_run / "checkpoints").glob("*.pt")).write_bytes(content)
    with pytest.raises(CheckpointError):
        convert_checkpoint(
            native_run,
            tmp_path / "hf",
            tokenizer=TOKENIZER,
            base_vlm="prism-dinosiglip-224px+7b",
        )


def test_what_a_native_run_lacks_is_asked_for(native_run: Path, tmp_path: Path) -> None:
    known = {"base_vlm": "prism-dinosiglip-224px+7b"}
    with pytest.raises(CheckpointError, match="--tokenizer"):
        convert_checkpoint(native_run, tmp_path / "hf", **known)
    (native_run / "dataset_statistics.json").unlink()
    with pytest.raises(CheckpointError, match=r"dataset_statistics\.json"):
        convert_checkpoint(native_run, tmp_path / "hf", tokenizer=TOKENIZER, **known)
    with pytest.raises(CheckpointError, match="nothing to convert"):
        convert_checkpoint(tmp_path / "empty", tmp_path / "hf")


def test_an_existing_folder_is_not_overwritten(
    native_run: Path, reference_checkpoints: Path, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("keep")
    with pytest.raises(ConfigurationError, match="empty folder"):
        convert_checkpoint(
            native_run,
            taken,
            tokenizer=TOKENIZER,
            config_file=reference_checkpoints / "A_fused" / "config.json",
        )


def test_entries_outside_a_native_checkpoint_are_named() -> None:
    assert native_key("llm_backbone/llm.lm_head.weight") == "language_model.lm_head.weight"
    with pytest.raises(CheckpointError, match="optimizer/step"):
        native_key("optimizer/step")
    assert rename_layer_scale("blocks.0.ls1.gamma") == "blocks.0.ls1.scale_factor"
