"""What readers of recorded steps share."""

from __future__ import annotations

import numpy as np
import pytest

from openvla_ros.data.steps import (
    FIRST_STAMP_NS,
    equal_runs,
    even_stamps,
    require_finite,
    require_instruction,
    require_rate,
)
from openvla_ros.errors import ConfigurationError


def test_stamps_begin_above_zero_and_do_not_drift() -> None:
    stamps = even_stamps(range(30_001), 30.0)
    assert stamps[0] == FIRST_STAMP_NS > 0
    assert stamps[30_000] - stamps[0] == 1000 * 10**9
    assert set(np.diff(stamps).tolist()) == {33_333_333, 33_333_334}


def test_runs_cover_everything_once() -> None:
    assert equal_runs([]) == []
    assert equal_runs("aabccc") == [(0, 2), (2, 3), (3, 6)]


def test_the_first_bad_step_is_named() -> None:
    numbers = np.zeros((5, 2), np.float32)
    assert require_finite(numbers, "action", "here").dtype == np.float64
    numbers[3, 1] = np.inf
    with pytest.raises(ConfigurationError, match=r"here: the action of step 3 .*1 of 5 steps"):
        require_finite(numbers, "action", "here")


def test_a_blank_instruction_is_none() -> None:
    require_instruction(" a task", "here")
    with pytest.raises(ConfigurationError, match="here has no instruction"):
        require_instruction(" \n", "here")


def test_a_rate_is_given_or_published() -> None:
    assert require_rate(7, "bridge_orig", "here") == 7.0
    assert require_rate(None, "bridge_orig", "here") == 5.0
    for dataset in ("", "my_robot"):
        with pytest.raises(ConfigurationError, match="here: how many steps per second"):
            require_rate(None, dataset, "here")
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="greater than 0"):
            require_rate(wrong, "bridge_orig", "here")
