"""Recorded openings and closings against what the gripper logic decides."""

from __future__ import annotations

import numpy as np

from openvla_ros.control.gripper import GripperLogic
from openvla_ros.evaluation.motion.gripper_replay import GripperOutcome, gripper_outcome


def outcome(openings: list[float], *, votes: int = 2, invert: bool = False) -> GripperOutcome:
    logic = GripperLogic(0.5, 0.1, votes)
    decisions = [logic.update(1.0 - value if invert else value) for value in openings]
    return gripper_outcome(np.array(openings), decisions, votes=votes)


def test_an_event_is_kept_one_vote_later() -> None:
    found = outcome([1, 1, 1, 0, 0, 0, 0, 1, 1, 1])
    assert (found.recorded, found.kept, found.lost, found.extra) == (2, 2, 0, 0)
    assert found.delays == (1, 1) and found.delayed == 2


def test_one_vote_follows_at_once() -> None:
    assert outcome([1, 1, 0, 0], votes=1).delays == (0,)


def test_a_blink_shorter_than_the_votes_is_lost() -> None:
    found = outcome([1, 1, 1, 0, 1, 1, 1])
    assert (found.recorded, found.lost, found.extra) == (2, 2, 0)
    assert found.delays == (None, None)


def test_an_inverted_gripper_loses_every_event_and_makes_its_own() -> None:
    found = outcome([1, 1, 1, 0, 0, 0, 0, 1, 1, 1], invert=True)
    assert (found.kept, found.lost, found.extra) == (0, 2, 3)


def test_an_event_before_the_first_decision_counts() -> None:
    """The gripper stands as the recording begins, and its first decision is to close."""
    assert outcome([1, 0, 0, 0]).delays == (1,)


def test_the_last_steps_cannot_be_judged() -> None:
    assert outcome([1, 1, 1, 0]).recorded == 0
    assert outcome([1, 1, 1, 0], votes=1).recorded == 1


def test_steps_without_recording_are_passed_over() -> None:
    found = outcome([1, 1, float("nan"), 0, 0, 0])
    assert found.delays == (1,)


def test_nothing_recorded_is_nothing_lost() -> None:
    assert outcome([float("nan")] * 4) == GripperOutcome(0, (), 0)
