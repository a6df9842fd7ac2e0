"""Checkpoints of a run under way: whole or not there, and nothing damaged is ever loaded."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openvla_ros.errors import CheckpointError, StorageError
from openvla_ros.training import run_state
from openvla_ros.training.run_state import MANIFEST, newest_state, read_state, save_state

FACTS = {"window": [0.1, 1 / 3], "best": None, "config": {"seed": 7}}


def tensors_of(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weights/a": torch.randn(8, 5, generator=generator),
        "weights/b": torch.randn(3, generator=generator).bfloat16(),
        "moments/step": torch.tensor(float(seed)),
        "transposed": torch.randn(4, 6, generator=generator).t(),
        "random": torch.randint(0, 255, (32,), generator=generator, dtype=torch.uint8),
    }


def restored(state: run_state.StoredState) -> dict[str, torch.Tensor]:
    places: dict[str, torch.Tensor] = {}

    def place_of(name: str, stored: torch.Tensor) -> torch.Tensor:
        return places.setdefault(name, torch.empty_like(stored))

    state.restore(place_of)
    return places


def require_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return save_state(folder, step, tensors_of(step), FACTS | {"step": step}, keep=keep)


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    written = save(tmp_path / "checkpoints", 7)
    assert written.name == "step_00000007"
    state = newest_state(tmp_path / "checkpoints")
    assert state is not None and state.step == 7
    assert state.facts == FACTS | {"step": 7}
    require_equal(restored(state), tensors_of(7))


def test_large_states_are_split_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "_FILE_BYTES", 100)
    state = read_state(save(tmp_path, 1))
    assert len(state.files) >= 3
    require_equal(restored(state), tensors_of(1))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]


def test_a_run_without_checkpoints_starts_anew(tmp_path: Path) -> None:
    assert newest_state(tmp_path / "absent") is None
    (tmp_path / "step_00000003.partial").mkdir()
    assert newest_state(tmp_path) is None
    save(tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000004"]


def damage(folder: Path, kind: str) -> None:
    file = folder / "tensors_00000.safetensors"
    content = bytearray(file.read_bytes())
    manifest = folder / MANIFEST
    if kind == "flipped bit":
        content[-3] ^= 1
        file.write_bytes(content)
    elif kind == "cut off":
        file.write_bytes(content[:-1])
    elif kind == "longer":
        file.write_bytes(content + b"x")
    elif kind == "file missing":
        file.unlink()
    elif kind == "manifest missing":
        manifest.unlink()
    elif kind == "manifest cut off":
        manifest.write_bytes(manifest.read_bytes()[:-20])
    elif kind == "manifest empty":
        manifest.write_bytes(b"")
    elif kind == "fact changed":
        text = manifest.read_text()
        assert '"seed": 7' in text
        manifest.write_text(text.replace('"seed": 7', '"seed": 8'))
    elif kind == "another step":
        text = manifest.read_text()
        manifest.write_text(text.replace('"step": 2', '"step": 3'))
    else:
        raise AssertionError(kind)


KINDS = [
    "flipped bit",
    "cut off",
    "longer",
    "file missing",
    "manifest missing",
    "manifest cut off",
    "manifest empty",
    "fact changed",
    "another step",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, kind: str) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2), kind)
    told: list[str] = []
    state = newest_state(tmp_path, told.append)
    assert state is not None and state.step == 1
    require_equal(restored(state), tensors_of(1))
    assert len(told) == 1 and "step_00000002 is damaged" in told[0]


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """At 60 random places of either file: no corrupt checkpoint is loadable."""
    folder = save(tmp_path, 2)
    random = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for place in random.integers(0, len(whole), 60):
            broken = bytearray(whole)
            broken[place] ^= 1 << int(random.integers(0, 8))
            path.write_bytes(broken)
            try:
                state = read_state(folder)
            except CheckpointError:
                continue
            # Left: blanks of the JSON text, which mean nothing.
            assert path.name == MANIFEST and state.facts == FACTS | {"step": 2}, place
        path.write_bytes(whole)
    read_state(folder)


def test_when_all_are_damaged_nothing_starts_over_silently(tmp_path: Path) -> None:
    damage(save(tmp_path, 1), "cut off")
    with pytest.raises(CheckpointError, match=r"Every checkpoint .* is damaged; start over"):
        newest_state(tmp_path)


def test_damaged_newer_checkpoints_do_not_push_out_good_ones(tmp_path: Path) -> None:
    """`keep` used to count them, and a run that went on from step 1 could lose its own step 2."""
    save(tmp_path, 1)
    damage(save(tmp_path, 9), "cut off")
    save(tmp_path, 2, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageError, match=r"step 2 .* bytes, and of .*make room"):
        save(tmp_path, 2)
    require_only_first(tmp_path)


def require_only_first(folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["step_00000001"]
    state = newest_state(folder)
    assert state is not None and state.step == 1
    require_equal(restored(state), tensors_of(1))


def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    """The system's own refusal: files may not grow beyond a limit, as on a full disk."""
    save(tmp_path, 1)
    large = {"weights": torch.zeros(200_000)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(StorageError, match="step 2 cannot be written"):
            save_state(tmp_path, 2, large, FACTS, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    require_only_first(tmp_path)


SAVER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from test_run_state import save
    step = int(sys.argv[2])
    print("ready", flush=True)
    while True:
        step += 1
        save(Path(sys.argv[1]), step)
        print(step, flush=True)
    """
)


@pytest.mark.slow
def test_killed_while_writing_twenty_times(tmp_path: Path) -> None:
    """Whatever is there after SIGKILL is whole, and no older than what was reported as saved."""
    random = np.random.default_rng(0)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    step = partial = 0
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path), str(step)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(int(random.integers(1, 5))):
            saved = int(process.stdout.readline())
        # A moment in the next save, which takes some ten milliseconds.
        try:
            process.wait(float(random.uniform(0.0, 0.03)))
        except subprocess.TimeoutExpired:
            process.kill()
        rest = process.communicate()[0].split()
        saved = int(rest[-1]) if rest else saved
        partial += any(path.name.endswith(".partial") for path in tmp_path.iterdir())
        state = newest_state(tmp_path, lambda text: pytest.fail(text))
        assert state is not None and state.step in (saved, saved + 1), (state, saved)
        require_equal(restored(state), tensors_of(state.step))
        step = state.step
    print(f"{partial} of 20 kills left a partial folder")
    assert partial >= 1


def test_facts_must_be_json(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"a": {1, 2}}
    with pytest.raises(TypeError):
        save_state(tmp_path, 1, tensors_of(1), facts, keep=1)
    assert json.loads((save(tmp_path, 2) / MANIFEST).read_text())["content"]["step"] == 2
    assert newest_state(tmp_path) is not None
