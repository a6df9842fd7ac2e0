"""Where a step of the arm points in the picture that the model sees.

Only with a calibrated camera: its matrix and distortion (CameraInfo), where it is (TF), and where
the end effector is. Metres; pixels with the centre of the first one at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

NEAREST_M = 0.05  # closer to the camera, or behind it, a point has no place in the picture
INSIDE = 250  # of 255: the third channel of the chart, to tell the picture from padding

Arrow = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class CameraModel:
    """A camera and where it is.

    Attributes:
        matrix: (3, 3) K, for the pixels of the camera message.
        distortion: (n,) as OpenCV orders it; empty for rectified pictures.
        rotation: (3, 3), base to optical frame (x right, y down, z forward).
        translation: (3,) metres, of the base in the optical frame.
    """

    matrix: np.ndarray
    distortion: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray

    def pixels(self, points: np.ndarray) -> np.ndarray | None:
        """Return (n, 2) pixels of (n, 3) points in the base frame; None if one has no place."""
        seen = points @ self.rotation.T + self.translation
        if (seen[:, 2] < NEAREST_M).any():
            return None
        zero = np.zeros(3)
        found, _ = cv2.projectPoints(seen[:, None], zero, zero, self.matrix, self.distortion)
        return found[:, 0]


def view_map(view: Callable[[np.ndarray], np.ndarray], height: int, width: int) -> np.ndarray:
    """Return the (2, 3) affine map from places in the picture to places in the model's view.

    Places are fractions of width and height. The map is found by showing the policy a chart whose
    colours are coordinates: it holds for whatever the policy does to pictures, as long as that is
    to turn, cut, scale and pad.

    Args:
        view: The policy's `view`.
        height: Of the picture, after `image_roi`.
        width: Of the picture.
    """
    chart = np.empty((height, width, 3), np.uint8)
    chart[..., 0] = np.rint(255 * _centres(width))[None, :]
    chart[..., 1] = np.rint(255 * _centres(height))[:, None]
    chart[..., 2] = 255
    seen = view(chart)
    rows, columns = np.nonzero(seen[..., 2] > INSIDE)
    places = np.stack([_centres(seen.shape[1])[columns], _centres(seen.shape[0])[rows]], axis=1)
    source = seen[rows, columns, :2].astype(float) / 255.0
    found, *_ = np.linalg.lstsq(np.column_stack([source, np.ones(len(source))]), places, rcond=None)
    return found.T


def arrow_in_view(
    camera: CameraModel, points: np.ndarray, roi: tuple[int, int, int, int], to_view: np.ndarray
) -> Arrow | None:
    """Return start and end of a step, as fractions of the view; None where they have no place.

    Args:
        camera: See there.
        points: (2, 3) start and end, metres, base frame.
        roi: x, y, width, height of the part of the camera's picture that the policy gets.
        to_view: From `view_map`.
    """
    pixels = camera.pixels(points)
    if pixels is None:
        return None
    x, y, width, height = roi
    places = (pixels + 0.5 - (x, y)) / (width, height)
    tail, tip = places @ to_view[:, :2].T + to_view[:, 2]
    return (float(tail[0]), float(tail[1])), (float(tip[0]), float(tip[1]))


def _centres(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count
