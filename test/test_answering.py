"""From image to answer without ROS: preparing ahead changes when, and never what or whether."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

from openvla_ros.config import NodeConfig
from openvla_ros.control.states import Drop, Reason
from openvla_ros.messages import image_to_rgb
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.ros.frames import Answer, Clocks
from openvla_ros.ros.session import Session
from openvla_ros.types import PRIMARY, Observation, Prediction

PATIENCE_S = 10.0  # only ever waited for by a test that fails
ACTION = (0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
POLICY_RATE_HZ = 30.0
LONG_S = 0.1  # several intervals of the policy, and still a fresh image


class Thoughtful(MockPolicy):
    """A mock that shows what it prepares and predicts, and predicts only when it may."""

    def __init__(self) -> None:
        super().__init__(ACTION)
        self.prepared: list[tuple[int, str]] = []
        self.predicted: list[tuple[int, str]] = []
        self.may_answer = threading.Semaphore(0)

    def prepare(self, observation: Observation) -> Observation:
        seen = name_of(observation)
        self.prepared.append(seen)
        return replace(observation, prepared=seen)

    def predict(self, observation: Observation) -> Prediction:
        assert observation.prepared == name_of(observation), "prepared from something else"
        self.predicted.append(name_of(observation))
        assert self.may_answer.acquire(timeout=PATIENCE_S)
        return super().predict(observation)


class Rig:
    """A session whose clocks stand still unless the test moves them."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.answers: list[Answer] = []
        self.policy = Thoughtful()
        self.session = Session(
            self.policy,
            NodeConfig.from_values({"backend": "mock", "policy_rate": POLICY_RATE_HZ}),
            decode=image_to_rgb,
            clocks=Clocks(lambda: round(self.now_s * 1e9), lambda: self.now_s),
            on_answer=self.answers.append,
            log=logging.getLogger("rig"),
        )
        self.session.begin()
        self.session.set_instruction("pick")

    def image(self, number: int, **changes: object) -> None:
        """Let an image arrive, taken now."""
        seconds, rest = divmod(round(self.now_s * 1e9), 10**9)
        stamp = SimpleNamespace(sec=seconds, nanosec=rest)
        fields = {
            "encoding": "rgb8",
            "height": 1,
            "width": 1,
            "step": 3,
            "data": bytes([number] * 3),
        }
        self.session.image(
            SimpleNamespace(header=SimpleNamespace(stamp=stamp), **{**fields, **changes})
        )

    def wait(self, is_true: Callable[[], bool]) -> None:
        """Return when something holds."""
        deadline = threading.Event()
        for _ in range(round(PATIENCE_S / 0.002)):
            if is_true():
                return
            deadline.wait(0.002)
        raise AssertionError(f"waited in vain; prepared {self.policy.prepared}")

    def answer(self, number: int) -> None:
        """Answer an image while nothing else is under way: it takes no time."""
        self.policy.may_answer.release()
        self.image(number)
        self.wait(lambda: bool(self.answers) and self.session.ledger.in_flight == 0)
        self.now_s += LONG_S

    def begin(self, number: int) -> None:
        """Let the policy begin an image that it will not answer before it may."""
        self.image(number)
        self.wait(lambda: (number, "pick") in self.policy.predicted)
        self.now_s += LONG_S


def name_of(observation: Observation) -> tuple[int, str]:
    return int(observation.images[PRIMARY][0, 0, 0]), observation.instruction


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.answer(1)
    rig.begin(2)
    yield rig
    rig.policy.may_answer.release(100)
    assert rig.session.close()


def test_the_next_image_is_prepared_while_the_policy_is_busy(rig: Rig) -> None:
    rig.image(3)
    rig.wait(lambda: (3, "pick") in rig.policy.prepared)
    assert rig.policy.predicted[-1] == (2, "pick"), "the policy has not begun it"
    rig.policy.may_answer.release(2)
    rig.wait(lambda: len(rig.answers) == 3)
    assert rig.policy.prepared == [(1, "pick"), (2, "pick"), (3, "pick")], "each of them once"
    assert rig.policy.predicted == rig.policy.prepared
    assert [answer.sequence for answer in rig.answers] == [1, 2, 3]


def test_a_prepared_image_that_a_newer_one_replaces_is_counted_as_dropped(rig: Rig) -> None:
    for number in (3, 4):
        rig.image(number)
        rig.wait(lambda number=number: (number, "pick") in rig.policy.prepared)
        rig.now_s += 0.01
    rig.policy.may_answer.release(2)
    rig.wait(lambda: len(rig.answers) == 3)
    ledger = rig.session.ledger
    assert (ledger.received, ledger.dropped, ledger.in_flight) == (4, 1, 0)
    assert rig.policy.predicted[-1] == (4, "pick")


def test_a_bad_image_that_was_looked_at_early_stops_the_arm_in_its_turn(rig: Rig) -> None:
    """Not before: the good answer that comes in between would set the arm free again."""
    rig.image(3, encoding="32FC1")
    rig.wait(lambda: not rig.session._answering._worker._is_looking)
    assert rig.session.verdict().reason is not Reason.BAD_IMAGE
    rig.policy.may_answer.release()
    rig.wait(lambda: rig.session.verdict().reason is Reason.BAD_IMAGE)
    assert "32FC1" in rig.session.verdict().detail
    assert (rig.session.ledger.dropped, rig.session.ledger.in_flight) == (1, 0)
    assert len(rig.answers) == 2


def test_a_prepared_image_is_never_answered_under_another_instruction(rig: Rig) -> None:
    rig.image(3)
    rig.wait(lambda: (3, "pick") in rig.policy.prepared)
    rig.session.set_instruction("place")
    assert rig.session.ledger.in_flight == 1, "only the one that the policy is busy with"
    rig.policy.may_answer.release()
    rig.wait(lambda: rig.session.ledger.in_flight == 0)
    assert rig.answers[-1].drop is Drop.INSTRUCTION_CHANGED
    rig.policy.may_answer.release()
    assert rig.session.predict_once(PATIENCE_S)[0]
    assert rig.policy.predicted == [(1, "pick"), (2, "pick"), (3, "place")]


def test_an_image_prepared_too_early_is_dropped_when_it_is_old(rig: Rig) -> None:
    rig.image(3)
    rig.wait(lambda: (3, "pick") in rig.policy.prepared)
    rig.now_s += rig.session.config.inputs.image_max_age + 0.01
    rig.policy.may_answer.release()
    rig.wait(lambda: rig.session.ledger.in_flight == 0)
    assert rig.session.verdict().reason is Reason.STALE_IMAGE
    assert (len(rig.answers), rig.session.ledger.dropped) == (2, 1)


def test_a_prepared_image_does_not_outlive_its_activation(rig: Rig) -> None:
    rig.image(3)
    rig.wait(lambda: (3, "pick") in rig.policy.prepared)
    rig.session.end()
    rig.session.begin()
    rig.policy.may_answer.release(100)
    assert rig.session.wait_until_idle()
    assert rig.policy.predicted == [(1, "pick"), (2, "pick")]
    assert len(rig.answers) == 1, "the one in flight belongs to the past too"
