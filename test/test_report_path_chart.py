from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from report_case import SPEC

from openvla_ros.evaluation.report.charts import styles_of
from openvla_ros.evaluation.report.path_chart import integrated_path, path_svgs
from openvla_ros.evaluation.report.quantities import Units
from openvla_ros.types import ActionSpec

pytest.importorskip("matplotlib", reason="a report needs matplotlib: the extra `plots`")

MM = Units("mm", "deg", 1000.0, 57.29577951308232)


def test_translations_in_base_axes_are_added_up():
    actions = np.random.default_rng(0).normal(size=(9, 7)) * 0.01
    path = integrated_path(actions, SPEC, MM)
    assert path[0] == pytest.approx(0.0)
    assert path[1:] == pytest.approx(1000.0 * np.cumsum(actions[:, :3], axis=0))


def test_tool_axes_turn_with_the_tool():
    """Forward, a quarter turn to the left, forward again: that ends ahead and to the left."""
    spec = dataclasses.replace(SPEC, translation_frame="ee", rotation_frame="ee")
    actions = np.zeros((2, 7))
    actions[:, 0] = 0.1
    actions[0, 5] = np.pi / 2
    assert integrated_path(actions, spec, MM)[-1] == pytest.approx([100.0, 100.0, 0.0])


def test_unknown_units_are_added_as_they_are():
    actions = np.ones((3, 7))
    unknown = Units("dataset units", "dataset units")
    assert integrated_path(actions, ActionSpec("mine"), unknown)[-1] == pytest.approx(3.0)
    # The frame is known, the unit of rotation is not: still in the unit that the axes say.
    partly = dataclasses.replace(SPEC, rotation_unit_rad=None, translation_unit_m=0.5)
    half_metres = Units("mm", "dataset units", 500.0, 1.0)
    assert integrated_path(actions, partly, half_metres)[-1] == pytest.approx(1500.0)


def test_three_views_with_a_unit_that_fits_the_length():
    path = np.cumsum(np.ones((5, 3)), axis=0)
    styles = styles_of(["base"])
    views = path_svgs("p", path, {"base": 2 * path}, styles, "mm")
    assert [words for words, _ in views] == ["in space", "from above", "from the side"]
    assert all("[mm]" in svg for _, svg in views)
    far = path_svgs("p", 100 * path, {"base": path}, styles, "mm")
    assert all("[cm]" in svg and "[mm]" not in svg for _, svg in far)


def test_an_arm_that_stands_still_can_be_drawn():
    still = np.zeros((4, 3))
    assert len(path_svgs("p", still, {}, {}, "dataset units")) == 3
