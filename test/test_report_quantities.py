from __future__ import annotations

import math

import numpy as np
import pytest

from openvla_ros.evaluation.report.quantities import (
    Units,
    count,
    dimension_name,
    joined,
    moment,
    quantity,
    units_of,
)

S = "\u00a0"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (9.7184, "mm", f"9.72{S}mm"),
        (0.0432, "mm", f"0.0432{S}mm"),
        (1234.56, "ms", f"1,235{S}ms"),
        (2.321, "deg", "2.32°"),
        (0.99712, "%", f"99.7{S}%"),
        (0.0004, "%", f"0.040{S}%"),
        (1.0, "%", f"100{S}%"),
        (0.0, "mm", f"0{S}mm"),
        (-0.5, "", "−0.500"),
        (3e-7, "", "3.0e−07"),
        (None, "mm", "n/a"),
        (math.nan, "mm", "n/a"),
    ],
)
def test_numbers_have_few_digits_and_a_unit(value: float | None, unit: str, text: str):
    assert quantity(value, unit) == text


def test_signs_are_shown_where_they_are_asked_for():
    assert quantity(0.5, "s", signed=True) == f"+0.500{S}s"
    assert quantity(-0.5, "s", signed=True) == f"−0.500{S}s"
    assert quantity(0.0, "s", signed=True) == f"0{S}s"


def test_units_scale_motion_and_leave_the_gripper():
    units = units_of(
        {
            "units": {"translation": "mm", "rotation": "deg"},
            "action_spec": {"translation_unit_m": 0.05, "rotation_unit_rad": 1.0},
        }
    )
    shown = units.shown(np.array([[1.0, 2.0, 3.0, math.pi, 0.0, 0.0, 0.7]]))
    assert shown == pytest.approx(np.array([[50.0, 100.0, 150.0, 180.0, 0.0, 0.0, 0.7]]))
    assert [units.of_dimension(d, 7) for d in (0, 3, 6)] == ["mm", "deg", ""]


def test_unknown_units_and_unknown_layouts_are_shown_as_they_are():
    units = units_of(
        {
            "units": {"translation": "dataset units", "rotation": "dataset units"},
            "action_spec": {"translation_unit_m": None, "rotation_unit_rad": None},
        }
    )
    assert units == Units("dataset units", "dataset units", 1.0, 1.0)
    actions = np.arange(10.0).reshape(2, 5)
    assert (Units("mm", "deg", 1000.0, 57.3).shown(actions) == actions).all()
    assert dimension_name(2, 5) == "number 2" and dimension_name(2, 7) == "z"
    assert units.of_dimension(2, 5) == ""


def test_words():
    assert count(1, "step") == f"1{S}step" and count(1200, "step") == f"1,200{S}steps"
    assert joined(["a"]) == "a" and joined(["a", "b", "c"]) == "a, b and c" and joined([]) == ""
    assert moment("2025-03-14T09:26:53+00:00") == "2025-03-14 09:26 UTC"
    assert moment("yesterday") == "yesterday"
