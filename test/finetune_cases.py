"""What tests of whole runs share: a small base, small recordings, configurations, and comparisons.

`python finetune_cases.py CONFIG` trains, for tests that kill it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from replay_cases import small_checkpoint
from training_recordings import write_recordings

from openvla_ros.training.config import FinetuneConfig
from openvla_ros.training.config_file import config_from, read_finetune_config
from openvla_ros.training.finetune import finetune
from openvla_ros.training.loop import SilentWatcher
from openvla_ros.training.run_state import StoredState, newest_state

LENGTHS = (6, 4, 5)


def build_inputs(folder: Path) -> Path:
    """Return `folder`, filled with a base checkpoint and recordings."""
    small_checkpoint(folder / "base")
    write_recordings(folder / "demo", LENGTHS)
    return folder


def run_config(inputs: Path, out: Path, **settings: Any) -> FinetuneConfig:
    """Return a short run; settings by dotted name with `__` for dots."""
    content: dict[str, Any] = {
        "base": str(inputs / "base"),
        "data": {
            "sources": [{"path": str(inputs / "demo"), "name": "demo"}],
            "held_out": 0.3,
            "workers": 0,
            "cache_folder": str(inputs / "cache"),
        },
        "strategy": {"name": "lora", "lora_rank": 4},
        "optimization": {"batch_size": 2, "max_steps": 6, "learning_rate": 1e-3},
        "run": {
            "out": str(out),
            "device": "cpu",
            "precision": "float32",
            "save_every": 2,
            "evaluate_every": 3,
            "evaluation_samples": 4,
            "log_every": 2,
            "tensorboard": False,
        },
    }
    for name, value in settings.items():
        section, key = name.split("__")
        content[section][key] = value
    return config_from(content)


def tensors_of(state: StoredState) -> dict[str, torch.Tensor]:
    """Return everything a checkpoint of a run holds."""
    found: dict[str, torch.Tensor] = {}
    state.restore(lambda name, stored: found.setdefault(name, torch.empty_like(stored)))
    return found


def require_same_runs(one: Path, other: Path) -> int:
    """Compare the newest checkpoints and the lines of metrics of two runs, bit for bit.

    Returns the number of tensors.
    """
    states = [newest_state(run / "checkpoints") for run in (one, other)]
    assert states[0] is not None and states[1] is not None
    assert states[0].step == states[1].step
    assert states[0].facts["standing"] == states[1].facts["standing"]
    a, b = map(tensors_of, states)  # type: ignore[arg-type]
    assert a.keys() == b.keys()
    off = {name: float((a[name] - b[name]).abs().max()) for name in a if not a[name].equal(b[name])}
    assert not off, f"{len(off)} of {len(a)} tensors differ, by up to {max(off.values())}"
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    return len(a)


def demanding_config(inputs: Path, out: Path, **settings: Any) -> FinetuneConfig:
    """As `run_config`, with everything that could be lost: dropout, average, augmentation."""
    settings = {"strategy__lora_dropout": 0.2, "optimization__ema_decay": 0.5} | settings
    return run_config(inputs, out, **settings)


class Killed(BaseException):
    """What a test ends a run with: nothing in the product handles it."""


class Witness(SilentWatcher):
    """Notes what it is told; ends the run in some step, by an error or a signal."""

    def __init__(self, stop_at: int = 0, signal_number: int = 0) -> None:
        self.told: list[str] = []
        self.steps: list[int] = []
        self._stop_at = stop_at
        self._signal = signal_number

    def tell(self, text: str) -> None:
        """Note it."""
        self.told.append(text)

    def step(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        """Note it, and end the run if it is time."""
        self.steps.append(done)
        if done == self._stop_at and self._signal:
            os.kill(os.getpid(), self._signal)
        elif done == self._stop_at:
            raise Killed


if __name__ == "__main__":
    torch.set_num_threads(1)
    finetune(read_finetune_config(sys.argv[1]))
