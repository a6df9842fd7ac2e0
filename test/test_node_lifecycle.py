"""Lifecycle, parameters and status of openvla_node, over real DDS with the mock policy."""

from __future__ import annotations

import threading

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS; run `make setup`, then `source scripts/env.bash`")

import rclpy
from builtin_interfaces.msg import Time
from node_cell import MOVING, Cell, GatedPolicy, is_zero
from rclpy.context import Context
from rclpy.parameter import Parameter

from openvla_ros.config import PARAMETERS
from openvla_ros.control.states import Reason, State
from openvla_ros.errors import SelfTestError
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.ros.node import OpenVLANode

pytestmark = pytest.mark.ros

ACTION = [0.01, 0.0, -0.02, 0.0, 0.0, 0.1, 1.0]


def test_get_state_answers_while_the_model_loads() -> None:
    may_load, began = threading.Event(), threading.Event()

    def load(model) -> MockPolicy:
        began.set()
        assert may_load.wait(20.0)
        return MockPolicy(model.mock_action)

    with Cell(load=load) as cell:
        answers: list[bool] = []
        caller = threading.Thread(target=lambda: answers.append(cell.change("configure")))
        caller.start()
        assert began.wait(20.0)
        assert cell.state() == "configuring"
        cell.wait_status(State.LOADING, Reason.OK)
        assert not cell.change("configure"), "a second configure is refused, not fatal"
        refused = cell.node.set_parameters([Parameter("checkpoint", value="other")])[0]
        assert not refused.successful and "configure" in refused.reason
        may_load.set()
        caller.join(20.0)
        assert answers == [True]
        assert cell.state() == "inactive"


def test_another_checkpoint_is_loaded_without_a_restart() -> None:
    loaded: list[str] = []

    def load(model) -> MockPolicy:
        loaded.append(model.checkpoint)
        return MockPolicy(model.mock_action)

    with Cell(load=load, checkpoint="first") as cell:
        cell.start()
        cell.answer()
        refused = cell.node.set_parameters([Parameter("checkpoint", value="second")])[0]
        assert not refused.successful and "clean up" in refused.reason
        assert cell.change("deactivate") and cell.change("cleanup")
        assert cell.node._session is None, "the old model is still held"
        assert cell.node.set_parameters([Parameter("checkpoint", value="second")])[0].successful
        assert cell.change("configure") and cell.change("activate")
        cell.answer()
        assert loaded == ["first", "second"]


def test_a_policy_that_fails_its_self_test_is_refused_and_configure_can_be_repeated() -> None:
    """With newer transformers the network loads, runs, and never looks at the image."""
    blind = [True]

    class Policy(MockPolicy):
        def self_test(self) -> None:
            if blind[0]:
                raise SelfTestError("black and white frames give the same logits")

    with Cell(load=lambda model: Policy(model.mock_action)) as cell:
        assert not cell.change("configure")
        assert cell.state() == "unconfigured"
        status = cell.wait_status(State.UNCONFIGURED, Reason.MODEL_ERROR)
        assert "same logits" in status.detail
        assert not cell.change("activate")
        blind[0] = False
        assert cell.change("configure")


def test_running_out_of_memory_while_loading_is_told_and_retryable() -> None:
    def load(model) -> MockPolicy:
        raise MemoryError("needs 17 GiB, 11 GiB are free")

    with Cell(load=load) as cell:
        assert not cell.change("configure")
        assert "17 GiB" in cell.wait_status(State.UNCONFIGURED, Reason.GPU_OOM).detail
        assert cell.state() == "unconfigured"


def test_a_misspelt_parameter_fails_configure_by_name() -> None:
    with Cell(**{"limits.linear_sped": 0.05}) as cell:
        assert not cell.change("configure")
        status = cell.wait_status(State.UNCONFIGURED, Reason.BAD_PARAMETER)
        assert "limits.linear_sped" in status.detail and "limits.linear_speed" in status.detail


def test_every_parameter_that_the_node_does_not_have_is_named() -> None:
    with Cell(not_yet=False, neither="tool") as cell:
        assert not cell.change("configure")
        detail = cell.wait_status(State.UNCONFIGURED, Reason.BAD_PARAMETER).detail
        assert "'not_yet'" in detail and "'neither'" in detail


def test_bad_values_at_start_are_mended_one_by_one() -> None:
    with Cell(backend="mok", quantization="int3", instruction="pick up the cup") as cell:
        assert not cell.change("configure")
        assert "mok" in cell.wait_status(State.UNCONFIGURED, Reason.BAD_PARAMETER).detail
        assert not cell.node.set_parameters([Parameter("backend", value="mokk")])[0].successful
        assert cell.node.set_parameters([Parameter("backend", value="mock")])[0].successful
        assert not cell.change("configure")
        assert "int3" in cell.wait_status(State.UNCONFIGURED, Reason.BAD_PARAMETER).detail
        assert cell.node.set_parameters([Parameter("quantization", value="none")])[0].successful
        cell.start(instruction="")
        assert cell.answer().instruction == "pick up the cup"


def test_every_choice_can_be_given_on_the_command_line() -> None:
    """ROS reads `mock_fault:=nan` as a number, which once ended the process."""
    choices = [(p.name, choice) for p in PARAMETERS.values() for choice in p.choices if choice]
    for name, choice in choices:
        context = Context()
        rclpy.init(args=["--ros-args", "-p", f"{name}:={choice}"], context=context)
        node = OpenVLANode(context=context)
        try:
            assert PARAMETERS[name].check(node.get_parameter(name).value) == choice
        finally:
            node.destroy_node()
            rclpy.shutdown(context=context)


def test_an_array_of_whole_numbers_is_an_array_of_doubles() -> None:
    with Cell(mock_action=[0, 0, 0, 0, 0, 0, 1]) as cell:
        cell.start()
        assert list(cell.answer().raw) == [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]


def test_a_configured_node_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openvla_ros.ros.node.STATUS_PERIOD_S", 3600.0)
    with Cell() as cell:
        assert cell.change("configure")
        cell.wait_status(State.READY, Reason.OK)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limits.linear_speed", 5.0),
        ("limits.linear_speed", float("nan")),
        ("speed_scale", "fast"),
        ("twist_mode", "smooth"),
        ("instruction", "a\nb"),
        ("image_roi", [1, 2, 3]),
    ],
)
def test_a_parameter_out_of_range_is_refused_at_run_time(name: str, value: object) -> None:
    with Cell() as cell:
        cell.start("pick")
        before = cell.node.get_parameter(name).value
        result = cell.node.set_parameters([Parameter(name, value=value)])[0]
        assert not result.successful and result.reason
        assert cell.node.get_parameter(name).value == before


def test_limits_change_at_run_time_and_whole_numbers_are_accepted() -> None:
    with Cell(mock_action=ACTION, **MOVING) as cell:
        cell.start()
        assert cell.node.set_parameters([Parameter("speed_scale", value=0)])[0].successful
        answer = cell.answer()
        assert answer.delta_position.x == 0.0


@pytest.mark.parametrize("blank", ["", "  "])
def test_the_instruction_parameter_is_an_instruction(blank: str) -> None:
    with Cell(instruction="pick up the cup") as cell:
        cell.start(instruction="")
        assert cell.answer().instruction == "pick up the cup"
        cell.node.set_parameters([Parameter("instruction", value=blank)])
        cell.wait_status(State.IDLE, Reason.NO_INSTRUCTION)


def test_deactivate_ends_with_zeros_mid_motion() -> None:
    with Cell(
        mock_action=[0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], **{**MOVING, "limits.linear_speed": 0.02}
    ) as cell:
        cell.start()
        cell.answer()
        cell.wait_moving()
        assert cell.change("deactivate")
        count = len(cell.twists)
        assert is_zero(cell.twists[-1])
        assert cell.state() == "inactive"
        assert len(cell.twists) == count, "an inactive node is silent"


def test_an_answer_in_flight_at_deactivate_is_never_published() -> None:
    policies = []
    with Cell(
        load=lambda model: policies.append(GatedPolicy(model)) or policies[-1], **MOVING
    ) as cell:
        cell.start()
        (policy,) = policies
        cell.image()
        assert policy.began.acquire(timeout=10.0)
        cell.node._session.end()
        policy.may_answer.release()
        assert cell.node._session.wait_until_idle()
        assert cell.change("deactivate") and cell.change("activate")
        policy.may_answer.release()
        answer = cell.answer()
        assert answer.sequence == 1
        assert len(cell.actions) == 1


def test_many_lifecycle_cycles_leak_neither_threads_nor_subscriptions() -> None:
    with Cell() as cell:
        cell.start()
        cell.answer()
        cell.change("deactivate")
        cell.change("cleanup")
        timers = len(list(cell.node.timers))
        for cycle in range(20):
            assert cell.change("configure") and cell.change("activate"), cycle
            cell.answer()
            assert cell.change("deactivate") and cell.change("cleanup"), cycle
        assert not [t for t in threading.enumerate() if t.name == "inference"]
        assert len(list(cell.node.timers)) == timers
        assert len(cell.peer.get_subscriptions_info_by_topic("/image")) == 1


def test_configure_warns_when_the_machine_is_too_slow() -> None:
    with Cell(mock_latency_s=0.7, warmup_iterations=1, max_action_age=0.6) as cell:
        assert cell.change("configure")
        status = cell.wait_status(State.READY, Reason.OK)
        assert "max_action_age" in status.detail


def test_status_tells_ages_rates_and_latencies() -> None:
    with Cell() as cell:
        cell.start()
        idle = cell.wait_status(State.IDLE, Reason.NO_IMAGE)
        assert np.isnan(idle.image_age) and np.isnan(idle.max_latency)
        for _ in range(3):
            cell.answer()
        status = cell.wait(
            lambda: cell.statuses[-1] if cell.statuses[-1].actions == 3 else None, "a status"
        )
        assert status.image_age > 0.0
        assert 0.0 < status.mean_latency <= status.max_latency
        assert status.inference_rate > 0.0 and status.image_rate > 0.0
        assert status.command_rate > 0.0
        assert status.header.stamp != Time()
        assert status.backend == "mock" and status.unnorm_key == "mock"


def test_the_twist_streams_after_every_activation() -> None:
    """A stream timer destroyed while it fires must not silence the next activation."""
    with Cell(stream_rate=200.0) as cell:
        assert cell.change("configure")
        for _ in range(15):
            assert cell.change("activate")
            assert len(cell.wait_twists(3)) == 3
            assert cell.change("deactivate")
