"""The arrow on the debug image, against a camera worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from openvla_ros.evaluation.pictures.projection import CameraModel, arrow_in_view, view_map
from openvla_ros.model.image_options import ImageOptions
from openvla_ros.model.processing import ImageProcessor

SETTINGS = json.loads(
    (Path(__file__).parent / "reference/checkpoints/A_fused/preprocessor_config.json").read_text()
)
#: One metre above the base, looking down: right in the picture is -y, down in it is -x.
LOOKING_DOWN = CameraModel(
    matrix=np.array([[600.0, 0, 319.5], [0, 600.0, 239.5], [0, 0, 1]]),
    distortion=np.zeros(0),
    rotation=np.array([[0, -1.0, 0], [-1.0, 0, 0], [0, 0, -1.0]]),
    translation=np.array([0, 0, 1.0]),
)
SAME = np.array([[1.0, 0, 0], [0, 1.0, 0]])
WHOLE = (0, 0, 640, 480)


def processor(strategy: str, **options: bool) -> ImageProcessor:
    kept = {key: value for key, value in SETTINGS.items() if not key.startswith("tvf_")}
    options = {**kept, "image_options": ImageOptions(**options).to_dict()}
    return ImageProcessor({**options, "image_resize_strategy": strategy})


def test_a_point_below_the_camera_is_in_the_middle() -> None:
    np.testing.assert_allclose(LOOKING_DOWN.pixels(np.zeros((1, 3))), [[319.5, 239.5]])


def test_a_step_forward_points_up_and_a_step_to_the_left_points_left() -> None:
    points = np.array([[0, 0, 0], [0.1, 0.05, 0]])
    tail, tip = arrow_in_view(LOOKING_DOWN, points, WHOLE, SAME)
    np.testing.assert_allclose(tail, [0.5, 0.5])
    np.testing.assert_allclose(tip, [0.5 - 30 / 640, 0.5 - 60 / 480])


def test_behind_the_camera_there_is_no_arrow() -> None:
    points = np.array([[0, 0, 0], [0, 0, 1.2]])
    assert arrow_in_view(LOOKING_DOWN, points, WHOLE, SAME) is None


def test_the_region_of_interest_moves_and_scales_the_arrow() -> None:
    points = np.zeros((2, 3))
    tail, _ = arrow_in_view(LOOKING_DOWN, points, (160, 120, 320, 240), SAME)
    np.testing.assert_allclose(tail, [0.5, 0.5])
    tail, _ = arrow_in_view(LOOKING_DOWN, points, (320, 240, 320, 240), SAME)
    np.testing.assert_allclose(tail, [0.0, 0.0])


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (processor("resize-naive"), SAME),
        (processor("resize-naive", rotate_180=True), [[-1, 0, 1], [0, -1, 1]]),
        (processor("resize-naive", lanczos3=True, jpeg_round_trip=True), SAME),
        # The central 90 % of the area fill the view.
        (
            processor("resize-naive", center_crop=True),
            [[1 / 0.9487, 0, -0.02704], [0, 1 / 0.9487, -0.02704]],
        ),
        # 640 x 480 on a square: padded above and below, or cut at both sides.
        (processor("letterbox"), [[1, 0, 0], [0, 0.75, 0.125]]),
        (processor("resize-crop"), [[4 / 3, 0, -1 / 6], [0, 1, 0]]),
    ],
    ids=["plain", "turned", "rlds", "centre crop", "letterbox", "resize-crop"],
)
def test_the_map_into_the_view_follows_what_the_processor_does(
    made: ImageProcessor, expected: np.ndarray
) -> None:
    found = view_map(made.view, 480, 640)
    off = np.abs(found - np.asarray(expected, float)).max()
    assert off < 0.006, f"off by {off:.4f} of the width:\n{found}"
