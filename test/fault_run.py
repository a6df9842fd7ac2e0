"""Kills, hangs and restarts every process of a moving cell, and measures how long the arm goes on.

    python test/fault_run.py --rounds 100 --seed 0                    # or: make faults
    python test/fault_run.py --rounds 100 --seed 0 --document docs/benchmarks/faults.md

Exit code 0: no motion beyond its bound, nothing leaked. Mode `single`: openvla_node publishes the
twist; `split`: action_to_twist does.
"""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import conftest  # noqa: F401  gives this process a ROS domain of its own
from fault_report import SCHEDULING_S, Fault, Outcome, bounds, report, write_document
from process_cell import LEASE_S, Cell, Sample
from process_usage import Usage, offset_s, processes_of, remove_segments, usage_of

from openvla_ros.control.states import State
from openvla_ros.messages import stamp_ns
from openvla_ros.ros.process import EXECUTOR_THREADS
from openvla_ros.sim.kinematic_arm import COMMAND_TIMEOUT_S

# Every action lasts 2 s, and the next one comes after 0.2 s: the arm would move for ever, and what
# stops it is never that an action is over.
PARAMETERS = {
    "mock_latency_s": 0.15,
    "mock_action": [0.02, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
    "limits__linear_speed": 0.01,
}
SPEED_M_S = 0.01
WATCH_S = 0.3  # so long after the bound we go on looking
DRY_RUN_S = 0.3  # a node that was started again must not move, although it answers
CLOCK_DRIFT_S = 0.002  # more, and somebody has set the clock during the run
KINDS = ("kill", "hang", "restart")
# The executor starts its threads one by one, when several callbacks are due at once.
SPARE = {(role, "threads"): EXECUTOR_THREADS - 1 for role in ("node", "streamer")}


@dataclass
class Run:
    """What one mode has given."""

    mode: str
    outcomes: list[Outcome] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    duration_s: float = 0.0
    segments_left: int = 0
    growth: dict[str, int] = field(default_factory=dict)  # within the life of one process


def plan(roles: tuple[str, ...], rounds: int, generator: random.Random) -> list[Fault]:
    """Return faults in random order, each kind of each role equally often as far as possible."""
    every = [Fault(role, kind) for role in roles for kind in KINDS]
    faults: list[Fault] = []
    while len(faults) < rounds:
        faults += generator.sample(every, len(every))
    return faults[:rounds]


def run_mode(
    mode: str, rounds: int, seed: int, folder: Path, allowance_s: float = SCHEDULING_S
) -> Run:
    """Run the faults of one mode."""
    run, begin = Run(mode), time.monotonic()
    clock = offset_s()
    with Cell(folder, split=mode == "split", **PARAMETERS) as cell:
        cell.start_all()
        fresh = holdings(cell)
        lives: dict[int, list[Usage]] = defaultdict(list)
        for number, fault in enumerate(plan(cell.roles, rounds, random.Random(seed)), 1):
            for role, usage in holdings(cell).items():
                lives[cell.pids.get(role, 0)].append(usage)
            outcome = suffer(cell, fault, allowance_s)
            run.outcomes.append(outcome)
            print(f"{mode} {number:3d}/{rounds} {outcome.text()}", flush=True)
        run.growth = growth(lives)
        time.sleep(LEASE_S + 1.0)  # until discovery has forgotten the dead
        cell.bring_to_motion()
        run.leaks += leaked(fresh, holdings(cell))
    if abs(offset_s() - clock) > CLOCK_DRIFT_S:
        run.problems.append("the system clock was set during the run: measure again")
    run.leaks += [f"process {pid} still lives" for pid in processes_of(folder)]
    run.segments_left = remove_segments(cell.own_segments)
    run.problems += [o.text() for o in run.outcomes if o.is_violation]
    run.duration_s = time.monotonic() - begin
    return run


def holdings(cell: Cell) -> dict[str, Usage]:
    """Return what every process of a moving cell holds, and the observer itself."""
    return {
        **{role: usage_of(pid) for role, pid in cell.pids.items()},
        "observer": usage_of("self"),
    }


def leaked(before: dict[str, Usage], after: dict[str, Usage]) -> list[str]:
    """Return every process that holds more threads or descriptors than one that has just begun."""
    return [
        f"{role} has {getattr(after[role], what)} {what}, {getattr(usage, what)} at the beginning"
        for role, usage in before.items()
        for what in ("threads", "descriptors")
        if getattr(after[role], what) > getattr(usage, what) + SPARE.get((role, what), 0)
    ]


def growth(lives: dict[int, list[Usage]]) -> dict[str, int]:
    """Return by how much a process has grown at most between the first and last fault it saw."""
    return {
        what: max(getattr(seen[-1], what) - getattr(seen[0], what) for seen in lives.values())
        for what in ("threads", "descriptors", "memory_kib")
    }


def suffer(cell: Cell, fault: Fault, allowance_s: float = SCHEDULING_S) -> Outcome:
    """Let one fault happen to a moving cell, watch, and bring the cell back to motion."""
    observer, role = cell.observer, fault.role
    cell.bring_to_motion()  # the fault before may have a late effect, when discovery forgets it
    wire_bound, arm_bound = bounds(fault, cell.config, split=cell.is_split, allowance_s=allowance_s)
    before = (len(observer.twists), len(observer.poses))
    at_s = {"kill": kill, "hang": hang, "restart": terminate}[fault.kind](cell, role)
    known = [b for b in (wire_bound, arm_bound) if b is not None]
    time.sleep(max([*known, 0.5]) + WATCH_S)
    if fault.kind == "hang":
        # Longer than image_timeout: a node that wakes up must not trust what it knew.
        time.sleep(max(0.0, at_s + cell.config.inputs.image_timeout + WATCH_S - time.time()))
    outcome = Outcome(
        fault,
        wire_s=continued_s(observer.twists[before[0] :], at_s) if wire_bound else None,
        arm_s=continued_s(observer.poses[before[1] :], at_s) if arm_bound else None,
        wire_bound_s=wire_bound,
        arm_bound_s=arm_bound,
        longest_silence_s=None if role == cell.streaming_role else silence_s(observer.twists, at_s),
    )
    if fault.kind == "restart" and role == cell.streaming_role and observer.twists[-1].moves:
        outcome.problems.append("the last twist was not zero")
    recover(cell, fault, outcome, at_s)
    return outcome


def kill(cell: Cell, role: str) -> float:
    """End a process without a word."""
    return cell.send(role, signal.SIGKILL)


def hang(cell: Cell, role: str) -> float:
    """Freeze a process."""
    return cell.send(role, signal.SIGSTOP)


def terminate(cell: Cell, role: str) -> float:
    """Ask a process to end, as ros2 launch does."""
    at_s = time.time()
    cell.send(role, signal.SIGTERM)
    code = cell.ended(role)
    if code != 0:
        raise AssertionError(f"{role} ended with code {code} after SIGTERM")
    return at_s


def recover(cell: Cell, fault: Fault, outcome: Outcome, at_s: float) -> None:
    """Bring the process back, and see that nobody but the operator lets the arm move again."""
    observer, role = cell.observer, fault.role
    begin, parked = time.time(), observer.poses[-1]
    if fault.kind == "hang":
        cell.send(role, signal.SIGCONT)
    else:
        cell.start(role)
    if fault.kind == "hang" and role == "consumer":
        check_jump(cell, parked, at_s, begin, outcome)
    if fault.kind != "hang" and role == "node":
        cell.bring_up()
        observer.wait(lambda: observer.state() == State.RUNNING, "the node in dry run")
        time.sleep(DRY_RUN_S)
        refuse_motion(observer.twists, begin, "a node in dry run", outcome)
    if fault.kind != "hang" and role == "streamer":
        observer.wait(lambda: any(t.stamp_s > begin for t in observer.twists[-20:]), "zeros")
        time.sleep(DRY_RUN_S)
        refuse_motion(observer.twists, begin, "a streamer that began beside an armed node", outcome)
    cell.bring_to_motion()
    if fault.kind == "hang" and role == "node":
        check_first_motion(cell, begin, outcome)
    outcome.recovery_s = time.time() - begin


def refuse_motion(twists: list[Sample], begin: float, who: str, outcome: Outcome) -> None:
    """Note motion that nobody has allowed."""
    moving = [t for t in twists[-1000:] if t.moves and t.stamp_s > begin]
    if moving:
        outcome.problems.append(f"{who} moved {len(moving)} times")


def check_jump(cell: Cell, parked: Sample, at_s: float, begin: float, outcome: Outcome) -> None:
    """Note an arm that makes up for the time in which it was frozen."""
    observer = cell.observer
    first = observer.wait(
        lambda: next((p for p in observer.poses[-200:] if p.stamp_s > begin), None), "a pose"
    )
    outcome.jump_m = abs(first.position[0] - parked.position[0])
    # From its last word until it froze; 0.1 s on the command that was in force then; and what it
    # takes now.
    seconds = (at_s - parked.stamp_s) + COMMAND_TIMEOUT_S + (first.stamp_s - begin)
    if outcome.jump_m > SPEED_M_S * seconds + 1e-6:
        outcome.problems.append(f"the arm jumped by {1000 * outcome.jump_m:.2f} mm")


def check_first_motion(cell: Cell, begin: float, outcome: Outcome) -> None:
    """Note motion of a node that has woken up before it has a new answer."""
    observer = cell.observer
    moved = next(t.stamp_s for t in observer.twists if t.moves and t.stamp_s > begin)
    decided = [stamp_ns(a.inference_end) * 1e-9 for a in observer.actions[-50:] if a.executed]
    if not any(begin < d <= moved for d in decided):
        outcome.problems.append("the node went on with an action from before it was frozen")


def continued_s(samples: list[Sample], at_s: float) -> float:
    """Return for how long motion went on after a moment, 0 when it did not."""
    return max([0.0, *(s.stamp_s - at_s for s in samples if s.moves)])


def silence_s(twists: list[Sample], at_s: float) -> float:
    """Return the longest time without a twist since a moment."""
    stamps = [at_s, *(t.stamp_s for t in twists[-1000:] if t.stamp_s > at_s), time.time()]
    return max(b - a for a, b in itertools.pairwise(stamps))


@contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    """A folder for logs: the one that was asked for, or one that is removed."""
    if kept is not None:
        yield kept
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def main() -> int:
    """Run the faults, print the table; returns a process exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100, help="faults, in all modes together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mode", choices=("single", "split", "both"), default="both")
    parser.add_argument(
        "--allowance", type=float, default=SCHEDULING_S, help="seconds for a busy machine"
    )
    parser.add_argument("--logs", type=Path, help="keep the logs of the processes here")
    parser.add_argument("--document", type=Path, help="write the numbers into this file")
    options = parser.parse_args()
    modes = ["single", "split"] if options.mode == "both" else [options.mode]
    with work_folder(options.logs) as folder:
        runs = [
            run_mode(
                mode,
                options.rounds // len(modes),
                options.seed,
                folder.resolve() / mode,
                options.allowance,
            )
            for mode in modes
        ]
    text = report(runs)
    print(text)
    if options.document:
        write_document(options.document, "faults", text, options.seed)
    return 1 if any(run.problems or run.leaks for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
