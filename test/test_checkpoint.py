from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openvla_ros.errors import CheckpointError, OpenVLAError
from openvla_ros.model.checkpoint import (
    key_problems,
    load_model,
    read_config,
    resolve_checkpoint,
    stored_parameters,
)
from openvla_ros.policy import OpenVLAPolicy

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(reference_checkpoints: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may damage."""
    return Path(shutil.copytree(reference_checkpoints / "B_siglip_v01", tmp_path / "checkpoint"))


def load(folder: Path) -> torch.nn.Module:
    return load_model(folder, read_config(folder), device=CPU, dtype=torch.float32)


def edit_weights(folder: Path, edit) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_loading_prints_nothing(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(checkpoint)
    assert capfd.readouterr() == ("", "")


def test_sharded_weights_load_like_a_single_file(checkpoint: Path) -> None:
    whole = load(checkpoint).state_dict()
    model = load(checkpoint)
    shutil.rmtree(checkpoint / "shards", ignore_errors=True)
    model.save_pretrained(checkpoint / "shards", max_shard_size="1MB")
    assert len(list((checkpoint / "shards").glob("*.safetensors"))) > 1
    sharded = load(checkpoint / "shards").state_dict()
    assert all(torch.equal(sharded[key], whole[key]) for key in whole)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("projector.fc1.bias"), r"missing projector\.fc1\.bias"),
        (lambda t: t.update(extra=torch.zeros(2)), "unexpected extra"),
        (
            lambda t: t.update({"projector.fc1.bias": torch.zeros(3)}),
            r"mis-shaped projector\.fc1\.bias \[3\] instead of \[32\]",
        ),
    ],
)
def test_keys_that_do_not_fit_are_named(checkpoint: Path, edit, words: str) -> None:
    edit_weights(checkpoint, edit)
    with pytest.raises(CheckpointError, match=words):
        load(checkpoint)


def test_a_truncated_file_is_damaged(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        load(checkpoint)


def test_an_absent_shard_is_named(checkpoint: Path) -> None:
    load(checkpoint).save_pretrained(checkpoint / "shards", max_shard_size="1MB")
    gone = sorted((checkpoint / "shards").glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=gone.name):
        load(checkpoint / "shards")


def test_pickled_weights_are_refused_and_the_way_out_is_named(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match="openvla-ros convert"):
        load(checkpoint)


def test_code_in_the_folder_is_never_run(checkpoint: Path) -> None:
    (checkpoint / "configuration_prismatic.py").write_text("raise SystemExit('ran')")
    (checkpoint / "modeling_prismatic.py").write_text("raise SystemExit('ran')")
    (checkpoint / "processing_prismatic.py").write_text("raise SystemExit('ran')")
    assert OpenVLAPolicy.from_pretrained(checkpoint).unnorm_key == "tiny_bridge"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llava"}, "'llava'"),
        ({"timm_model_ids": ["vit_of_tomorrow"]}, "vit_of_tomorrow"),
        ({"llm_backbone_id": "gpt"}, "llama2-7b-pure"),
        ({"text_config": {"model_type": "llama", "hidden_size": "wide"}}, "config.json"),
        ({"image_sizes": ["224"]}, "image_sizes in config.json asks for"),
        ({"text_config": {"vocab_size": 31000, "pad_token_id": 32000}}, "cannot be built"),
        ({"image_sizes": [210]}, "makes images of"),
    ],
)
def test_an_unusable_configuration_is_an_error_of_ours(
    checkpoint: Path, changes: dict, words: str
) -> None:
    edit_config(checkpoint, **changes)
    with pytest.raises(OpenVLAError, match=words):
        OpenVLAPolicy.from_pretrained(checkpoint)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_a_broken_config_file_is_named(checkpoint: Path, content: str) -> None:
    (checkpoint / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(checkpoint)


def test_an_adapter_given_as_checkpoint_is_recognised(reference_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="PEFT adapter"):
        read_config(reference_dir / "checkpoints" / "A_lora_adapter")


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "nowhere"])
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(name: str) -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
        resolve_checkpoint(name)


def test_a_hub_id_that_was_not_downloaded_is_an_error_when_offline() -> None:
    with pytest.raises(CheckpointError, match="local_files_only True"):
        resolve_checkpoint("openvla/no-such-model", local_files_only=True)


def test_the_number_of_weights_is_read_from_headers(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    assert stored_parameters(checkpoint) == sum(tensor.numel() for tensor in tensors.values())


def test_a_long_list_of_keys_is_shortened() -> None:
    problems = key_problems({}, {f"key{i:02d}": (1,) for i in range(20)})
    assert problems == [
        "missing key00, key01, key02, key03, key04, key05, key06, key07 and 12 more"
    ]
