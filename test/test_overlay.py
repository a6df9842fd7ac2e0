"""The picture for ~/debug/image: the model's pixels untouched, the answer beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from openvla_ros.errors import ImageError
from openvla_ros.evaluation.pictures.drawing import BAD, GOOD, MOVE, PAPER
from openvla_ros.evaluation.pictures.overlay import (
    HEADER,
    HEIGHT,
    ON_PICTURE,
    PICTURE,
    WIDTH,
    Overlay,
    draw_overlay,
)

VIEW = np.random.default_rng(0).integers(0, 200, (224, 224, 3), np.uint8)
OVERLAY = Overlay(
    view=VIEW,
    instruction="put the carrot on the plate",
    state="RUNNING",
    level="ok",
    detail="",
    delta_position_m=np.array([0.03, 0.0, 0.01]),
    delta_rotation_rad=np.array([0.0, 0.0, 0.1]),
    gripper=1.0,
    gripper_is_open=True,
    verdict="executed",
    is_executed=True,
    is_valid=True,
    facts=("answer 1", "model 170 ms"),
)


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((picture == colour).all(axis=-1).sum())


def test_the_pixels_of_the_model_are_shown_unchanged() -> None:
    picture = draw_overlay(OVERLAY)
    assert picture.shape == (HEIGHT, WIDTH, 3) and picture.dtype == np.uint8
    shown = picture[HEADER : HEADER + PICTURE, :PICTURE]
    np.testing.assert_array_equal(shown[::2, ::2], VIEW)
    np.testing.assert_array_equal(shown[1::2, 1::2], VIEW)


@pytest.mark.parametrize("shape", [(480, 640), (1, 1), (224, 100), (3, 2000)])
def test_a_view_of_any_shape_keeps_its_proportions(shape: tuple[int, int]) -> None:
    view = np.full((*shape, 3), (255, 0, 255), np.uint8)
    picture = draw_overlay(replace(OVERLAY, view=view))
    rows, columns = np.nonzero((picture == (255, 0, 255)).all(axis=-1))
    scale = min(PICTURE / shape[0], PICTURE / shape[1])
    assert np.ptp(rows) + 1 == max(1, round(shape[0] * scale))
    assert np.ptp(columns) + 1 == max(1, round(shape[1] * scale))


def test_an_arrow_is_drawn_on_the_picture_only_when_it_is_known() -> None:
    assert count(draw_overlay(OVERLAY), ON_PICTURE) == 0
    with_arrow = draw_overlay(replace(OVERLAY, arrow=((0.5, 0.5), (0.75, 0.5))))
    rows, columns = np.nonzero((with_arrow == ON_PICTURE).all(axis=-1))
    assert abs(columns.min() - PICTURE * 0.5) < 4 and abs(columns.max() - PICTURE * 0.75) < 4
    assert abs(rows.mean() - (HEADER + PICTURE / 2)) < 2


def test_the_badge_has_the_colour_of_the_level() -> None:
    assert count(draw_overlay(OVERLAY), GOOD) > count(
        draw_overlay(replace(OVERLAY, level="bad")), GOOD
    )
    assert count(draw_overlay(replace(OVERLAY, level="bad")), BAD) > 500


def test_what_is_not_known_is_no_arrow_and_no_bar() -> None:
    unknown = replace(
        OVERLAY,
        delta_position_m=np.full(3, np.nan),
        delta_rotation_rad=np.full(3, np.nan),
        gripper=float("nan"),
    )
    assert count(draw_overlay(OVERLAY), MOVE) > 100
    assert count(draw_overlay(unknown), MOVE) == 0


def test_invalid_tokens_are_said() -> None:
    assert count(draw_overlay(OVERLAY), BAD) == 0
    assert count(draw_overlay(replace(OVERLAY, is_valid=False)), BAD) > 50


def test_the_most_that_can_be_said_fits() -> None:
    facts = ("answer 1", "model", "the model sees", "cut to the limit", "no arrow " * 12)
    full = draw_overlay(replace(OVERLAY, is_valid=False, is_executed=False, facts=facts))
    assert (full[-6:, PICTURE:] == PAPER).all()


def test_a_long_instruction_stays_on_the_picture() -> None:
    long = draw_overlay(replace(OVERLAY, instruction="move " * 300, detail="why " * 300))
    assert long.shape == (HEIGHT, WIDTH, 3)
    assert (long[:HEADER, -2:] == long[0, -1]).all(axis=-1).mean() > 0.9  # a margin remains


def test_a_view_that_is_no_picture_is_refused() -> None:
    with pytest.raises(ImageError, match=r"\(224, 224\) uint8"):
        draw_overlay(replace(OVERLAY, view=VIEW[:, :, 0]))
