"""Runs that are killed twenty times, anywhere and while they write checkpoints."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_cases import build_inputs, demanding_config, require_same_runs

from openvla_ros.training import finetune as module
from openvla_ros.training import run_state
from openvla_ros.training.config import FinetuneConfig
from openvla_ros.training.finetune import finetune
from openvla_ros.training.loop import SilentWatcher
from openvla_ros.training.run_state import newest_state

pytestmark = pytest.mark.slow

KILLS = 20
STEPS = 40
_EXAMPLES = {"optimization__max_steps": STEPS, "run__save_every": 2, "run__evaluate_every": 15}


def _kill_after(delay_s: float) -> None:
    timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


class _Trigger(SilentWatcher):
    """Starts the countdown when the first step is done."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s: float | None = delay_s

    def step(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        if self._delay_s is not None:
            _kill_after(self._delay_s)
            self._delay_s = None


def _train_until_killed(config: FinetuneConfig, after: str, delay_s: float) -> None:
    """Train; die `delay_s` after "start", after the first "step" or the beginning of a "save"."""
    import torch

    torch.set_num_threads(1)
    if after == "start":
        _kill_after(delay_s)
    real = run_state.save_state

    def save(*arguments: Any, **options: Any) -> Path:
        if after == "save":
            _kill_after(delay_s)
        return real(*arguments, **options)

    module.save_state = save
    finetune(config, watcher=_Trigger(delay_s) if after == "step" else None)


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
    context.set_forkserver_preload(["test_finetune_kills", "peft", "bitsandbytes"])
    random = np.random.default_rng(0)
    config = demanding_config(inputs, tmp_path / "run", **_EXAMPLES)
    checkpoints = tmp_path / "run" / "checkpoints"
    kills = partial = 0
    reached: list[int] = []
    while kills < KILLS:
        if where == "while writing a checkpoint":  # some 10 ms
            after, delay_s = "save", float(random.uniform(0.0, 0.015))
        elif kills % 5 == 4:
            after, delay_s = "start", float(random.uniform(0.0, 2.0))
        else:
            after, delay_s = "step", float(random.uniform(0.0, 1.0))
        life = context.Process(target=_train_until_killed, args=(config, after, delay_s))
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
    print(f"\n{kills} kills {where}, {partial} left a partial checkpoint, {count} tensors equal")
    if where != "anywhere":
        assert partial >= 5, partial
