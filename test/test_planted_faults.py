"""Planted in real recordings, each fault is named, and sound recordings raise none.

The table of docs/benchmarks/planted_faults.md comes from a longer run of the same code.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from bridge_episodes import WHY_NOT, has_recordings, octo_episodes
from fault_planting import (
    FAULTS,
    Cell,
    Fault,
    recorded_episodes,
    statistics_of_three_datasets,
)
from overfitted_policy import build_overfitted_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_recordings(), reason=WHY_NOT),
]

#: The least that is judged: five episodes, 40 steps.
LEARNT, UNSEEN = slice(10, 15), slice(17, 22)
STEPS = 480
FRAMES = 45  # of the probes


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The policy is tiny: more threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    folder = tmp_path_factory.mktemp("overfitted") / "checkpoint"
    build_overfitted_checkpoint(
        folder, octo_episodes()[LEARNT], steps=STEPS, statistics=statistics_of_three_datasets()
    )
    return Cell(folder)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_named_and_no_other(cell: Cell, fault: Fault) -> None:
    found = cell.run(recorded_episodes()[LEARNT], fault, most_frames=FRAMES)
    assert found.named == [fault.item], found.replay


def test_sound_recordings_raise_no_problem_learnt_or_not(cell: Cell) -> None:
    episodes = recorded_episodes()
    for sound in (episodes[LEARNT], episodes[UNSEEN]):
        found = cell.run(sound, most_frames=FRAMES)
        assert not found.named, found.replay
        assert not found.named_by_audit, found.audit
