"""Replay that is killed or runs out of room, as the system does it: nothing is lost or made up.

Children are forked: they hold what they need, and a kill at a chosen file operation is exact.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from replay_cases import made_up_episodes, pixel_variant, require_equal_records, without_report

from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.replay.run import ReplayOptions, replay

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ReplayOptions(bag=False)
KILL_POINTS = 12
RESULTS = ("metrics.json", "report.html")


def evaluate(out: Path) -> None:
    """Five episodes, two variants, probes."""
    variants = [pixel_variant(), pixel_variant("other")]
    replay(made_up_episodes(5, steps=3), variants, out, OPTIONS)


def without_times(out: Path) -> dict[str, Any]:
    """The metrics but for what a clock says."""
    metrics = json.loads((out / "metrics.json").read_text())
    del metrics["created"]
    metrics["comparisons"] = [r for r in metrics["comparisons"] if r["metric"] != "latency"]
    for variant in metrics["variants"].values():
        del variant["metrics"]["latency_ms"]
    return metrics


def in_a_child(work: Callable[[], None]) -> int:
    """Return how a forked process ended: 0, 1 after an exception, or minus the signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(number: int, counted: list[int]) -> None:
    """Let this process die by SIGKILL at its `number`-th operation on files; count them."""

    def struck(real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **more: Any) -> Any:
            counted.append(1)
            if len(counted) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)

        return operation

    for owner, name in (
        (os, "fsync"),
        (Path, "replace"),
        (Path, "unlink"),
        (Path, "mkdir"),
        (Path, "write_text"),
        (shutil, "rmtree"),
    ):
        setattr(owner, name, struck(getattr(owner, name)))


@pytest.mark.slow
def test_a_run_killed_at_any_file_operation_is_gone_on_from(tmp_path: Path, monkeypatch) -> None:
    without_report(monkeypatch)
    whole, counts = tmp_path / "whole", tmp_path / "count"

    def counting() -> None:
        counted: list[int] = []
        kill_at(-1, counted)
        evaluate(whole)
        counts.write_text(str(len(counted)))

    assert in_a_child(counting) == 0
    operations = int(counts.read_text().strip() or 0)
    assert operations > 40
    points = sorted(random.Random(0).sample(range(1, operations), KILL_POINTS))
    for point in points:
        out = tmp_path / f"killed_at_{point}"

        def killed(out: Path = out, point: int = point) -> None:
            kill_at(point, [])
            evaluate(out)

        assert in_a_child(killed) == -signal.SIGKILL, point
        if all((out / name).exists() for name in RESULTS):
            assert without_times(out) == without_times(whole), point
        # Killed once more, while it goes on.
        in_a_child(killed)
        assert in_a_child(lambda out=out: evaluate(out)) == 0, point
        assert require_equal_records(whole, out, ("base", "other")) == 10
        assert without_times(out) == without_times(whole), point
        assert not [p for p in out.rglob(".*") if p.name != ".lock"], point


@pytest.mark.slow
def test_a_run_killed_at_any_moment_is_gone_on_from(tmp_path: Path, monkeypatch) -> None:
    """A whole process this time, at random moments after its first record."""
    without_report(monkeypatch)
    evaluate(tmp_path / "whole")
    out, generator = tmp_path / "out", random.Random(1)
    code = (
        "import sys; sys.path.insert(0, 'test')\n"
        "from pathlib import Path\n"
        "import test_replay_interrupted as t\n"
        "from openvla_ros.evaluation import report\n"
        "report.write_report = lambda out: (out / 'report.html').write_text('a report')\n"
        f"t.evaluate(Path({str(out)!r}))\n"
    )
    endings = []
    for wanted in generator.sample(range(1, 10), 5):
        shutil.rmtree(out, ignore_errors=True)
        child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        while child.poll() is None and len(list(out.rglob("*.npz"))) < wanted:
            os.sched_yield()
        child.kill()
        endings.append(child.wait())
        evaluate(out)
        assert require_equal_records(tmp_path / "whole", out, ("base", "other")) == 10
        assert without_times(out) == without_times(tmp_path / "whole")
    assert endings.count(-signal.SIGKILL) >= 3, endings


@pytest.mark.slow
@pytest.mark.parametrize("limit", [300, 1500, 5000, 9000])
def test_a_file_that_may_not_grow_ends_the_run_with_what_to_do(
    tmp_path: Path, monkeypatch, limit: int
) -> None:
    """The system's own limit, in place of a full disk: a write really is cut short."""
    without_report(monkeypatch)
    out, said = tmp_path / "out", tmp_path / "said"
    said.write_text(" " * 5000)  # has its room before there is none

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            evaluate(out)
        except ConfigurationError as error:
            os.truncate(said, 0)
            said.write_text(str(error)[:250])
            raise

    assert in_a_child(limited) == 1
    assert "cannot be written (File too large). Make room" in said.read_text()
    assert not any((out / name).exists() for name in RESULTS)
    evaluate(out)
    evaluate(tmp_path / "whole")
    assert require_equal_records(tmp_path / "whole", out, ("base", "other")) == 10


@pytest.mark.slow
def test_a_full_file_system_ends_the_run_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'test')\n"
        "from pathlib import Path\n"
        "import test_replay_interrupted as t\n"
        "from openvla_ros.evaluation import report\n"
        "report.write_report = lambda out: (out / 'report.html').write_text('a report')\n"
        "from openvla_ros.errors import ConfigurationError\n"
        "out = Path(sys.argv[1])\n"
        "try:\n"
        "    t.evaluate(out)\n"
        "except ConfigurationError as error:\n"
        "    print(error)\n"
        "print(sorted(p.name for p in out.iterdir()))\n"
    )
    small, python = tmp_path / "small", sys.executable
    small.mkdir()
    script = (
        f"mount -t tmpfs -o size=64k tmpfs {small} || exit 77\n"
        f'{python} -c "$1" {small}/out\n'
        f"mount -o remount,size=8m {small}\n"
        f'{python} -c "$1" {small}/out\n'
    )
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare: a small file system cannot be mounted")
    ran = subprocess.run(
        [unshare, "-rm", "bash", "-c", script, "bash", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if ran.returncode == 77 or "Operation not permitted" in ran.stderr:
        pytest.skip("a small file system cannot be mounted here")
    error, first, second = ran.stdout.splitlines()
    assert "No space left on device). Make room" in error, ran.stdout + ran.stderr
    assert "metrics.json" not in first and "report.html" not in first
    assert "metrics.json" in second and "report.html" in second
