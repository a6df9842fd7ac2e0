"""Rounded weights kept on disk: the same bits at the next start, or none of them."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from weight_comparison import CPU, assert_same_model, assert_same_weights, write_narrow

from openvla_ros.engine import low_bit, prepacked, recipe
from openvla_ros.engine.streaming import stream
from openvla_ros.engine.weights import LanguageWeights
from openvla_ros.model.checkpoint import empty_model, read_config
from openvla_ros.model.modeling import OpenVLAForActionPrediction
from openvla_ros.policy import OpenVLAPolicy

Loaded = tuple[OpenVLAForActionPrediction, LanguageWeights, str]


def load(folder: Path, quantization: str = "int8") -> Loaded:
    model = empty_model(read_config(folder), torch.bfloat16)
    weights, how = stream(model, folder, device=CPU, quantization=quantization)
    return model, weights, how


def assert_same_loaded(found: Loaded, expected: Loaded) -> None:
    assert_same_model(found[0], expected[0])
    assert_same_weights(found[1], expected[1])


@pytest.fixture
def kept_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(prepacked.VARIABLE, str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_narrow(tmp_path_factory.mktemp("narrow") / "checkpoint")


@pytest.fixture
def checkpoint(narrow: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may change."""
    return Path(shutil.copytree(narrow, tmp_path / "checkpoint"))


def only_entry(kept_in: Path) -> Path:
    (path,) = kept_in.iterdir()
    return path


@pytest.mark.parametrize("quantization", low_bit.KINDS)
def test_the_second_start_has_the_same_bits_and_rounds_nothing(
    quantization: str, narrow: Path, kept_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(narrow, quantization)
    assert re.search(f"written in .* s to {kept_in}", first[2])

    def must_not_round(*_: object) -> None:
        raise AssertionError("a matrix was rounded")

    monkeypatch.setattr(low_bit, "quantize", must_not_round)
    second = load(narrow, quantization)
    assert f"rounded before, from {only_entry(kept_in)}" in second[2]
    assert_same_loaded(second, first)


def test_a_policy_predicts_the_same_from_kept_weights(tiny_checkpoint: Path, kept_in: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    answers = []
    for said in ("written in", "rounded before"):
        policy = OpenVLAPolicy.from_pretrained(tiny_checkpoint, quantization="int8", device="cpu")
        assert said in policy.info.choices["start-up"]
        answers.append(policy.predict_action(image, "lift the lid"))
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].token_probabilities == answers[1].token_probabilities


def test_full_precision_is_not_kept(narrow: Path, kept_in: Path) -> None:
    _, _, how = load(narrow, "none")
    assert "written" not in how
    assert not kept_in.exists()


def test_each_mode_has_a_file_of_its_own_and_the_list_names_them(
    narrow: Path, kept_in: Path
) -> None:
    for quantization in ("int8", "int4", "int8"):
        load(narrow, quantization)
    (kept_in / "broken.safetensors").write_bytes(b"?")
    listed = prepacked.entries()
    assert [entry.recipe.get("quantization") for entry in listed] == [None, "int4", "int8"]
    assert all(entry.nbytes == entry.path.stat().st_size for entry in listed)
    assert listed[1].recipe["checkpoint"] == str(narrow.resolve())


def test_a_kept_file_is_an_ordinary_safetensors_file(narrow: Path, kept_in: Path) -> None:
    _, weights, _ = load(narrow)
    with safe_open(only_entry(kept_in), framework="pt") as tensors:
        data = tensors.get_tensor("layers.1.down.data")
        assert json.loads(tensors.metadata()["recipe"])["quantization"] == "int8"
    assert torch.equal(data, weights.layers[1].down.data)


def touch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(folder / "model.safetensors", ns=(1, 1))


def rename_a_field(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"said": "something"}))


def update_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "torch", SimpleNamespace(__version__="99.0"))


def update_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openvla_ros.__version__", "99.0")


def change_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "_code_version", lambda: "other")


def change_format(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "_FORMAT", 99)


def train_unseen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights, with the size, the header and the time of the old ones."""
    path = folder / "model.safetensors"
    before = path.stat()
    tensors = {key: tensor + 0.5 for key, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (touch, "weight files"),
        (train_unseen, "weight files"),
        (rename_a_field, "config.json"),
        (update_torch, "torch"),
        (update_package, "openvla_ros"),
        (change_code, "rounding code"),
        (change_format, "format"),
    ],
)
def test_a_stale_file_is_replaced_and_the_reason_is_said(
    change,
    named: str,
    checkpoint: Path,
    kept_in: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    load(checkpoint)
    change(checkpoint, monkeypatch)
    with caplog.at_level(logging.WARNING):
        again = load(checkpoint)
    assert re.search(f"is made again: it is stale: {named} was .*, now is ", caplog.text)
    assert f"it is stale: {named} was" in again[2] and "written in" in again[2]
    caplog.clear()
    kept = load(checkpoint)
    assert "rounded before" in kept[2] and not caplog.text
    assert_same_loaded(kept, again)
    assert only_entry(kept_in), "the folder does not grow"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9999])
def test_a_damaged_file_is_replaced_and_the_reason_is_said(
    share: float, narrow: Path, kept_in: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = load(narrow)
    entry = only_entry(kept_in)
    flip(entry, int(share * entry.stat().st_size))
    with caplog.at_level(logging.WARNING):
        again = load(narrow)
    assert re.search("is made again: .*damaged", caplog.text)
    assert_same_loaded(again, first)
    assert "rounded before" in load(narrow)[2]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def test_a_truncated_file_is_replaced(
    narrow: Path, kept_in: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = load(narrow)
    entry = only_entry(kept_in)
    os.truncate(entry, entry.stat().st_size // 2)
    again = load(narrow)
    assert "is made again" in caplog.text and "damaged or incomplete" in caplog.text
    assert_same_loaded(again, first)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(min_value=0), st.integers(0, 7), st.booleans())
def test_no_flipped_bit_goes_unseen(
    whole_entry: tuple[Path, Path, bytes], position: int, bit: int, in_header: bool
) -> None:
    checkpoint, entry, content = whole_entry
    length = 8 + int.from_bytes(content[:8], "little") if in_header else len(content)
    damaged = bytearray(content)
    damaged[position % length] ^= 1 << bit
    entry.write_bytes(damaged)
    model = empty_model(read_config(checkpoint), torch.bfloat16)
    made = recipe.recipe_of(checkpoint, "int8", torch.bfloat16, CPU)
    with pytest.raises(prepacked.UnusableError):
        prepacked.read(entry, made, model, CPU)


@pytest.fixture(scope="module")
def whole_entry(narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bytes]:
    entry = tmp_path_factory.mktemp("entry") / "some.safetensors"
    model, weights, _ = load(narrow)
    made = recipe.recipe_of(narrow, "int8", torch.bfloat16, CPU)
    prepacked.write(entry, made, model, weights)
    return narrow, entry, entry.read_bytes()


@pytest.mark.parametrize("trouble", ["no folder", "disk full", "disk full on the way"])
def test_weights_that_cannot_be_kept_are_used_all_the_same(
    trouble: str,
    narrow: Path,
    kept_in: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if trouble == "no folder":  # also what a folder that may not be written does
        kept_in.write_text("a file")
    elif trouble == "disk full":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    else:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(prepacked, "zlib", SimpleNamespace(crc32=full))
    model, weights, how = load(narrow)
    assert "rounded weights are not kept for the next start: " in caplog.text
    assert "not kept: " in how
    assert len(weights.layers) == 2 and not any(p.is_meta for p in model.parameters())
    assert not kept_in.is_dir() or not list(kept_in.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("word", ["off", "OFF"])
def test_off_keeps_nothing(
    word: str, narrow: Path, kept_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(prepacked.VARIABLE, word)
    assert "not kept: OPENVLA_ROS_CACHE is 'off'" in load(narrow)[2]
    assert prepacked.entries() == []


def test_files_go_to_the_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(prepacked.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prepacked.folder() == tmp_path / "openvla_ros" / "engine"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepacked.folder() == tmp_path / ".cache" / "openvla_ros" / "engine"


def test_a_file_that_goes_away_once_it_is_read_is_no_error(
    narrow: Path, kept_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size was asked for afterwards, which ended a start that had all its weights."""
    first = load(narrow)
    read = prepacked.read

    def read_then_lose(entry: Path, *args: Any) -> LanguageWeights:
        weights = read(entry, *args)
        entry.unlink()
        return weights

    monkeypatch.setattr(prepacked, "read", read_then_lose)
    second = load(narrow)
    assert "rounded before" in second[2]
    assert_same_loaded(second, first)


def test_two_that_start_at_once_do_no_harm(narrow: Path, kept_in: Path) -> None:
    results: list[Loaded] = []
    together = threading.Barrier(3)
    # Built before: transformers changes torch's default number format meanwhile, for all threads.
    models = [empty_model(read_config(narrow), torch.bfloat16) for _ in range(3)]

    def start(model: OpenVLAForActionPrediction) -> None:
        together.wait(timeout=30)
        results.append((model, *stream(model, narrow, device=CPU, quantization="int8")))

    threads = [threading.Thread(target=start, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 3
    kept = load(narrow)
    assert f"from {only_entry(kept_in)}" in kept[2]
    for result in results:
        assert_same_loaded(result, kept)


def test_only_what_dead_processes_left_is_removed(narrow: Path, kept_in: Path) -> None:
    kept_in.mkdir()
    dead, alive = kept_in / ".a-1.partial", kept_in / ".a-2.partial"
    for path in (dead, alive):
        path.write_bytes(b"half")
    day_ago = time.time() - 86400
    os.utime(dead, (day_ago, day_ago))
    load(narrow)
    assert not dead.exists()
    assert alive.exists()


def test_weights_from_the_hub_are_known_by_their_hash_not_their_time(
    checkpoint: Path, kept_in: Path, tmp_path: Path
) -> None:
    """The hub client's folders: links into a folder of files named after their content."""
    repository = tmp_path / "models--lab--robot-7b"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (checkpoint / name).rename(blobs / f"hash-of-{name}")
        (snapshot / name).symlink_to(Path("../../blobs") / f"hash-of-{name}")
    load(snapshot)
    assert only_entry(kept_in).name.startswith("lab--robot-7b-int8-bfloat16-cpu-")
    os.utime(blobs / "hash-of-model.safetensors", ns=(1, 1))
    assert "rounded before" in load(snapshot)[2]
