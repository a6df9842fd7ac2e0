"""The fault run: single faults against real processes, and a judge that finds violations."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

import fault_run
from fault_report import Fault, Outcome, bounds, report, write_document
from fault_run import KINDS, continued_s, leaked, plan, silence_s, suffer
from process_cell import ROLES, SPLIT_ROLES, Cell, Sample
from process_usage import Usage, processes_of, remove_segments

from openvla_ros.config import NodeConfig
from openvla_ros.ros.process import EXECUTOR_THREADS

pytestmark = pytest.mark.ros

RUN = Path(fault_run.__file__)
DEFAULTS = NodeConfig()
BUSY_S = 1.0  # tests share the machine


# Processes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def split_cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    folder = tmp_path_factory.mktemp("split")
    # 20 mm at 2 mm/s last 10 s: no action ends within the bound, whatever a busy machine takes.
    parameters = {**fault_run.PARAMETERS, "limits__linear_speed": 0.002}
    with Cell(folder, split=True, **parameters) as cell:
        cell.start_all()
        yield cell
    assert processes_of(folder) == []
    remove_segments(cell.own_segments)


@pytest.mark.parametrize(
    ("role", "kind"),
    [("node", "hang"), ("node", "kill"), ("streamer", "restart"), ("streamer", "kill")],
)
def test_the_arm_stops_within_the_bound(split_cell: Cell, role: str, kind: str) -> None:
    """The node hangs or dies: zeros go on. The streamer ends: its last twist is zero.

    Afterwards nothing moves before the operator says so; see fault_run.recover.
    """
    outcome = suffer(split_cell, Fault(role, kind), BUSY_S)
    assert not outcome.is_violation, outcome.text()
    if role == "node":
        begin = len(split_cell.observer.twists)
        split_cell.observer.wait(lambda: len(split_cell.observer.twists) > begin, "twists")


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "faults"), [("single", 9), ("split", 12)])
def test_every_fault_once(mode: str, faults: int) -> None:
    options = f"--rounds {faults} --seed 1 --mode {mode} --allowance {BUSY_S}"
    result = subprocess.run(
        [sys.executable, str(RUN), *options.split()],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{faults} faults" in result.stdout
    assert "0 beyond the bound, 0 leaks" in result.stdout


# The judge ----------------------------------------------------------------------------------------


def outcome(**changes: object) -> Outcome:
    values = {"wire_s": 0.5, "arm_s": 0.6, "wire_bound_s": 1.0, "arm_bound_s": 1.2, **changes}
    return Outcome(Fault("camera", "kill"), **values)


@pytest.mark.parametrize(
    ("changes", "is_violation"),
    [
        ({}, False),
        ({"wire_s": 1.01}, True),
        ({"arm_s": 1.21}, True),
        ({"wire_s": None, "wire_bound_s": None}, False),
        ({"problems": ["a node in dry run moved"]}, True),
    ],
)
def test_motion_beyond_a_bound_is_a_violation(changes: dict, is_violation: bool) -> None:
    assert outcome(**changes).is_violation is is_violation


def test_motion_is_measured_to_the_last_moving_sample() -> None:
    samples = [Sample(9.0, True), Sample(10.2, True), Sample(10.4, False), Sample(10.7, True)]
    assert continued_s(samples, 10.0) == pytest.approx(0.7)
    assert continued_s([Sample(9.9, True), Sample(10.4, False)], 10.0) == 0.0


def test_a_gap_in_the_twist_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_run.time, "time", lambda: 11.0)
    twists = [Sample(10.0 + 0.02 * i, False) for i in range(51) if not 20 < i < 30]
    assert silence_s(twists, 10.0) == pytest.approx(0.2)


def test_more_threads_or_descriptors_than_at_the_beginning_is_a_leak() -> None:
    before, after = Usage(10, 20, 0, 0.0), Usage(10, 21, 9999, 9.0)
    assert leaked({"node": before}, {"node": before}) == []
    (line,) = leaked({"node": before}, {"node": after})
    assert "21 descriptors" in line
    more = Usage(10 + EXECUTOR_THREADS, 20, 0, 0.0)
    assert len(leaked({"node": before}, {"node": more})) == 1
    assert len(leaked({"camera": before}, {"camera": Usage(11, 20, 0, 0.0)})) == 1


@pytest.mark.parametrize("roles", [ROLES, SPLIT_ROLES])
def test_a_plan_holds_every_fault_and_depends_on_the_seed_alone(roles: tuple[str, ...]) -> None:
    import random

    count = len(roles) * len(KINDS)
    faults = plan(roles, 2 * count, random.Random(7))
    assert faults == plan(roles, 2 * count, random.Random(7))
    assert faults != plan(roles, 2 * count, random.Random(8))
    assert set(faults[:count]) == {Fault(r, k) for r in roles for k in KINDS}


def test_bounds_follow_the_parameters() -> None:
    slow = NodeConfig.from_values({"image_timeout": 3.0, "node_timeout": 5.0})
    for fault, is_split, growth in (
        (Fault("camera", "kill"), False, 2.0),
        (Fault("node", "hang"), True, 4.0),
        (Fault("node", "hang"), False, 0.0),
    ):
        before, after = (bounds(fault, c, split=is_split)[0] for c in (DEFAULTS, slow))
        assert after - before == pytest.approx(growth)


def test_a_report_names_violations_and_replaces_its_section_only(tmp_path: Path) -> None:
    run = fault_run.Run("single", [outcome(), outcome(wire_s=2.0)], growth={"threads": 0})
    run.problems = [o.text() for o in run.outcomes if o.is_violation]
    text = report([run])
    assert "1 beyond the bound" in text and "VIOLATION" in text
    path = tmp_path / "faults.md"
    path.write_text("head\n<!-- faults:begin -->\nold\n<!-- faults:end -->\ntail\n")
    write_document(path, "faults", text, seed=4)
    written = path.read_text()
    assert "seed 4" in written and "old" not in written
    assert written.startswith("head\n") and written.endswith("tail\n")
