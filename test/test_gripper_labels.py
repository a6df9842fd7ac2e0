"""What the gripper of a recorded step is, against the reference's own numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openvla_ros.data.gripper_labels import absolute_gripper, binarize_gripper

GOLDENS = np.load(Path(__file__).parent / "reference/goldens/rlds_transforms.npz")


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize(
    ("name", "convert"), [("binarize", binarize_gripper), ("rel2abs", absolute_gripper)]
)
def test_labels_equal_the_reference_to_the_bit(name: str, convert, case: int) -> None:
    given, expected = GOLDENS[f"{name}_in{case}"], GOLDENS[f"{name}_out{case}"]
    found = convert(given)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected), f"{given} became {found}, not {expected}"


def scanned_binary(gripper: np.ndarray) -> list[float]:
    """The definition, one step at a time from the end."""
    carry, found = float(gripper[-1]), []
    for value in gripper[::-1]:
        carry = 1.0 if value > 0.95 else 0.0 if value < 0.05 else carry
        found.append(carry)
    return found[::-1]


def scanned_absolute(closing: np.ndarray) -> list[float]:
    """The definition, one step at a time from the beginning."""
    events = [1.0 if c < 0 else 0.0 for c in closing if abs(c) > 0.1]
    carry, found = 1.0 - events[0] if events else 1.0, []
    for value in closing:
        carry = 1.0 if value < -0.1 else 0.0 if value > 0.1 else carry
        found.append(carry)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_random_commands_follow_the_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    opening = np.where(rng.random(30) < 0.4, rng.integers(0, 2, 30), rng.random(30))
    assert binarize_gripper(opening).tolist() == scanned_binary(opening)
    closing = np.where(
        rng.random(30) < 0.2, rng.choice([-1.0, 1.0], 30), rng.uniform(-0.1, 0.1, 30)
    )
    assert absolute_gripper(closing).tolist() == scanned_absolute(closing)


def test_thresholds_are_those_of_float32() -> None:
    edge = np.array([0.1, -0.1], np.float32)
    for values in (edge, edge.astype(np.float64)):
        assert absolute_gripper(values).tolist() == [1.0, 1.0]  # both hold
    assert binarize_gripper(np.array([0.95, 0.05, 1.0], np.float32)).tolist() == [1.0, 1.0, 1.0]


def test_no_steps_stay_no_steps_and_the_input_is_left_alone() -> None:
    empty = np.zeros(0, np.float32)
    assert len(binarize_gripper(empty)) == len(absolute_gripper(empty)) == 0
    given = np.array([0.5, 1.0])
    binarize_gripper(given)
    assert given.tolist() == [0.5, 1.0]
