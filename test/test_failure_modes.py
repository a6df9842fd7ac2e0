"""What the arm does when something fails: one test per row of docs/failure_modes.md, over real DDS.

Every test first sees the arm move, then breaks one thing, then compares with the row: how the twist
ends, state and reason, the level in /diagnostics, and what it takes until the arm moves again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

from diagnostic_msgs.msg import DiagnosticArray
from failure_rows import ROWS, Recovery, Row, Stop
from failure_scenarios import BOX, SCENARIOS, Gate, Scenario
from geometry_msgs.msg import TwistStamped
from node_cell import MOVING, NAME, Cell, is_zero

from openvla_ros.control.states import Reason, State
from openvla_ros.errors import GpuMemoryError
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.ros import diagnostics, health

pytestmark = pytest.mark.ros

SPEED_M_S = 0.002
STREAM_HZ = 50.0  # late ticks make the samples of a ramp fewer, never more
SLOW = {
    "stream_rate": STREAM_HZ,
    "mock_action": [0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
    "limits.linear_speed": SPEED_M_S,  # so that a step lasts 25 s: every test is mid-motion
    "decay_time": 0.5,  # long enough to be seen between two ticks
}
NEEDS_SOMEBODY = {
    Recovery.START: "start",
    Recovery.CONTROLLER: "start",
    Recovery.RESET: "reset",
    Recovery.PUBLISHER: "reset",
    Recovery.CONFIGURE: "",
}


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine does to a test that many others run beside must not look like a failure."""
    monkeypatch.setattr(health, "SLOW_STREAM", 0.0)
    monkeypatch.setattr(diagnostics, "PERIOD_S", 0.1)


class Told:
    """What /diagnostics says from now on."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._messages: list[DiagnosticArray] = []
        cell.hear(DiagnosticArray, "/diagnostics", self._messages, 10)

    def wait(self, row: Row) -> None:
        """Return when the part of the row has its level."""
        if row.level is None:
            return
        begin = len(self._messages)

        def is_told() -> bool:
            return any(
                status.name == f"openvla_node: {row.part}" and status.level == bytes([row.level])
                for message in self._messages[begin:]
                for status in message.status
            )

        self._cell.wait(is_told, f"{row.part}: {row.level.name} in /diagnostics")


def speed(message: TwistStamped) -> float:
    v = message.twist.linear
    return float(np.linalg.norm([v.x, v.y, v.z]))


def end_of_motion(twists: list[TwistStamped]) -> Stop:
    """How the twist went from full speed to zero."""
    speeds = [speed(t) for t in twists]
    full = [i for i, s in enumerate(speeds) if s > 0.99 * SPEED_M_S]
    assert full, f"never at full speed: {speeds}"
    between = [s for s in speeds[full[-1] + 1 :] if s > 0.0]
    assert between == sorted(between, reverse=True), "it only becomes slower"
    assert len(between) <= SLOW["decay_time"] * STREAM_HZ + 1, "zero within decay_time"
    return Stop.RAMP if between else Stop.CUT


def begin_motion(cell: Cell) -> None:
    """Send images until the twist has its full speed."""
    begin = len(cell.twists)

    def is_at_full_speed() -> bool:
        cell.image()
        cell.wait_twists(3)
        return any(speed(t) > 0.99 * SPEED_M_S for t in cell.twists[begin:])

    cell.wait(is_at_full_speed, "full speed")


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    scenario: Scenario = request.param
    gate = {"load": Gate} if scenario.gated else {}
    with Cell(**gate, **MOVING, **SLOW, **scenario.parameters) as made:
        made.scenario = scenario
        assert made.change("configure")
        made.policy = made.node._session.policy
        yield made


@pytest.mark.parametrize("cell", SCENARIOS, ids=lambda s: s.name, indirect=True)
def test_mid_motion(cell: Cell) -> None:
    scenario: Scenario = cell.scenario
    row, told, steps = ROWS[scenario.row], Told(cell), scenario.steps(cell)
    next(steps)
    assert cell.change("activate")
    cell.instruct("pick up the cup")
    begin_motion(cell)

    next(steps)  # break it
    cell.wait_zero()
    assert end_of_motion(cell.twists) is row.stop
    cell.wait_status(row.state, row.reason)
    told.wait(row)
    if row.recovery is Recovery.RESTART:
        assert cell.node.fatal, "the process ends: see test_node_process.py"
        return

    next(steps)  # mend it
    if row.recovery in NEEDS_SOMEBODY:
        cell.image()
        assert all(is_zero(t) for t in cell.wait_twists(5)), "nobody has said that it may move"
        call_for_help(cell, row)
    if row.recovery is Recovery.FRESH_IMAGES:
        for _ in range(2 - scenario.fresh):
            cell.image()
        assert all(is_zero(t) for t in cell.wait_twists(5)), "one image more is needed"
    begin_motion(cell)
    cell.wait_status(State.RUNNING, Reason.OK)
    steps.close()


def call_for_help(cell: Cell, row: Row) -> None:
    """Do what the row asks somebody for."""
    service = NEEDS_SOMEBODY[row.recovery]
    if service:
        cell.wait(lambda: cell.trigger(service).success, f"~/{service}")
        return
    for transition in ("deactivate", "cleanup", "configure", "activate"):
        assert cell.change(transition), transition


# Failures that let no motion begin, or do not end it ---------------------------------------------


def test_no_image() -> None:
    row = ROWS["no image"]
    with Cell(**MOVING, **SLOW) as cell:
        told = Told(cell)
        cell.start()
        cell.wait_status(row.state, row.reason)
        cell.steady.jump(health.FIRST_IMAGE_S)
        told.wait(row)
        assert row.stop is Stop.NEVER
        assert all(is_zero(t) for t in cell.wait_twists(5))
        begin_motion(cell)


def test_rate_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS["rate unknown"]
    with Cell(**MOVING, **SLOW, unnorm_key="") as cell:
        cell.start()
        told = Told(cell)
        stage = cell.node._session._shared.stage
        monkeypatch.setattr(type(stage), "obstacle", lambda _: "action_hz is not published.")
        assert not cell.answer().executed
        assert "action_hz" in cell.wait_status(row.state, row.reason).detail
        told.wait(row)
        assert row.stop is Stop.NEVER
        assert all(is_zero(t) for t in cell.twists)


def test_workspace_edge() -> None:
    row = ROWS["workspace edge"]
    outwards_and_along = [0.01, 0.01, 0.0, 0.0, 0.0, 0.0, 1.0]
    with Cell(**{**MOVING, **SLOW, **BOX, "mock_action": outwards_and_along}) as cell:
        told = Told(cell)
        cell.start()
        with cell.arm_at(x=0.995):
            cell.wait(lambda: cell.node.ee_pose.read() is not None, "a pose")
            cell.image()
            cell.wait_status(row.state, row.reason)
            told.wait(row)
            assert row.stop is Stop.GOES_ON
            moving = cell.wait_twists(5)
            assert all(t.twist.linear.x <= 0.0 < t.twist.linear.y for t in moving)


def test_teleoperation() -> None:
    row = ROWS["teleoperation"]

    def twist() -> TwistStamped:
        message = TwistStamped()
        message.header.frame_id = "base_link"
        message.header.stamp = cell.node.get_clock().now().to_msg()
        message.twist.linear.z = SPEED_M_S / 2.0
        return message

    with Cell(**MOVING, **SLOW) as cell:
        told = Told(cell)
        cell.start()
        begin_motion(cell)
        with cell.repeated(TwistStamped, f"{NAME}/teleop_twist", twist):
            cell.wait(lambda: cell.twists[-1].twist.linear.z > 0.0, "the person's twist")
            cell.wait_status(row.state, row.reason)
            told.wait(row)
            assert not cell.answer().executed
            assert row.stop is Stop.GOES_ON
        cell.wait_zero()
        cell.image()
        assert all(is_zero(t) for t in cell.wait_twists(5)), "the policy waits for ~/start"
        assert row.recovery is Recovery.START
        assert cell.trigger("start").success
        begin_motion(cell)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("cannot load", OSError("model-00001-of-00003.safetensors is damaged")),
        ("out of memory at load", MemoryError("the GPU is full")),
        ("out of memory at load", GpuMemoryError("16.00 GiB must be free on cuda:0")),
    ],
)
def test_loading_fails(key: str, error: Exception) -> None:
    row, errors = ROWS[key], [error]

    def load(model: object) -> MockPolicy:
        if errors:
            raise errors.pop()
        return MockPolicy((0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0))

    with Cell(load=load, **MOVING, **SLOW) as cell:
        told = Told(cell)
        assert not cell.change("configure")
        assert row.recovery is Recovery.RETRY
        assert str(error) in cell.wait_status(row.state, row.reason).detail
        told.wait(row)
        assert row.stop is Stop.NEVER
        assert cell.state() == "unconfigured" and not cell.twists
        cell.start()
        begin_motion(cell)


def test_deactivate() -> None:
    row = ROWS["deactivate"]
    with Cell(**MOVING, **SLOW) as cell:
        told = Told(cell)
        cell.start()
        begin_motion(cell)
        assert cell.change("deactivate")
        cell.wait(lambda: is_zero(cell.twists[-1]), "the last zero")
        assert end_of_motion(cell.twists) is row.stop
        cell.wait_status(row.state, row.reason)
        told.wait(row)
        count = len(cell.twists)
        assert cell.change("activate")
        assert is_zero(cell.twists[count - 1])
        begin_motion(cell)
