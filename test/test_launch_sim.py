"""sim.launch.py: the twist goes into the cell, and what is passed on exists."""

from __future__ import annotations

import pytest
from launch_files import load, nodes, parameter, remappings, started


def test_the_launch_of_the_cell_moves_only_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    sim_file, main_file = load("sim.launch.py"), load("openvla.launch.py")
    from launch.actions import IncludeLaunchDescription

    for split, twist in (("", "/openvla_node"), ("true", "/action_to_twist")):
        actions = started(sim_file, monkeypatch, split_streamer=split, seed="7")
        cell = nodes(actions)["sim_cell"]
        assert remappings(cell)["twist_cmd"] == f"{twist}/twist_cmd"
        assert remappings(cell)["gripper_cmd"] == "/openvla_node/gripper_cmd"
        assert parameter(cell, "seed") == 7
        (include,) = (a for a in actions if isinstance(a, IncludeLaunchDescription))
        passed = dict(include.launch_arguments)
        assert (passed["robot"], passed["gripper"]) == ("sim", "none")
        assert passed["base_frame"] == sim_file.BASE_FRAME
        assert "twist" not in passed, "the twist must not reach a real controller"
        assert set(passed) <= {*main_file.FORWARDED, *main_file.OTHERS}


@pytest.mark.parametrize(("checkpoint", "backend"), [("", "mock"), ("folder", "openvla")])
def test_a_checkpoint_is_what_answers(
    checkpoint: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim_file = load("sim.launch.py")
    from launch.actions import IncludeLaunchDescription

    actions = started(sim_file, monkeypatch, checkpoint=checkpoint)
    (include,) = (a for a in actions if isinstance(a, IncludeLaunchDescription))
    assert dict(include.launch_arguments)["backend"] == backend


def test_the_cell_has_the_parameters_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rclpy")
    from openvla_ros.ros.sim_cell import PARAMETERS

    cell = nodes(started(load("sim.launch.py"), monkeypatch))["sim_cell"]
    names = {key[0].text for key in cell._Node__parameters[-1]}
    assert names <= set(PARAMETERS), names - set(PARAMETERS)
