"""Runs that go on: bit for bit as if they had never stopped, or not at all."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_cases import (
    Killed,
    Witness,
    build_inputs,
    demanding_config,
    require_same_runs,
)
from replay_cases import small_checkpoint
from test_run_state import damage

from openvla_ros.errors import CheckpointError, ConfigurationError
from openvla_ros.model.shards import write_json
from openvla_ros.training.finetune import FinetuneResult, finetune


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def whole(inputs: Path) -> FinetuneResult:
    """An uninterrupted run with everything that could be lost: dropout, average, augmentation."""
    return finetune(demanding_config(inputs, inputs / "whole"))


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    inputs: Path, whole: FinetuneResult, tmp_path: Path, stop_at: int
) -> None:
    config = demanding_config(inputs, tmp_path / "run")
    with pytest.raises(Killed):
        finetune(config, watcher=Witness(stop_at))
    again = Witness()
    finetune(config, watcher=again)
    assert again.steps == list(range(stop_at // 2 * 2 + 1, 7))  # saved every 2 steps
    assert require_same_runs(inputs / "whole", tmp_path / "run") > 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_call_goes_on(
    inputs: Path, whole: FinetuneResult, tmp_path: Path, number: int
) -> None:
    config = demanding_config(inputs, tmp_path / "run")
    witness = Witness(2, number)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        finetune(config, watcher=witness)
    assert signal.getsignal(number) == before
    assert witness.told == ["Stopped after step 3, which is saved; the same call goes on."]
    again = Witness()
    finetune(config, watcher=again)
    assert again.steps == [4, 5, 6] and again.told[0] == "Resumed after step 3."
    require_same_runs(inputs / "whole", tmp_path / "run")


def test_a_finished_run_is_not_trained_again(
    inputs: Path, whole: FinetuneResult, tmp_path: Path
) -> None:
    shutil.copytree(inputs / "whole", tmp_path / "run")
    witness = Witness()
    result = finetune(demanding_config(inputs, tmp_path / "run"), watcher=witness)
    assert witness.steps == []
    assert result.metrics == json.loads((inputs / "whole" / "metrics.json").read_text())


def test_more_steps_go_on_where_the_run_ended(
    inputs: Path, whole: FinetuneResult, tmp_path: Path
) -> None:
    shutil.copytree(inputs / "whole", tmp_path / "run")
    witness = Witness()
    longer = demanding_config(
        inputs, tmp_path / "run", optimization__max_steps=8, run__save_every=1
    )
    finetune(longer, watcher=witness)
    assert witness.steps == [7, 8]


def test_starting_over_is_possible(inputs: Path, whole: FinetuneResult, tmp_path: Path) -> None:
    shutil.copytree(inputs / "whole", tmp_path / "run")
    witness = Witness()
    finetune(demanding_config(inputs, tmp_path / "run"), resume=False, watcher=witness)
    assert witness.steps == [1, 2, 3, 4, 5, 6]
    require_same_runs(inputs / "whole", tmp_path / "run")


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(
    inputs: Path, whole: FinetuneResult, tmp_path: Path
) -> None:
    shutil.copytree(inputs / "whole", tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "step_00000006", "flipped bit")
    witness = Witness()
    finetune(demanding_config(inputs, tmp_path / "run"), watcher=witness)
    assert witness.steps == [5, 6] and "step_00000006 is damaged" in witness.told[0]
    require_same_runs(inputs / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"optimization__learning_rate": 2e-3}, "optimization.learning_rate: 0.001 before, 0.002"),
        ({"optimization__batch_size": 1}, "optimization.batch_size: 2 before, 1 now"),
        ({"strategy__lora_dropout": 0.1}, "strategy.lora_dropout: 0.2 before, 0.1 now"),
        ({"run__seed": 8}, "run.seed: 7 before, 8 now"),
        ({"data__image_augmentation": False}, "data.image_augmentation: True before, False now"),
    ],
)
def test_a_changed_configuration_is_refused_with_what_differs(
    inputs: Path, whole: FinetuneResult, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match="holds another run") as caught:
        finetune(demanding_config(inputs, inputs / "whole", **settings))
    assert named in str(caught.value)


def test_changed_recordings_and_another_base_are_refused(
    inputs: Path, whole: FinetuneResult, tmp_path: Path
) -> None:
    other = tmp_path / "inputs"
    shutil.copytree(inputs, other, ignore=shutil.ignore_patterns("cache"))
    finetune(demanding_config(other, other / "whole"))  # another place of the same is no change
    first = other / "demo" / "episode_000.npz"
    with np.load(first) as stored:
        arrays = dict(stored)
    arrays["action"][0, 0] += 0.001
    np.savez(first, **arrays)
    with pytest.raises(ConfigurationError, match="the data of demo"):
        finetune(demanding_config(other, other / "whole"))
    shutil.copyfile(inputs / "demo" / "episode_000.npz", first)
    shutil.rmtree(other / "base")
    small_checkpoint(other / "base", seed=1)
    with pytest.raises(ConfigurationError, match="the weights of the base"):
        finetune(demanding_config(other, other / "whole"))


def test_without_any_intact_checkpoint_nothing_starts_over_silently(
    inputs: Path, whole: FinetuneResult, tmp_path: Path
) -> None:
    shutil.copytree(inputs / "whole", tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        write_json(folder / "state.json", {})
    with pytest.raises(CheckpointError, match="--no-resume"):
        finetune(demanding_config(inputs, tmp_path / "run"))
    finetune(demanding_config(inputs, tmp_path / "run"), resume=False)
