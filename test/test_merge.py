"""An adapter folded into the files of its base answers as it did beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_results import (
    ENTRY,
    FACTS,
    IMAGE,
    INSTRUCTION,
    KEY,
    logits_of,
    network,
    write_adapter,
)
from finetune_cases import build_inputs, run_config
from peft import PeftModel
from safetensors.torch import load_file, save_file

from openvla_ros.cli import main
from openvla_ros.errors import CheckpointError, ConfigurationError
from openvla_ros.model import shards
from openvla_ros.model.checkpoint import stored_tensors
from openvla_ros.model.merge import merge_adapter
from openvla_ros.policy import OpenVLAPolicy
from openvla_ros.training.finetune import finetune

ROOT = Path(__file__).resolve().parent / "reference"
GOLDEN_ADAPTER = ROOT / "checkpoints" / "A_lora_adapter"


@pytest.fixture(scope="module")
def base(tiny_checkpoint: Path) -> Path:
    return tiny_checkpoint


@pytest.fixture
def result(base: Path, tmp_path: Path) -> Path:
    write_adapter(tmp_path / "result", base)
    return tmp_path / "result"


@pytest.mark.parametrize("use_rslora", [False, True])
def test_merged_and_attached_give_the_same_logits(
    use_rslora: bool, base: Path, tmp_path: Path
) -> None:
    """In float64, so that what is compared is the sum and not its rounding."""
    trained = write_adapter(tmp_path / "result", base, use_rslora=use_rslora).double()
    merge_adapter(tmp_path / "result", tmp_path / "merged", dtype=torch.float64)
    processor = OpenVLAPolicy.from_pretrained(base, engine="off").processor
    expected = logits_of(trained, processor)
    change = (logits_of(network(base, torch.float64), processor) - expected).abs().max().item()
    assert change > 0.1, f"the adapter changes logits by only {change:.2g}"
    merged = network(tmp_path / "merged", torch.float64)
    difference = (logits_of(merged, processor) - expected).abs().max().item()
    assert difference < 1e-9, f"logits differ by up to {difference:.2g}"


def test_merged_and_attached_give_the_same_tokens(
    reference_checkpoints: Path, tmp_path: Path
) -> None:
    """In float32 other sums change the last bits of logits as large as 33."""
    write_adapter(tmp_path / "result", reference_checkpoints / "A_fused")
    merge_adapter(tmp_path / "result", tmp_path / "merged", dtype=torch.float32)
    merged = OpenVLAPolicy.from_pretrained(tmp_path / "merged", engine="off")
    attached = OpenVLAPolicy.from_pretrained(
        tmp_path / "result", engine="off", adapter_mode="attach"
    )
    expected = logits_of(attached.model, attached.processor)
    difference = (logits_of(merged.model, merged.processor) - expected).abs().max().item()
    largest = expected.abs().max().item()
    assert difference < 2e-6 * largest, f"logits differ by up to {difference:.2g} of {largest:.2g}"
    answers = [p.predict_action(IMAGE, INSTRUCTION) for p in (merged, attached)]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].action.tolist() == answers[1].action.tolist()


def test_a_merged_adapter_of_the_reference_gives_its_golden_action(
    reference_checkpoints: Path, tmp_path: Path
) -> None:
    """Golden source: openvla @ c8f03f4 with peft 0.11.1."""
    from PIL import Image

    golden = np.load(ROOT / "goldens" / "lora.npz")
    base = reference_checkpoints / "A_fused"
    merge_adapter(GOLDEN_ADAPTER, tmp_path / "merged", base=base, dtype=torch.float32)
    policy = OpenVLAPolicy.from_pretrained(tmp_path / "merged", engine="off")
    image = np.asarray(Image.open(ROOT / "images" / "img0_256.png").convert("RGB"))
    inputs = policy.processor(image, "put the carrot in the bowl")
    with torch.inference_mode():
        logits, _ = policy.model.prefill(inputs.input_ids, inputs.pixel_values)
    expected = golden["first_step_action_row_logits_merged"]
    difference = np.abs(logits[0, 31744:32000].numpy() - expected).max()
    assert difference < 1e-4, f"logits differ by up to {difference:.2g}"
    action = policy.predict_action(image, "put the carrot in the bowl").action
    assert action.tolist() == golden["action_merged"].tolist()


def test_what_a_run_ends_with_is_the_same_attached_merged_and_in_peft(tmp_path: Path) -> None:
    inputs = build_inputs(tmp_path / "inputs")
    folder = finetune(run_config(inputs, tmp_path / "run")).folder
    merge_adapter(folder, tmp_path / "merged", dtype=torch.float64)
    attached = OpenVLAPolicy.from_pretrained(folder, engine="off", adapter_mode="attach")
    processor, expected = attached.processor, logits_of(attached.model.double(), attached.processor)
    base = network(inputs / "base", torch.float64)
    change = (logits_of(base, processor) - expected).abs().max().item()
    assert change > 0.1, f"the run changes logits by only {change:.2g}"
    in_peft = PeftModel.from_pretrained(base, str(folder)).double().base_model.model
    for model in (network(tmp_path / "merged", torch.float64), in_peft):
        difference = (logits_of(model, processor) - expected).abs().max().item()
        assert difference < 1e-9, f"logits differ by up to {difference:.2g}"


def test_what_the_adapter_knows_comes_along(result: Path, tmp_path: Path) -> None:
    merge_adapter(result, tmp_path / "merged")
    shutil.rmtree(result)
    policy = OpenVLAPolicy.from_pretrained(tmp_path / "merged")
    assert policy.unnorm_key == KEY
    assert set(policy.norm_stats) == {KEY, "bridge_orig"}
    assert policy.action_spec.robot == "my arm"
    assert policy.processor.image_processor.options == FACTS.image_options
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["norm_stats"][KEY] == ENTRY
    assert json.loads((tmp_path / "merged" / "finetune.json").read_text())["kind"] == "merged"


def test_a_merged_checkpoint_has_the_number_format_of_its_base(
    base: Path, result: Path, tmp_path: Path
) -> None:
    merge_adapter(result, tmp_path / "merged")
    written, expected = stored_tensors(tmp_path / "merged"), stored_tensors(base)
    assert {k: (t.shape, t.dtype) for k, t in written.items()} == {
        k: (t.shape, t.dtype) for k, t in expected.items()
    }


def test_no_more_than_one_shard_is_held(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of 1 MB: what is written at once stays near that, for a model of many."""
    held: list[int] = []

    def save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        held.append(sum(tensor.nbytes for tensor in tensors.values()))
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(shards, "_SHARD_BYTES", 10**6)
    monkeypatch.setattr(shards, "save_file", save)
    merge_adapter(result, tmp_path / "merged")
    largest = max(stored.nbytes for stored in stored_tensors(tmp_path / "merged").values())
    assert len(held) > 3
    assert max(held) <= max(10**6, largest), held


def test_an_adapter_on_other_weights_is_not_merged(
    result: Path, reference_checkpoints: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="not the base"):
        merge_adapter(result, tmp_path / "merged", base=reference_checkpoints / "A_fused")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_that_does_not_name_its_base_needs_it_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--base"):
        merge_adapter(GOLDEN_ADAPTER, tmp_path / "merged")


def test_an_adapter_of_another_shape_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        merge_adapter(GOLDEN_ADAPTER, tmp_path / "merged", base=base)


def test_a_whole_checkpoint_is_not_merged(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to merge"):
        merge_adapter(base, tmp_path / "merged")


def test_a_folder_that_is_taken_is_left_alone(result: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not an empty folder"):
        merge_adapter(result, tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "setting",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"alpha_pattern": {"lm_head": 2}},
        {"init_lora_weights": "pissa"},
        {"fan_in_fan_out": True},
    ],
)
def test_more_than_plain_lora_is_refused(setting: dict, result: Path, tmp_path: Path) -> None:
    path = result / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(CheckpointError, match=f"plain LoRA.*{next(iter(setting))}"):
        merge_adapter(result, tmp_path / "merged")


def test_half_a_pair_of_matrices_is_refused(result: Path, tmp_path: Path) -> None:
    path = result / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[next(key for key in tensors if key.endswith("v_proj.lora_A.weight"))]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="v_proj"):
        merge_adapter(result, tmp_path / "merged")


def test_the_command_merges_and_the_keys_are_those_of_the_run(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert main(["merge", str(result), str(out), "--dtype", "float16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == str(out)
    assert {stored.dtype for stored in stored_tensors(out).values()} == {torch.float16}
    for folder in (result, out):
        assert main(["keys", str(folder), "--json"]) == 0
        rows = {row["unnorm_key"]: row for row in json.loads(capsys.readouterr().out)["keys"]}
        assert rows[KEY]["action_spec"]["robot"] == "my arm"
    assert main(["merge", str(result), str(tmp_path / "other"), "--dtype", "int8"]) == 1
    assert "bfloat16" in capsys.readouterr().err


def test_doctor_looks_at_an_adapter_and_its_base(
    base: Path, result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["doctor", "--checkpoint", str(result), "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    found = {item["item"]: item for item in findings if item["section"] == "checkpoint"}
    assert found["adapter"]["level"] == "ok"
    assert found["folder"]["value"] == str(base.resolve())
    assert KEY in [item["item"] for item in findings if item["section"] == "statistics"]
