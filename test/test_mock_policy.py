"""The mock answers what it was told, fails as it was told, and needs no torch."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from openvla_ros.errors import InstructionError
from openvla_ros.mock_policy import MockPolicy
from openvla_ros.types import PRIMARY, Observation

ACTION = (0.01, -0.02, 0.0, 0.1, 0.0, -0.1, 1.0)


def seen(stamp_ns: int = 1, instruction: str = "pick") -> Observation:
    return Observation({PRIMARY: np.zeros((4, 6, 3), np.uint8)}, instruction, stamp_ns=stamp_ns)


def test_the_answer_is_the_given_action() -> None:
    prediction = MockPolicy(ACTION).predict(seen())
    np.testing.assert_array_equal(prediction.actions, [ACTION])
    assert prediction.is_valid
    assert len(prediction.token_ids) == 7
    assert len(set(prediction.token_ids)) > 1


def test_motion_needs_nothing_else() -> None:
    assert MockPolicy(ACTION).action_spec.unknown_for_motion() == ()


@pytest.mark.parametrize("error", [("exception", RuntimeError), ("oom", MemoryError)])
def test_faults_that_raise(error: tuple[str, type[Exception]]) -> None:
    with pytest.raises(error[1], match=error[0]):
        MockPolicy(ACTION, fault=error[0]).predict(seen())


def test_faults_in_the_answer() -> None:
    assert np.isnan(MockPolicy(ACTION, fault="nan").predict(seen()).action).any()
    assert MockPolicy(ACTION, fault="short").predict(seen()).actions.shape == (1, 6)
    invalid = MockPolicy(ACTION, fault="invalid").predict(seen())
    assert not invalid.is_valid
    assert np.isfinite(invalid.action).all()


@pytest.mark.parametrize("fault", ["nan", "short", "exception", "oom", "hang", "invalid"])
def test_a_frame_that_no_camera_took_is_always_answered(fault: str) -> None:
    """Configure must get through, so that the fault strikes a running node."""
    prediction = MockPolicy(ACTION, fault=fault).predict(seen(stamp_ns=0))
    np.testing.assert_array_equal(prediction.action, ACTION)


def test_a_hanging_prediction_ends_only_when_released() -> None:
    policy, done = MockPolicy(ACTION, fault="hang"), threading.Event()
    thread = threading.Thread(target=lambda: (policy.predict(seen()), done.set()), daemon=True)
    thread.start()
    assert not done.wait(0.05)
    policy.release()
    assert done.wait(10.0)


def test_an_empty_instruction_is_refused() -> None:
    with pytest.raises(InstructionError):
        MockPolicy(ACTION).predict(seen(instruction=""))


def test_the_mock_pulls_in_neither_torch_nor_ros() -> None:
    code = (
        "import sys, openvla_ros.mock_policy, openvla_ros.control.motion, openvla_ros.messages; "
        "print([m for m in ('torch', 'rclpy', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert out.stdout.strip() == "[]"
