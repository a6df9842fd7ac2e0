"""Runs that are killed twenty times, anywhere and while they write checkpoints."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_cases import build_inputs, demanding_config, require_same_runs

from openvla_ros.training import finetune as module
from openvla_ros.training import run_state
from openvla_ros.training.config import FinetuneConfig
from openvla_ros.training.finetune import finetune
from openvla_ros.training.run_state import newest_state

pytestmark = pytest.mark.slow

KILLS = 20
STEPS = 40
_EXAMPLES = {"optimization__max_steps": STEPS, "run__save_every": 2, "run__evaluate_every": 15}


def _kill_after(delay_s: float) -> None:
    timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


def _train_until_killed(config: FinetuneConfig, delay_s: float, in_save: int) -> None:
    """Train; die `delay_s` after the start, or of the `in_save`-th save if that is given."""
    import torch

    torch.set_num_threads(1)
    if not in_save:
        _kill_after(delay_s)
    real, count = run_state.save_state, 0

    def save(*arguments: Any, **options: Any) -> Path:
        nonlocal count
        count += 1
        if count == in_save:
            _kill_after(delay_s)
        return real(*arguments, **options)

    module.save_state = save
    finetune(config)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_inputs(tmp_path_factory.mktemp("inputs"))
    finetune(demanding_config(folder, folder / "whole", **_EXAMPLES))
    return folder


@pytest.mark.parametrize("where", ["anywhere", "while writing a checkpoint"])
def test_killed_twenty_times_and_still_the_same_run(
    inputs: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lives are forked from a process that has imported everything; it finds modules by this.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["finetune_cases", "test_finetune_kills"])
    random = np.random.default_rng(0)
    config = demanding_config(inputs, tmp_path / "run", **_EXAMPLES)
    checkpoints = tmp_path / "run" / "checkpoints"
    kills = partial = 0
    reached: list[int] = []
    while kills < KILLS:
        if where == "anywhere":
            delay_s, in_save = float(random.uniform(0.5, 3.0)), 0
        else:  # a save takes some 10 ms
            delay_s, in_save = float(random.uniform(0.0, 0.015)), int(random.integers(1, 3))
        life = context.Process(target=_train_until_killed, args=(config, delay_s, in_save))
        life.start()
        life.join(300)
        assert life.exitcode in (-signal.SIGKILL, 0), life.exitcode
        state = newest_state(checkpoints, lambda text: pytest.fail(text))
        reached.append(state.step if state else 0)
        assert reached == sorted(reached), reached
        kills += life.exitcode != 0
        partial += any(path.name.endswith(".partial") for path in checkpoints.glob("*"))
        if life.exitcode == 0:  # it ended before it was killed: once more from the start
            require_same_runs(inputs / "whole", tmp_path / "run")
            config = demanding_config(inputs, tmp_path / f"run_{kills}", **_EXAMPLES)
            checkpoints = tmp_path / f"run_{kills}" / "checkpoints"
            reached = []
    finetune(config)
    count = require_same_runs(inputs / "whole", checkpoints.parent)
    print(f"{kills} kills {where}, {partial} left a partial checkpoint, {count} tensors equal")
    if where != "anywhere":
        assert partial >= 5, partial
