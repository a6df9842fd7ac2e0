"""What the arm does when a process dies or hangs: the last rows of docs/failure_modes.md.

Camera, node, streamer and robot are processes of their own, and so is who watches.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

from failure_rows import ROWS, Recovery, Stop
from process_cell import Cell

from openvla_ros.control.states import State

pytestmark = pytest.mark.ros

SEEN = 25  # half a second of twists, or of poses
LONGER_THAN_IT_HANGS_S = 300
SLOW_STEP = {"limits__linear_speed": 0.01}  # a step of 10 mm lasts a second


def wait_for(cell: Cell, samples: str, what: str) -> None:
    """Return when as many samples in a row say that nothing moves, and the next ones too."""
    heard = getattr(cell.observer, samples)
    cell.observer.wait(lambda: len(heard) > SEEN and not any(s.moves for s in heard[-SEEN:]), what)
    begin = len(heard)
    cell.observer.wait(lambda: len(heard) >= begin + SEEN, f"{SEEN} more {samples}")
    assert not any(s.moves for s in heard[begin:]), what


def bring_the_node_back(cell: Cell) -> None:
    """Start, configure and activate it: it is in dry run, and only an operator lets it move."""
    cell.start("node")
    cell.bring_up()
    observer = cell.observer
    observer.wait(lambda: observer.state() == State.RUNNING, "the node in dry run")
    assert not observer.statuses[-1].motion_enabled
    wait_for(cell, "twists", "zeros in dry run")
    cell.bring_to_motion()


def test_node_killed(tmp_path: Path) -> None:
    row = ROWS["node killed"]
    assert (row.stop, row.recovery) == (Stop.SILENT, Recovery.RESTART)
    with Cell(tmp_path, split=False, **SLOW_STEP) as cell:
        cell.start_all()
        cell.send("node", signal.SIGKILL)
        wait_for(cell, "poses", "a robot that stops by its own time-out")
        assert cell.observer.twists[-1].moves, "a killed node says no last word"
        bring_the_node_back(cell)


def test_node_hangs_beside_action_to_twist(tmp_path: Path) -> None:
    """On a busy machine the node used to hang for just the 3 s after which DDS forgets it."""
    row = ROWS["node hangs beside action_to_twist"]
    with Cell(tmp_path, split=True, lease_s=LONGER_THAN_IT_HANGS_S, **SLOW_STEP) as cell:
        cell.start_all()
        cell.send("node", signal.SIGSTOP)
        wait_for(cell, "twists", "zeros of the streamer")
        wait_for(cell, "poses", "a robot that stands")
        assert "silent" in cell.observer.streamer_detail
        assert row.recovery is Recovery.NEXT_ANSWER
        cell.send("node", signal.SIGCONT)
        cell.observer.wait_moving()


def test_node_killed_beside_action_to_twist(tmp_path: Path) -> None:
    row = ROWS["node killed beside action_to_twist"]
    with Cell(tmp_path, split=True, **SLOW_STEP) as cell:
        cell.start_all()
        cell.send("node", signal.SIGKILL)
        wait_for(cell, "twists", "zeros of the streamer")
        assert "silent" in cell.observer.streamer_detail
        assert row.recovery is Recovery.RESTART
        bring_the_node_back(cell)
