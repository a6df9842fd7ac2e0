"""What a run writes while it trains: lines of JSON, TensorBoard events, Weights & Biases.

`metrics.jsonl` holds what the mathematics says and no times, so that a run that was interrupted
leaves the same file as one that was not; `timings.jsonl` holds the times.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from openvla_ros.errors import DependencyError, StorageError
from openvla_ros.training.config import FinetuneConfig
from openvla_ros.training.config_file import plain_config

METRICS_FILE = "metrics.jsonl"
TIMINGS_FILE = "timings.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class RunLog:
    """Writes the figures of a run to all places its configuration names. A context manager.

    Args:
        folder: Of the run.
        config: Says where else to write.
        step: Steps that are done: what an earlier process wrote about later ones is removed.

    Raises:
        StorageError: The disk is full or cannot be written.
    """

    def __init__(self, folder: Path, config: FinetuneConfig, step: int) -> None:
        for name in (METRICS_FILE, TIMINGS_FILE):
            cut_back(folder / name, step)
        self._folder = folder
        with _storing(folder / TENSORBOARD_FOLDER):
            self._tensorboard = _open_tensorboard(folder, step) if config.run.tensorboard else None
        self._wandb = _open_wandb(folder, config) if config.run.wandb_project else None

    def __enter__(self) -> RunLog:
        self._excepthook = threading.excepthook
        threading.excepthook = self._on_thread_error
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._close(has_failed=kind is not None)
        finally:
            threading.excepthook = self._excepthook

    def _close(self, *, has_failed: bool) -> None:
        if self._wandb:
            self._wandb.finish()
        if self._tensorboard:
            # What has gone wrong before says more than that this cannot be written either.
            with suppress(StorageError) if has_failed else nullcontext(), self._storing_events():
                self._tensorboard.close()

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """Print no traceback of the thread that writes events: its error is raised here, too."""
        by_tensorboard = type(error.thread).__module__.startswith("tensorboard.")
        if not (by_tensorboard and isinstance(error.exc_value, OSError)):
            self._excepthook(error)

    def _storing_events(self) -> AbstractContextManager[None]:
        return _storing(self._folder / TENSORBOARD_FOLDER)

    def write(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl, and its numbers elsewhere.

        Args:
            kind: "train" or "evaluation".
            step: Steps that are done.
            figures: JSON values, nested mappings among them.

        Raises:
            StorageError: The disk is full or cannot be written.
        """
        append_line(self._folder / METRICS_FILE, {"step": step, "kind": kind, **figures})
        self._forward(kind, step, figures)

    def write_timing(self, step: int, figures: Mapping[str, float]) -> None:
        """Add one line to timings.jsonl, and its numbers elsewhere."""
        append_line(self._folder / TIMINGS_FILE, {"step": step, **figures})
        self._forward("timing", step, figures)

    def _forward(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        numbers = flat_numbers(figures, kind + "/")
        if self._tensorboard:
            with self._storing_events():  # of those before, which a thread writes
                for name, number in numbers.items():
                    self._tensorboard.add_scalar(name, number, step)
        if self._wandb:
            self._wandb.log(numbers, step=step)


def require_log_libraries(config: FinetuneConfig) -> None:
    """Return when every place that a configuration names can be written to.

    Raises:
        DependencyError: One needs a library that is not installed.
    """
    if config.run.tensorboard and not _is_installed("tensorboard"):
        raise DependencyError(
            "run.tensorboard needs tensorboard, which is not installed: pip install '.[train]' in "
            "the folder of openvla_ros, or set run.tensorboard to false."
        )
    if config.run.wandb_project and not _is_installed("wandb"):
        raise DependencyError(
            "run.wandb_project needs wandb, which is not installed: pip install wandb, or set "
            'run.wandb_project to "".'
        )


def flat_numbers(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return every number in nested mappings and lists under a name with slashes."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found |= flat_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (list, tuple)):
            found |= flat_numbers(
                {str(i): item for i, item in enumerate(value)}, f"{prefix}{name}/"
            )
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[prefix + name] = float(value)
    return found


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add one JSON object to a file of lines; NaN and infinities become null.

    Raises:
        StorageError: The disk is full or cannot be written.
    """
    text = json.dumps(_without_nan(line), allow_nan=False)
    with _storing(path), path.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of lines, without a last line that was cut off."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def cut_back(path: Path, step: int) -> None:
    """Remove the lines about steps after `step`, and a last line that was cut off.

    Raises:
        StorageError: The disk is full or cannot be written; the file is as it was.
    """
    if not path.exists():
        return
    kept = [json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= step]
    partial = path.with_name(path.name + ".partial")
    with _storing(path):
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(path)


@contextmanager
def _storing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{place} cannot be written: {error}. Checkpoints of the run are untouched; make room "
            "and start the same command again."
        ) from error


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _open_tensorboard(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=step + 1 if step else None)


def _open_wandb(folder: Path, config: FinetuneConfig) -> Any:
    import wandb

    place = folder.resolve()
    own_id = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]  # the same when it is resumed
    return wandb.init(
        project=config.run.wandb_project,
        name=place.name,
        id=os.environ.get("WANDB_RUN_ID", own_id),
        resume="allow",
        dir=str(folder),
        config=plain_config(config),
    )
