"""The folder that a run ends with: whole, loadable by this package and by PEFT, and nothing else.

Two small float32 networks with the layout of the released ones serve as bases.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_results import (
    ENTRY,
    FACTS,
    IMAGE,
    KEY,
    logits_of,
    network,
    trained_adapter,
    write_adapter,
)
from peft import PeftModel

from openvla_ros.action_specs import TRAINING_SOURCE
from openvla_ros.config.policy import ModelConfig
from openvla_ros.errors import ActionStatsError, CheckpointError, ConfigurationError
from openvla_ros.evaluation.replay.variants import Variant
from openvla_ros.model.base_reference import refer_to_base, weights_fingerprint
from openvla_ros.model.checkpoint import stored_tensors
from openvla_ros.model.image_options import ImageOptions
from openvla_ros.model.result_files import FINETUNE_FILE, read_base_reference
from openvla_ros.policy import OpenVLAPolicy
from openvla_ros.ros.policies import load_policy
from openvla_ros.training.result import AdapterWeights, FullWeights, ResultFacts, write_result


@pytest.fixture(scope="module")
def base(reference_checkpoints: Path) -> Path:
    return reference_checkpoints / "A_fused"


def test_an_adapter_result_is_loaded_by_its_own_name(base: Path, tmp_path: Path) -> None:
    trained = write_adapter(tmp_path / "result", base)
    policy = OpenVLAPolicy.from_pretrained(tmp_path / "result", engine="off")
    expected = logits_of(trained, policy.processor)
    difference = (logits_of(policy.model, policy.processor) - expected).abs().max().item()
    # Merged, so other sums: their order changes the last bits of logits as large as 33.
    largest = expected.abs().max().item()
    assert difference < 2e-6 * largest, f"logits differ by up to {difference:.2g} of {largest:.2g}"
    assert policy.unnorm_key == KEY
    assert policy.processor.image_processor.options == FACTS.image_options
    assert policy.action_spec.robot == "my arm"
    assert policy.action_spec.sources["action_hz"] == TRAINING_SOURCE
    assert str(base) in policy.info.choices["base"]


@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_every_file_of_a_result_can_be_read_by_whom_the_umask_lets(
    base: Path, tmp_path: Path, kind: str
) -> None:
    before = os.umask(0o027)
    try:
        if kind == "adapter":
            write_adapter(tmp_path / "result", base)
        else:
            reference = refer_to_base(base, "", base)
            write_result(tmp_path / "result", whole({}), FACTS, base=reference, base_folder=base)
    finally:
        os.umask(before)
    modes = {
        path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "result").iterdir()
    }
    assert set(modes.values()) == {"0o640"}, modes


def test_an_adapter_result_is_loaded_beside_its_base(base: Path, tmp_path: Path) -> None:
    """As it is when the base has moved since."""
    write_adapter(tmp_path / "result", base)
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    named = OpenVLAPolicy.from_pretrained(tmp_path / "result")
    beside = OpenVLAPolicy.from_pretrained(moved, adapter=tmp_path / "result")
    assert beside.unnorm_key == named.unnorm_key
    assert beside.processor.image_processor.options == named.processor.image_processor.options
    assert beside.action_spec == named.action_spec
    answers = [p.predict_action(IMAGE, "lift the cup").token_ids for p in (named, beside)]
    assert answers[0] == answers[1]


def test_peft_loads_an_adapter_result(base: Path, tmp_path: Path) -> None:
    trained = write_adapter(tmp_path / "result", base)
    policy = OpenVLAPolicy.from_pretrained(base, engine="off")
    loaded = PeftModel.from_pretrained(network(base), str(tmp_path / "result")).base_model.model
    difference = (
        (logits_of(loaded, policy.processor) - logits_of(trained, policy.processor))
        .abs()
        .max()
        .item()
    )
    assert difference < 1e-5, f"logits differ by up to {difference:.2g}"


def test_an_adapter_on_other_weights_is_refused_with_both_fingerprints(
    base: Path, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "result", base)
    reference = read_base_reference(tmp_path / "result")
    other = Path(shutil.copytree(base, tmp_path / "other"))
    with (other / "model.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x01")
    with pytest.raises(CheckpointError, match="not the base") as caught:
        OpenVLAPolicy.from_pretrained(other, adapter=tmp_path / "result")
    assert reference is not None
    assert reference.fingerprint[:16] in str(caught.value)
    assert weights_fingerprint(other)[:16] in str(caught.value)


def test_a_base_that_is_gone_is_named_with_what_to_do(base: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    write_adapter(tmp_path / "result", moved)
    shutil.rmtree(moved)
    with pytest.raises(CheckpointError, match="as the adapter") as caught:
        OpenVLAPolicy.from_pretrained(tmp_path / "result")
    assert str(moved) in str(caught.value)


def test_a_parameter_that_is_no_adapter_does_not_enter(base: Path, tmp_path: Path) -> None:
    """The head of an auxiliary loss is trained and never deployed."""
    _, weights = trained_adapter(base)
    mixed = AdapterWeights(weights.config, {**weights.tensors, "depth.weight": torch.zeros(2)})
    with pytest.raises(AssertionError, match="depth"):
        write_result(
            tmp_path / "result", mixed, FACTS, base=refer_to_base(base, "", base), base_folder=base
        )
    assert list(tmp_path.iterdir()) == []


def whole(trained: dict[str, torch.Tensor], dtype: torch.dtype | None = None) -> FullWeights:
    return FullWeights(trained.keys(), trained.__getitem__, dtype)


def test_a_whole_result_has_the_trained_weights_and_those_of_its_base(
    base: Path, tmp_path: Path
) -> None:
    model = network(base)
    state = model.state_dict()
    names = [key for key in state if key.startswith("language_model.lm_head")]
    trained = {key: state[key] + 0.5 for key in names}
    write_result(
        tmp_path / "result",
        whole(trained, torch.float32),
        FACTS,
        base=refer_to_base(base, "", base),
        base_folder=base,
    )
    written = network(tmp_path / "result").state_dict()
    for key, tensor in state.items():
        expected = trained.get(key, tensor)
        assert torch.equal(written[key], expected), (
            f"{key}: {(written[key] - expected).abs().max()}"
        )
    policy = OpenVLAPolicy.from_pretrained(tmp_path / "result")
    assert policy.unnorm_key == KEY
    assert policy.action_spec.robot == "my arm"
    assert set(policy.norm_stats) == {KEY, "tiny_bridge"}
    config = json.loads((tmp_path / "result" / "config.json").read_text())
    assert config["norm_stats"][KEY] == ENTRY


def test_every_process_gathers_the_same_weights_in_the_same_order(
    base: Path, tmp_path: Path
) -> None:
    """Gathering needs all processes: one that leaves early lets the others wait for ever."""
    state = network(base).state_dict()
    trained = [key for key in sorted(state) if "projector" in key]
    calls: dict[str, list[str]] = {"writes": [], "helps": [], "fails": []}

    def run(name: str, out: Path, write: bool) -> None:
        def tensor_of(key: str) -> torch.Tensor:
            calls[name].append(key)
            return state[key]

        write_result(
            out,
            FullWeights(trained, tensor_of),
            FACTS,
            base=refer_to_base(base, "", base),
            base_folder=base,
            write=write,
        )

    run("writes", tmp_path / "result", True)
    run("helps", tmp_path / "never", False)
    assert not (tmp_path / "never").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not an empty folder"):
        run("fails", tmp_path / "taken", True)
    assert calls["writes"] == calls["helps"] == calls["fails"]
    assert sorted(calls["writes"]) == trained


def test_a_newer_result_replaces_an_older_one(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "result", base)
    first = (tmp_path / "result" / FINETUNE_FILE).stat().st_ino
    write_adapter(tmp_path / "result", base)
    assert (tmp_path / "result" / FINETUNE_FILE).stat().st_ino != first
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_numbers_that_json_lacks_become_null(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "result", base)
    stored = json.loads((tmp_path / "result" / FINETUNE_FILE).read_text())
    assert stored["metrics"] == {"loss": None, "accuracy": 0.5}
    assert stored["base"]["checkpoint"] == str(base.resolve())
    assert {"torch", "peft"} <= set(stored["versions"])


def test_the_fingerprint_does_not_depend_on_how_weights_are_split(
    base: Path, tmp_path: Path, split: Callable[[Path, Path], None]
) -> None:
    split(base, tmp_path / "split")
    assert len({stored.path for stored in stored_tensors(tmp_path / "split").values()}) == 3
    assert weights_fingerprint(tmp_path / "split") == weights_fingerprint(base)


def test_a_base_from_the_hub_is_kept_with_its_commit(base: Path, tmp_path: Path) -> None:
    """A branch moves; the weights of the run do not."""
    commit = "c8f03f48af692657d3060c19588038c7220e9af9"
    (tmp_path / "snapshots").mkdir()
    folder = tmp_path / "snapshots" / commit
    folder.symlink_to(base)
    reference = refer_to_base("openvla/openvla-7b", "main", folder)
    assert (reference.checkpoint, reference.revision) == ("openvla/openvla-7b", commit)
    assert reference.fingerprint == weights_fingerprint(base)


@pytest.fixture
def split() -> Callable[[Path, Path], None]:
    """Return what writes the weights of a folder into three files of another."""
    from safetensors.torch import load_file, save_file

    def write(source: Path, out: Path) -> None:
        out.mkdir()
        tensors = load_file(source / "model.safetensors")
        keys = sorted(tensors)
        weight_map = {}
        for part in range(3):
            chosen = {key: tensors[key] for key in keys[part::3]}
            save_file(chosen, out / f"part{part}.safetensors")
            weight_map |= dict.fromkeys(chosen, f"part{part}.safetensors")
        index = {"weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index))

    return write


def test_several_keys_of_a_run_must_be_chosen_from(base: Path, tmp_path: Path) -> None:
    _, weights = trained_adapter(base)
    facts = ResultFacts({KEY: ENTRY, "other": ENTRY}, ImageOptions())
    write_result(
        tmp_path / "result", weights, facts, base=refer_to_base(base, "", base), base_folder=base
    )
    policy = OpenVLAPolicy.from_pretrained(tmp_path / "result")
    with pytest.raises(ActionStatsError, match="other"):
        _ = policy.unnorm_key


def test_the_node_and_replay_load_a_result_as_their_checkpoint(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "result", base)
    for policy in (
        load_policy(ModelConfig(checkpoint=str(tmp_path / "result"), device="cpu")),
        Variant("tuned", str(tmp_path / "result")).load(),
    ):
        assert policy.action_spec.unnorm_key == KEY
        assert policy.action_spec.robot == "my arm"
        policy.self_test()


def test_two_adapters_at_once_are_refused(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "result", base)
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        OpenVLAPolicy.from_pretrained(tmp_path / "result", adapter=tmp_path / "result")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("finetune.json", "{", "does not say which checkpoint"),
        ("finetune.json", '{"base": {"checkpoint": "a", "revision": ""}}', "does not say"),
        ("finetune.json", '{"base": {"checkpoint": 1, "revision": "", "fingerprint": ""}}', "text"),
        ("action_specs.json", '{"my_arm": {"robot": "r"}}', "instead of"),
        ("action_specs.json", '{"my_arm": {"kind": ["sideways", "me"]}}', "sideways"),
        ("preprocessor_config.json", "[]", "JSON object"),
        ("dataset_statistics.json", "{", "JSON"),
    ],
)
def test_a_damaged_file_of_a_result_is_named(
    name: str, text: str, words: str, base: Path, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "result", base)
    (tmp_path / "result" / name).write_text(text)
    with pytest.raises(CheckpointError, match=words) as caught:
        OpenVLAPolicy.from_pretrained(tmp_path / "result")
    assert name in str(caught.value)


_WRITE_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from adapter_results import write_adapter
from openvla_ros.errors import StorageError
base, out = map(Path, sys.argv[1:])
write_adapter(out, base)
before = (out / "finetune.json").stat().st_ino
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # fails as a full disk does
try:
    write_adapter(out, base)
except StorageError as error:
    assert str(out) in str(error), error
    assert (out / "finetune.json").stat().st_ino == before
    print([path.name for path in out.parent.iterdir()])
"""


def test_a_full_disk_leaves_the_older_result_and_nothing_else(base: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _WRITE_ON_A_FULL_DISK, str(base), str(tmp_path / "result")],
        env=os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.strip() == "['result']", run.stderr
