"""The folder that a replay fills: the plan first, a record per episode, and the results last.

A process that is killed at any moment leaves a folder in which the same command goes on. While
`metrics.json` and `report.html` are there, the folder is whole: they are written last, and removed
before anything changes. One process at a time works in a folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.episode_record import EpisodeRecord, read_record, write_record
from openvla_ros.evaluation.replay.policy_description import PolicyDescription

PLAN = "replay.json"
RECORDS = "records"
POLICIES = "policies"
PROBES = "probes"
METRICS = "metrics.json"
STEPS = "steps.csv"
REPLAY_BAG = "replay_bag"
REPORT = "report.html"
GROUND_TRUTH = "ground_truth.json"
LIVE = "live.json"

_LOCK = ".lock"
_PARTIAL = ".partial"  # folder in which a bag is written before it gets its name
_RESULTS = (REPORT, METRICS, STEPS, REPLAY_BAG, LIVE, _PARTIAL)  # removed in this order
_OURS = {PLAN, RECORDS, POLICIES, PROBES, GROUND_TRUTH, _LOCK, *_RESULTS}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ReplayFolder:
    """An output folder that this process alone works in, until `close`.

    Args:
        path: Folder; created if need be.
        plan: What is evaluated, as JSON types. A folder with records of another plan is refused.
        restart: Whether the records of an earlier run are removed first.

    Raises:
        ConfigurationError: The folder holds something else, belongs to another plan, another
            process works in it, or it cannot be written.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any], *, restart: bool = False) -> None:
        self.path = path
        self._plan = json.loads(json.dumps(plan))
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path)
        try:
            self._open(restart)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process work in the folder. A second call does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> ReplayFolder:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def record_path(self, variant: str, name: str) -> Path:
        """Return where the record of an episode belongs."""
        return self.path / RECORDS / variant / f"{name}.npz"

    def read_record(self, variant: str, name: str) -> tuple[EpisodeRecord | None, str]:
        """Return a record that is there and whole, or None; and what is wrong with it, or ""."""
        path = self.record_path(variant, name)
        if not path.exists():
            return None, ""
        try:
            return read_record(path), ""
        except ConfigurationError as error:
            return None, f"{error} It is evaluated again now."

    def write_record(self, variant: str, name: str, record: EpisodeRecord) -> None:
        """Write the record of an episode, whole or not at all.

        Raises:
            ConfigurationError: The disk is full, or the folder is not writable.
        """
        path = self.record_path(variant, name)
        with writing(path):
            write_record(path, record)

    def remove_record(self, variant: str, name: str) -> None:
        """Remove the record of an episode, if there is one."""
        path = self.record_path(variant, name)
        with writing(path):
            path.unlink(missing_ok=True)

    def read_policy(self, variant: str) -> PolicyDescription | None:
        """Return the description of a variant's policy, if an earlier run left one."""
        stored = self._read_json(self.path / POLICIES / f"{variant}.json")
        try:
            return PolicyDescription.from_dict(stored) if stored else None
        except (KeyError, TypeError, ValueError, AttributeError):
            return None  # damaged: it is made again

    def write_policy(self, variant: str, policy: PolicyDescription) -> None:
        """Keep the description of a variant's policy.

        Raises:
            ConfigurationError: The disk is full, or the folder is not writable.
        """
        self.write_json(f"{POLICIES}/{variant}.json", policy.to_dict())

    def read_probes(self, variant: str) -> dict[str, Any] | None:
        """Return the probes of a variant as stored, if an earlier run left them."""
        return self._read_json(self.path / PROBES / f"{variant}.json") or None

    def write_probes(self, variant: str, probes: Mapping[str, Any]) -> None:
        """Keep the probes of a variant.

        Raises:
            ConfigurationError: The disk is full, or the folder is not writable.
        """
        self.write_json(f"{PROBES}/{variant}.json", probes)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file below the folder, whole or not at all; NaN and infinity become null.

        Raises:
            ConfigurationError: The disk is full, or the folder is not writable.
        """
        text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with writing_file(self.path / name) as partial:
            partial.write_text(text, encoding="utf-8")

    @contextmanager
    def writing_folder(self, name: str) -> Iterator[Path]:
        """Give the path of a folder to create; it gets its place, `name`, once it is whole.

        Raises:
            ConfigurationError: The disk is full, or the folder is not writable.
        """
        partial = self.path / _PARTIAL
        with writing(self.path / name):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                yield partial / name
                (partial / name).replace(self.path / name)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def _open(self, restart: bool) -> None:
        there = {entry.name for entry in self.path.iterdir()} - {_LOCK}
        foreign = sorted(name for name in there - _OURS if not name.startswith(f".{PLAN}."))
        if foreign and PLAN not in there:
            raise ConfigurationError(
                f"{self.path} holds other files ({', '.join(foreign[:3])}"
                f"{', ...' if len(foreign) > 3 else ''}), and no replay. Choose another --out."
            )
        same = self._read_json(self.path / PLAN) == self._plan
        if not same and not restart and any((self.path / RECORDS).rglob("*.npz")):
            raise ConfigurationError(
                f"{self.path} holds the records of another evaluation ({self._difference()}). "
                "--restart removes them; another --out keeps both."
            )
        with writing(self.path):
            for name in _RESULTS:
                _remove(self.path / name)
            if restart or not same:
                for name in (RECORDS, POLICIES, PROBES, PLAN):
                    _remove(self.path / name)
            for rubbish in self.path.rglob(".*.partial"):
                rubbish.unlink(missing_ok=True)
            for rubbish in (self.path / RECORDS).rglob(".*.npz.*"):
                rubbish.unlink(missing_ok=True)
        self.write_json(PLAN, self._plan)

    def _difference(self) -> str:
        """Return in a few words where the stored plan differs."""
        stored = self._read_json(self.path / PLAN)
        if not stored:
            return f"{PLAN} is absent or damaged"
        keys = [key for key in {**stored, **self._plan} if stored.get(key) != self._plan.get(key)]
        return f"its {', '.join(keys)} differ"

    @staticmethod
    def _read_json(path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


@contextmanager
def writing_file(path: Path) -> Iterator[Path]:
    """Give the path of a file to write; it gets its place, `path`, once it is whole and on disk.

    Raises:
        ConfigurationError: The disk is full, or the folder is not writable; `path` is as it was.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            partial.chmod(0o644)  # a temporary file is its owner's alone
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into an error that says what to do.

    Raises:
        ConfigurationError: `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        advice = "Make room" if error.errno in _NO_ROOM else "Make the folder writable"
        raise ConfigurationError(
            f"{path} cannot be written ({error.strerror or error}). {advice} and give the same "
            "command again: it goes on after the records that are there. Nothing is reported "
            "until all of them are."
        ) from error


def plain(value: Any) -> Any:
    """Return a value as JSON types: arrays become lists, numbers that JSON lacks become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _locked(path: Path) -> int | None:
    """Return what holds the folder's lock, until it is closed or the process ends."""
    handle = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigurationError(
            f"Another replay works in {path} right now. Wait for it, or choose another --out."
        ) from None
    except OSError:  # a file system without locks: go on unguarded
        os.close(handle)
        return None
    return handle


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
