"""The node under a lifecycle manager as nav2 has one, with its bond switched off.

The manager here does what nav2's does: for each transition it calls change_state, waits at most
`service_timeout`, and then compares get_state with the state that should follow. docs/operations.md
has the parameters.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from node_cell import MOVING, Cell, is_zero
from rcl_interfaces.srv import ListParameters
from rclpy.parameter import Parameter

from openvla_ros.control.states import Reason, State
from openvla_ros.mock_policy import MockPolicy

pytestmark = pytest.mark.ros

FOLLOWS = {
    "configure": "inactive",
    "activate": "active",
    "deactivate": "inactive",
    "cleanup": "unconfigured",
    "unconfigured_shutdown": "finalized",
}
# What its service ~/manage_nodes offers.
COMMANDS = {
    "startup": ("configure", "activate"),
    "pause": ("deactivate",),
    "resume": ("activate",),
    "reset": ("deactivate", "cleanup"),
    "shutdown": ("deactivate", "cleanup", "unconfigured_shutdown"),
}
SLOW_STEP = {"limits.linear_speed": 0.005}  # a step of 10 mm lasts 2 s: the arm moves mid-test


class Manager:
    """Takes one node through the transitions of a command; stops at the first that fails."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def manage(self, command: str) -> bool:
        """Return True when every transition led where it should."""
        return all(
            self._cell.change(transition) and self._cell.state() == FOLLOWS[transition]
            for transition in COMMANDS[command]
        )


@pytest.fixture
def cell() -> Iterator[Cell]:
    with Cell(**MOVING, **SLOW_STEP) as made:
        yield made


def move(cell: Cell) -> None:
    cell.instruct("pick up the cup")
    cell.answer()
    cell.wait_moving()


def test_every_command_of_the_manager_works_mid_motion(cell: Cell) -> None:
    manager = Manager(cell)
    assert manager.manage("startup")
    move(cell)
    for stop, go in (("pause", "resume"), ("reset", "startup")):
        assert manager.manage(stop)
        cell.wait(lambda: is_zero(cell.twists[-1]), "a zero twist as the last")
        assert manager.manage(go)
        cell.answer()
        cell.wait_moving()
    assert manager.manage("shutdown")
    cell.wait(lambda: is_zero(cell.twists[-1]), "a zero twist as the last")


def test_a_failed_start_up_can_be_repeated_once_its_cause_is_gone() -> None:
    with Cell(**MOVING, **SLOW_STEP, instruction="a\nb") as cell:
        manager = Manager(cell)
        assert not manager.manage("startup")
        assert cell.state() == "unconfigured"
        assert "instruction" in cell.wait_status(State.UNCONFIGURED, Reason.BAD_PARAMETER).detail
        mended = Parameter("instruction", value="pick up the cup")
        assert cell.node.set_parameters([mended])[0].successful
        assert manager.manage("startup")
        cell.answer()
        cell.wait_moving()


def test_a_manager_that_gives_up_waiting_leaves_a_node_that_does_not_move() -> None:
    """Its service_timeout is shorter than the load: it aborts, and the load goes on without it."""
    may_load = threading.Event()

    def load(model: object) -> MockPolicy:
        assert may_load.wait(60.0)
        return MockPolicy((0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0))

    with Cell(load=load, **MOVING, **SLOW_STEP) as cell:
        request = ChangeState.Request()
        request.transition.id = Transition.TRANSITION_CONFIGURE
        client = cell._ready_client(ChangeState, "change_state")
        given_up = client.call_async(request)
        cell.wait_status(State.LOADING, Reason.OK)
        assert cell.state() == "configuring", "get_state answers meanwhile"
        assert not given_up.done()
        client.remove_pending_request(given_up)
        may_load.set()
        cell.wait_status(State.READY, Reason.OK)
        assert not cell.twists
        manager = Manager(cell)
        assert not manager.manage("startup"), "it is configured already"
        assert manager.manage("resume")
        move(cell)


def test_state_and_parameters_are_answered_while_a_load_keeps_the_interpreter_busy() -> None:
    """Unpacking weights holds Python's lock most of the time; nobody else may starve."""
    may_load = threading.Event()

    def load(model: object) -> MockPolicy:
        while not may_load.is_set():
            sum(range(10_000))
        return MockPolicy((0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0))

    with Cell(load=load) as cell:
        request = ChangeState.Request()
        request.transition.id = Transition.TRANSITION_CONFIGURE
        loaded = cell._ready_client(ChangeState, "change_state").call_async(request)
        cell.wait_status(State.LOADING, Reason.OK)
        for _ in range(10):
            assert cell.state() == "configuring"
            names = ListParameters.Request()
            assert cell.call(ListParameters, "list_parameters", names).result.names
        assert not loaded.done(), "all of that was during the load"
        may_load.set()
        cell.wait(loaded.done, "the load")
        assert loaded.result().success
