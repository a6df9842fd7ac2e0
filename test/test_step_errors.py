"""Errors per step agree with the code that moves the robot."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from synthetic_records import SPEC, STATS, TOKENIZER, noisy, perfect_records

from openvla_ros.control.displacement import StepLimits, displacement
from openvla_ros.control.pose import exponential_map, rotation_to_quaternion
from openvla_ros.evaluation.metrics.stacked_records import StackedRecords, stack_records
from openvla_ros.evaluation.metrics.step_errors import (
    DATASET_UNITS,
    error_units,
    is_closed,
    pause,
    step_errors,
)
from openvla_ros.types import ActionSpec


def stacked(scale: float = 1.0) -> StackedRecords:
    records = noisy(perfect_records(3, 20), 60)
    records = [dataclasses.replace(r, predicted=r.predicted * scale) for r in records]
    return stack_records(records, STATS, TOKENIZER)


@pytest.mark.parametrize("form", ["euler_xyz", "rotvec"])
@pytest.mark.parametrize("frame", ["base", "ee"])
def test_the_rotation_error_is_the_angle_between_the_rotations_the_arm_makes(
    form: str, frame: str
) -> None:
    spec = dataclasses.replace(SPEC, rotation_form=form, rotation_frame=frame)
    s = stacked(scale=7.0)  # up to 1.4 rad per axis
    found = step_errors(s.answers, s.recordings, spec, STATS).rotation
    unlimited = StepLimits(math.inf, math.inf)
    tool = exponential_map(np.array([0.3, -1.0, 2.0]))
    for row in range(0, len(s), 7):
        turns = [
            exponential_map(
                displacement(a[row][None], spec, limits=unlimited, ee_rotation=tool).steps[0, 3:]
            )
            for a in (s.answers.actions, s.recordings.actions)
        ]
        w = rotation_to_quaternion(turns[0] @ turns[1].T)[3]
        assert found[row] == pytest.approx(math.degrees(2 * math.acos(min(1.0, w))), abs=1e-5)


def test_half_a_turn_and_a_tiny_one_are_exact() -> None:
    s = stacked()
    recorded, answered = np.zeros((2, 7)), np.zeros((2, 7))
    answered[0, 3], answered[1, 4] = math.pi, 1e-9
    rows = np.arange(2)
    found = step_errors(
        dataclasses.replace(s.answers.at(rows), actions=answered),
        dataclasses.replace(s.recordings.at(rows), actions=recorded),
        SPEC,
        STATS,
    )
    assert found.rotation == pytest.approx([180.0, math.degrees(1e-9)], rel=1e-9)


def test_what_would_be_clipped_is_what_the_safety_limit_cuts() -> None:
    s = stacked(scale=2.0)
    found = step_errors(s.answers, s.recordings, SPEC, STATS).is_clipped
    expected = displacement(s.answers.actions, SPEC, limits=StepLimits()).clipped.any(axis=1)
    assert 0 < expected.sum() < len(s)
    assert found.tolist() == expected.astype(float).tolist()


def test_units_are_only_named_where_the_spec_knows_them() -> None:
    assert error_units(SPEC) == {"translation": "mm", "rotation": "deg"}
    unknown = {"translation": DATASET_UNITS, "rotation": DATASET_UNITS}
    assert error_units(ActionSpec("mine")) == unknown
    no_form = dataclasses.replace(SPEC, rotation_form=None)
    assert error_units(no_form) == {"translation": "mm", "rotation": DATASET_UNITS}


def test_a_pause_is_a_speed_and_without_metres_a_share_of_the_statistics() -> None:
    s = stacked()
    assert pause(s.recordings, SPEC, STATS) == pytest.approx(0.002)
    assert pause(s.recordings, ActionSpec("mine"), STATS) == pytest.approx(0.002, rel=0.02)


def test_half_open_is_open_and_what_is_not_known_is_neither() -> None:
    values = np.array([0.0, 0.49, 0.5, 1.0, np.nan, 7.0])
    assert is_closed(values, SPEC).tolist()[:4] == [1.0, 1.0, 0.0, 0.0]
    assert np.isnan(is_closed(values, SPEC)).tolist() == [False] * 4 + [True, False]
    assert np.isnan(is_closed(values, ActionSpec("mine"))).all()
    inverted = dataclasses.replace(SPEC, gripper_open=-1.0, gripper_closed=1.0)
    assert is_closed(np.array([-1.0, 0.0, 0.1, 1.0]), inverted).tolist() == [0.0, 0.0, 1.0, 1.0]
