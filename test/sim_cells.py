"""Cells for tests; a test without MuJoCo, meshes or OpenGL is skipped with the reason."""

from __future__ import annotations

from functools import cache

import pytest

from openvla_ros.errors import CheckpointError, DependencyError
from openvla_ros.model.embedded import EMBEDDED, embedded_checkpoint
from openvla_ros.sim.assets import panda_folder, viperx_folder
from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.expert import STEP_S, action_twist, expert_action
from openvla_ros.sim.rendering import open_context
from openvla_ros.types import Policy

#: Steps of 0.2 s in which the expert shall be done.
STEPS = {"reach": 40, "push": 60, "pick": 60, "place": 90}


def require_cell(arm: str = "viperx") -> None:
    """Skip when no cell with this arm can be built here."""
    pytest.importorskip("mujoco", reason="needs the extra `sim`: pip install '.[sim]'")
    try:
        {"viperx": viperx_folder, "panda": panda_folder}[arm]()
    except DependencyError as error:
        pytest.skip(str(error))


def require_pictures() -> None:
    """Skip when no cell can be rendered here."""
    require_cell()
    reason = _why_no_pictures()
    if reason:
        pytest.skip(reason)


@cache
def shared_cell(arm: str = "viperx") -> SimCell:
    """One cell per process and arm: a model takes longer to compile than most tests to run."""
    return SimCell(arm)


@cache
def embedded_policy() -> Policy:
    """The policy that comes with the package; skips where its weights are absent."""
    try:
        embedded_checkpoint()
    except CheckpointError as error:
        pytest.skip(str(error))
    pytest.importorskip("torch", reason="needs torch")
    from openvla_ros.policy import OpenVLAPolicy

    return OpenVLAPolicy.from_pretrained(EMBEDDED, device="cpu")


def run_expert(cell: SimCell) -> int | None:
    """Let the expert do the cell's task; returns how many steps it took, None when it failed."""
    for count in range(STEPS[cell.task.kind]):
        if cell.task.is_done(cell.state()):
            return count
        action = expert_action(cell.task, cell.state())
        cell.step(action_twist(action), action[6], STEP_S)
    return None


@cache
def _why_no_pictures() -> str:
    try:
        context, _ = open_context()
    except DependencyError as error:
        return str(error)
    context.free()
    return ""
