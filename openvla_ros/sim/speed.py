"""How fast this machine simulates and draws: `python -m openvla_ros.sim.speed`.

Milliseconds are given twice: of the wall clock, and of this process's processor time, which does
not grow when others use the machine too. OpenGL in software uses several threads where it can; set
LP_NUM_THREADS=0 to count one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from openvla_ros.errors import OpenVLAError
from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.expert import STEP_S, action_twist, expert_action
from openvla_ros.sim.states import sample_state


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns a process exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", default="viperx", help="arm of the cell")
    parser.add_argument("--repeat", type=int, default=100, help="how often each thing is done")
    given = parser.parse_args(arguments)
    try:
        cell = SimCell(given.arm)
        cell.reset(0)
        cell.render(96, 96)
    except OpenVLAError as error:
        print(f"speed: {error}", file=sys.stderr)
        return 1
    print(f"{given.arm}, pictures by {cell.renderer}; milliseconds: wall clock, processor")
    seeds = iter(range(10**9))

    def simulate() -> None:
        if cell.task.is_done(cell.state()):
            cell.reset(next(seeds))
        action = expert_action(cell.task, cell.state())
        cell.step(action_twist(action), action[6], STEP_S)

    wall, _ = _report("step of 0.2 s with its physics", simulate, given.repeat)
    print(f"{'real-time factor without pictures':36}{STEP_S * 1e3 / wall:8.0f}")
    for side in (96, 224):
        _report(f"picture {side} x {side}", partial(cell.render, side, side), given.repeat)
    _report("reset", lambda: cell.reset(next(seeds)), given.repeat)

    def moment() -> np.ndarray:
        sample_state(cell, next(seeds))
        return cell.render(96, 96)

    _, processor = _report("independent moment with its picture", moment, given.repeat)
    print(f"{'moments per second and core, 96 x 96':36}{1e3 / processor:8.0f}")
    cell.close()
    return 0


def _report(name: str, act: Callable[[], object], repeat: int) -> tuple[float, float]:
    act()
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(repeat):
        act()
    wall = (time.perf_counter() - wall) * 1e3 / repeat
    processor = (time.process_time() - processor) * 1e3 / repeat
    print(f"{name:36}{wall:8.2f}{processor:8.2f}")
    return wall, processor


if __name__ == "__main__":
    sys.exit(main())
