"""Starts the other processes of a demo, notices when one dies, and always ends them all."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from openvla_ros.errors import OpenVLAError

SIGINT_GRACE_S = 6.0  # the node sends zero twists and frees the model in this time
LOG_TAIL_LINES = 12
PR_SET_PDEATHSIG = 1


class ProcessDiedError(OpenVLAError):
    """A process that has to run for the demo ended by itself; the text holds its last lines."""


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    log_path: Path
    log: IO[bytes]


class ChildProcesses:
    """Python modules as processes of their own, each with a log file, ended together.

    Used as a context manager: leaving the block sends SIGINT to each process group, then SIGKILL to
    what is left. If this process is killed outright, the kernel ends the children (Linux).
    """

    def __init__(self, environment: Mapping[str, str], log_folder: Path) -> None:
        """Start nothing yet; `log_folder` gets one NAME.log per process."""
        self._environment = dict(environment)
        self._log_folder = log_folder
        self._children: list[_Child] = []

    def start(self, name: str, module: str, arguments: Sequence[str] = ()) -> None:
        """Run `python -m module arguments...` in its own process group."""
        self._log_folder.mkdir(parents=True, exist_ok=True)
        log_path = self._log_folder / f"{name}.log"
        log = log_path.open("wb")
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,  # Ctrl-C reaches only us; we pass it on in the right order
            preexec_fn=_die_with_parent,
        )
        self._children.append(_Child(name, process, log_path, log))

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """The processes in the order in which they were started."""
        return [child.process for child in self._children]

    def check(self) -> None:
        """Return when every process is alive.

        Raises:
            ProcessDiedError: One has ended; the text names it and quotes its log.
        """
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                raise ProcessDiedError(
                    f"The {child.name} process ended with code {code}.\n"
                    f"{self.log_tail(child.name)}\nFull log: {child.log_path}"
                )

    def log_tail(self, name: str) -> str:
        """Return the last lines that a process printed."""
        path = self._log_folder / f"{name}.log"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return (
            "\n".join(f"  {line}" for line in lines[-LOG_TAIL_LINES:]) or "  (it printed nothing)"
        )

    def stop(self) -> None:
        """End all processes, last started first; returns when none is left."""
        for child in reversed(self._children):
            _signal_group(child.process, signal.SIGINT)
        deadline = time.monotonic() + SIGINT_GRACE_S
        for child in reversed(self._children):
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(child.process, signal.SIGKILL)
                child.process.wait()
            child.log.close()
        self._children.clear()

    def __enter__(self) -> ChildProcesses:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):  # it may end between the two lines
            os.killpg(process.pid, number)


def _die_with_parent() -> None:
    # Runs in the child between fork and exec. SIGINT may be ignored in us (a shell's background
    # job), and an ignored signal stays ignored across exec: the child could never be asked to stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
