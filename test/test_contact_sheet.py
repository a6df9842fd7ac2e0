"""The contact sheet shows frames and what was answered to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from openvla_ros.errors import ImageError
from openvla_ros.evaluation.pictures.contact_sheet import (
    CELL_WIDTH,
    GAP,
    PANEL_HEIGHT,
    PICTURE_HEIGHT,
    TITLE_HEIGHT,
    SheetStep,
    draw_contact_sheet,
    pick_evenly,
)
from openvla_ros.evaluation.pictures.drawing import BAD, GOOD, MOVE, VERTICAL, fit, font

STEP = SheetStep(
    image=np.full((90, 120, 3), (255, 0, 0), np.uint8),
    instruction="put the spoon on the towel",
    delta_position_m=np.array([0.03, 0.0, 0.02]),
    delta_rotation_rad=np.array([0.0, 0.0, 0.1]),
    gripper=1.0,
    is_valid=True,
    verdict="executed",
    caption="answer 1",
)
CENTRE = np.array([GAP + 66, TITLE_HEIGHT + GAP + PICTURE_HEIGHT + 72])  # of the first compass


def pixels(*steps: SheetStep) -> np.ndarray:
    return np.asarray(draw_contact_sheet(steps, "title", "subtitle"))


def where(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return (n, 2) x, y of the pixels of exactly one colour."""
    ys, xs = np.nonzero((picture == colour).all(axis=-1))
    return np.stack([xs, ys], axis=1)


def arrow_direction(step: SheetStep) -> np.ndarray:
    """Return where the arrow of a single card points, in pixels from the middle of its ring."""
    points = where(pixels(step), MOVE) - CENTRE
    points = points[np.linalg.norm(points, axis=1) < 60]
    return points.mean(axis=0)


def test_every_frame_has_its_card() -> None:
    steps = [replace(STEP, image=np.full((9, 12, 3), 20 * i, np.uint8)) for i in range(6)]
    picture = pixels(*steps)
    height = TITLE_HEIGHT + 2 * (PICTURE_HEIGHT + PANEL_HEIGHT + GAP) + GAP
    assert picture.shape == (height, 4 * (CELL_WIDTH + GAP) + GAP, 3)
    for index in range(6):
        x = GAP + (index % 4) * (CELL_WIDTH + GAP) + CELL_WIDTH // 2
        y = TITLE_HEIGHT + GAP + (index // 4) * (PICTURE_HEIGHT + PANEL_HEIGHT + GAP)
        assert (picture[y + PICTURE_HEIGHT // 2, x] == 20 * index).all(), f"card {index}"


def test_red_frames_stay_red() -> None:
    x, y = GAP + CELL_WIDTH // 2, TITLE_HEIGHT + GAP + PICTURE_HEIGHT // 2
    assert tuple(pixels(STEP)[y, x]) == (255, 0, 0)


@pytest.mark.parametrize(
    ("delta", "axis", "sign"),
    [
        ((0.03, 0.0, 0.0), 1, -1),  # forward is up
        ((-0.03, 0.0, 0.0), 1, 1),
        ((0.0, 0.03, 0.0), 0, -1),  # the robot's left is left
        ((0.0, -0.03, 0.0), 0, 1),
    ],
)
def test_the_arrow_points_along_base_axes_seen_from_above(delta, axis, sign) -> None:
    direction = arrow_direction(replace(STEP, delta_position_m=np.array(delta), gripper=0.0))
    assert sign * direction[axis] > 5.0, direction
    assert abs(direction[1 - axis]) < 1.5, direction


def test_the_bar_goes_up_for_up_and_down_for_down() -> None:
    def middle(dz: float) -> float:
        moved = np.array([0.0, 0.0, dz])
        return float(where(pixels(replace(STEP, delta_position_m=moved)), VERTICAL)[:, 1].mean())

    assert middle(0.03) < middle(-0.03) - 10


def test_an_enormous_step_stays_on_its_card() -> None:
    step = replace(STEP, delta_position_m=np.array([5.0, -5.0, 5.0]), gripper=0.0)
    reach = np.linalg.norm(where(pixels(step), MOVE) - CENTRE, axis=1)
    assert reach.max() < 60, reach.max()


def test_unknown_units_are_said_instead_of_drawn() -> None:
    step = replace(STEP, delta_position_m=np.full(3, np.nan), gripper=float("nan"))
    picture = pixels(step)
    assert len(where(picture, VERTICAL)) == 0
    assert len(where(picture, MOVE)) == 0
    assert len(where(picture, BAD)) > 0


def test_invalid_tokens_are_red_and_valid_ones_green() -> None:
    good = pixels(STEP)
    bad = pixels(replace(STEP, is_valid=False, verdict="skipped: invalid token"))
    assert len(where(good, GOOD)) > 0
    assert len(where(good, BAD)) == 0
    assert len(where(bad, BAD)) > 0
    assert len(where(bad, GOOD)) == 0


def test_endless_instructions_do_not_grow_the_card() -> None:
    long = replace(STEP, instruction="really " * 200 + "x" * 300)
    assert pixels(long).shape == pixels(STEP).shape


def test_no_frames_and_wrong_frames_are_errors() -> None:
    with pytest.raises(ImageError, match="at least one frame"):
        draw_contact_sheet([], "title")
    with pytest.raises(ImageError, match=r"\(4, 4\) float64"):
        draw_contact_sheet([replace(STEP, image=np.zeros((4, 4)))], "title")


@pytest.mark.parametrize(("count", "wanted"), [(100, 12), (12, 12), (3, 12), (13, 12), (1, 1)])
def test_picked_frames_are_spread_over_the_whole_run(count: int, wanted: int) -> None:
    picked = pick_evenly(count, wanted)
    assert len(picked) == min(count, wanted)
    assert picked[0] == 0
    assert picked[-1] == (count - 1 if wanted > 1 else 0)
    steps = np.diff(picked)
    assert not len(steps) or steps.max() - steps.min() <= 1


def test_text_that_does_not_fit_is_shortened_visibly() -> None:
    from PIL import Image, ImageDraw

    draw = ImageDraw.Draw(Image.new("RGB", (10, 10)))
    shortened = fit(draw, "a long caption " * 10, 12, 80)
    assert shortened.endswith("…")
    assert draw.textlength(shortened, font=font(12)) <= 80
