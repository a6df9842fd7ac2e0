"""Twenty lives of a node leave nothing behind: no thread, descriptor, topic, timer or service."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

from node_cell import MOVING, Cell

pytestmark = pytest.mark.ros

CYCLES = 20
SLOW_STEP = {"limits.linear_speed": 0.005}  # a step of 10 mm lasts 2 s: deactivated mid-motion


def live(cell: Cell) -> None:
    """One life, with motion in it."""
    assert cell.change("configure") and cell.change("activate")
    cell.instruct("pick up the cup")

    def is_moving() -> bool:
        cell.image()
        cell.wait_twists(2)
        return cell.twists[-1].twist.linear.x > 0.0

    cell.wait(is_moving, "a moving twist")
    assert cell.change("deactivate") and cell.change("cleanup")


def holdings(cell: Cell) -> Counter[str]:
    """What this process and the node hold, by kind and name."""
    node, found = cell.node, Counter[str]()
    found["descriptors"] = len(list(Path("/proc/self/fd").iterdir()))
    threads = [thread.name for thread in threading.enumerate()]
    # The executor's pool starts its few threads when it needs them.
    found.update(f"thread {name}" for name in threads if not name.startswith("ThreadPoolExecutor"))
    found.update(f"publisher {p.topic_name}" for p in node.publishers)
    found.update(f"subscription {s.topic_name}" for s in node.subscriptions)
    found.update(f"service {s.srv_name}" for s in node.services)
    found.update(f"client {c.srv_name}" for c in node.clients)
    for kind in ("timers", "guards", "waitables"):
        found[kind] = len(list(getattr(node, kind)))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
@pytest.mark.slow
def test_twenty_lives_leave_nothing_behind() -> None:
    with Cell(**MOVING, **SLOW_STEP) as cell:
        live(cell)
        live(cell)  # what is made at first use is there now
        before = holdings(cell)
        for _ in range(CYCLES - 2):
            live(cell)
        grown = holdings(cell) - before
        assert not grown, dict(grown)
        assert len(cell.peer.get_subscriptions_info_by_topic("/image")) == 1
