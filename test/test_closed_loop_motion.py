"""The node's rules on a clock that is a number: when an answer counts, and when the arm stops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from openvla_ros.action_specs import load_action_spec
from openvla_ros.config import NodeConfig
from openvla_ros.control.pose import Pose
from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.motion.motion_replay import as_prediction
from openvla_ros.sim.closed_loop.drivers import EXPERT_KEY
from openvla_ros.sim.closed_loop.node_motion import EVALUATION_PARAMETERS, NodeMotion
from openvla_ros.types import Prediction

SPEC = load_action_spec(EXPERT_KEY)
FORWARD = np.array([0.02, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
SPEED = 0.1  # m/s: 0.02 m in the 0.2 s of a step
CLOSE = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])


class Run:
    """Ticks an episode; keeps the twists and when pictures were taken."""

    def __init__(self, latency_s: float, answer: Callable[[], Prediction], **parameters: object):
        values = {**EVALUATION_PARAMETERS, "limits.linear_accel": 20.0, **parameters}
        self.motion = NodeMotion(SPEC, NodeConfig.from_values(values), latency_s)
        self.motion.instruct("go")
        self.pictures_s: list[float] = []
        self.speeds: list[float] = []
        self._answer = answer

    def until(self, end_s: float) -> Run:
        for tick in range(round(end_s / self.motion.tick_s)):
            now_s = tick * self.motion.tick_s
            twist = self.motion.tick(now_s, Pose(), lambda at=now_s: self._ask(at))
            self.speeds.append(float(twist[0]))
        return self

    def between(self, begin_s: float, end_s: float) -> list[float]:
        first, last = (round(s / self.motion.tick_s) for s in (begin_s, end_s))
        return self.speeds[first:last]

    def _ask(self, now_s: float) -> Prediction:
        self.pictures_s.append(round(now_s, 3))
        return self._answer()


def forward() -> Prediction:
    return as_prediction(FORWARD, EXPERT_KEY)


def test_without_latency_an_answer_counts_at_once() -> None:
    run = Run(0.0, forward).until(1.0)
    assert run.pictures_s == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert sum(run.between(0.0, 0.2)) * 0.02 == pytest.approx(0.02, abs=0.002), run.speeds[:10]


def test_an_answer_counts_after_the_latency() -> None:
    run = Run(0.1, forward).until(0.6)
    assert not any(run.between(0.0, 0.1)), "moved before the first answer was out"
    assert run.between(0.16, 0.4) == pytest.approx([SPEED] * 12, rel=0.02)
    assert run.pictures_s == [0.0, 0.2, 0.4], "a latency below the period changes no picture"


def test_with_a_latency_above_the_period_pictures_wait_for_the_answer() -> None:
    run = Run(0.3, forward).until(1.0)
    assert run.pictures_s == [0.0, 0.3, 0.6, 0.9]
    assert run.motion.answers == 3


def test_in_mode_exact_the_arm_stands_between_late_answers() -> None:
    run = Run(0.4, forward, twist_mode="exact").until(1.2)
    assert run.between(0.46, 0.58) == pytest.approx([SPEED] * 6, rel=0.02)
    assert not any(run.between(0.66, 0.8)), "the step of 0.2 s is over"
    assert any(run.between(0.8, 1.0)), "and the next answer moves again"


def test_in_mode_stretch_a_step_lasts_until_the_next_answer() -> None:
    run = Run(0.4, forward).until(1.6)
    assert run.between(0.9, 1.18) == pytest.approx([SPEED / 2] * 14, rel=0.02)


def test_a_stale_answer_moves_nothing_and_is_counted() -> None:
    run = Run(0.7, forward).until(3.0)
    assert not any(run.speeds)
    assert run.motion.answers == 4 and run.motion.refused == {"stale": 4}


def test_an_arm_that_moves_stops_when_answers_become_stale() -> None:
    run = Run(0.2, forward).until(0.7)
    assert run.speeds[-1] > 0.0
    run.motion._latency_s = 0.7
    moved = len(run.speeds)
    for tick in range(moved, moved + 100):
        twist = run.motion.tick(tick * run.motion.tick_s, Pose(), forward)
        run.speeds.append(float(twist[0]))
    assert run.motion.refused.get("stale", 0) >= 1
    assert not any(run.speeds[-20:]), "a zero twist ends it"


def test_an_answer_older_than_allowed_by_the_parameters_may_be_let_in() -> None:
    run = Run(0.7, forward, max_action_age=2.0).until(2.0)
    assert any(run.speeds) and not run.motion.refused


def test_an_id_that_is_no_action_moves_nothing() -> None:
    run = Run(0.0, lambda: as_prediction(FORWARD, EXPERT_KEY, is_valid=False)).until(1.0)
    assert not any(run.speeds)
    assert run.motion.refused == {"invalid_token": 5}


def test_the_gripper_closes_after_its_votes() -> None:
    run = Run(0.0, lambda: as_prediction(CLOSE, EXPERT_KEY))
    assert run.until(0.18).motion.opening == 1.0, "one vote is not enough"
    again = Run(0.0, lambda: as_prediction(CLOSE, EXPERT_KEY)).until(0.4)
    assert again.motion.opening == 0.0


def test_what_cannot_move_is_refused() -> None:
    config = NodeConfig.from_values(EVALUATION_PARAMETERS)
    with pytest.raises(ConfigurationError, match=r"action_spec\.kind"):
        NodeMotion(load_action_spec("nobody_knows_it"), config)
    with pytest.raises(ConfigurationError, match="latency"):
        NodeMotion(SPEC, config, -0.1)
