"""A rendered table top with coloured blocks, a bowl and a gripper that moves on a fixed path.

It gives demos and tests frames that change from one to the next, on machines without any recorded
data. The same time gives the same pixels. It is a picture, not a physics simulation.
"""

from __future__ import annotations

import cv2
import numpy as np

INSTRUCTION = "put the red cube in the blue bowl"
LOOP_S = 12.0  # the script starts again after this many seconds

# World frame like BridgeData's robot base: metres, x away from the robot, y to its left, z up.
CAMERA_POSITION = np.array([-0.25, 0.0, 0.52])
CAMERA_TARGET = np.array([0.30, 0.0, 0.02])
FOCAL_LENGTH_PER_WIDTH = 0.95
CUBE_SIZE_M = 0.05
CUBE_START = np.array([0.28, 0.12, CUBE_SIZE_M / 2])
GREEN_BLOCK = np.array([0.40, 0.02, 0.03])
BOWL = np.array([0.30, -0.13, 0.0])
BOWL_RADIUS_M = 0.065

# (seconds, x, y, z of the point between the fingers, opening): linear in between.
SCRIPT = np.array(
    [
        [0.0, 0.20, 0.00, 0.22, 1.0],
        [2.0, 0.28, 0.12, 0.16, 1.0],
        [3.5, 0.28, 0.12, 0.03, 1.0],
        [4.5, 0.28, 0.12, 0.03, 0.0],
        [6.0, 0.28, 0.12, 0.18, 0.0],
        [8.5, 0.30, -0.13, 0.18, 0.0],
        [9.5, 0.30, -0.13, 0.09, 0.0],
        [10.2, 0.30, -0.13, 0.09, 1.0],
        [12.0, 0.20, 0.00, 0.22, 1.0],
    ]
)
GRASPED_S, RELEASED_S = 4.5, 10.0

TABLE = (196, 178, 150)
WALL = (222, 226, 230)
EDGE = (160, 142, 116)
RED = (204, 52, 46)
GREEN = (70, 150, 84)
BLUE = (58, 98, 190)
STEEL = (92, 96, 104)
SHADOW = (160, 144, 120)


def render(time_s: float, width: int = 640, height: int = 480) -> np.ndarray:
    """Return the scene at `time_s` as (height, width, 3) uint8 RGB."""
    canvas = _Canvas(width, height)
    x, y, z, opening = gripper_at(time_s)
    canvas.polygon([(0.05, 0.32, 0), (0.75, 0.32, 0), (0.75, -0.32, 0), (0.05, -0.32, 0)], TABLE)
    canvas.polygon(
        [(0.05, 0.32, 0), (0.05, -0.32, 0), (0.05, -0.32, -0.04), (0.05, 0.32, -0.04)], EDGE
    )
    canvas.disc((x, y, 0.0), 0.035, SHADOW)
    canvas.box(GREEN_BLOCK, (0.04, 0.10, 0.06), GREEN)
    canvas.bowl(BOWL, BOWL_RADIUS_M, BLUE)
    canvas.box(cube_at(time_s), (CUBE_SIZE_M,) * 3, RED)
    for side in (-1.0, 1.0):
        finger_y = y + side * (0.028 + 0.022 * opening)
        canvas.box(np.array([x, finger_y, z + 0.03]), (0.018, 0.014, 0.06), STEEL)
    canvas.box(np.array([x, y, z + 0.085]), (0.05, 0.13, 0.05), _shade(STEEL, 1.25))
    canvas.box(np.array([x, y, z + 0.24]), (0.045, 0.045, 0.26), _shade(STEEL, 0.8))
    return canvas.image


def gripper_at(time_s: float) -> np.ndarray:
    """Return (4,) x, y, z in metres and opening (0 closed ... 1 open) of the scripted gripper."""
    phase = time_s % LOOP_S
    return np.array([np.interp(phase, SCRIPT[:, 0], SCRIPT[:, column]) for column in range(1, 5)])


def cube_at(time_s: float) -> np.ndarray:
    """Return the (3,) centre of the red cube in metres: on the table, held, or in the bowl."""
    phase = time_s % LOOP_S
    if phase < GRASPED_S:
        return CUBE_START
    held = gripper_at(min(phase, RELEASED_S))[:3]
    if phase < RELEASED_S:
        return held
    fallen_m = 0.5 * 9.81 * (phase - RELEASED_S) ** 2
    return np.array([held[0], held[1], max(held[2] - fallen_m, 0.03)])


def _shade(colour: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    red, green, blue = (int(min(255, part * factor)) for part in colour)
    return red, green, blue


class _Canvas:
    """Draws convex shapes given in world coordinates, in the order they are called."""

    def __init__(self, width: int, height: int) -> None:
        self.image = np.empty((height, width, 3), np.uint8)
        self.image[:] = WALL
        self._focal = FOCAL_LENGTH_PER_WIDTH * width
        self._centre = np.array([width / 2, height / 2])
        forward = CAMERA_TARGET - CAMERA_POSITION
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right = right / np.linalg.norm(right)
        self._axes = np.stack([right, np.cross(forward, right), forward])  # image x, y, depth

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return (n, 2) pixels of (n, 3) world points."""
        local = (np.asarray(points, float) - CAMERA_POSITION) @ self._axes.T
        return self._centre + self._focal * local[:, :2] / local[:, 2:]

    def polygon(self, points: object, colour: tuple[int, int, int]) -> None:
        pixels = self.project(np.asarray(points, float)).round().astype(np.int32)
        cv2.fillConvexPoly(self.image, cv2.convexHull(pixels), colour, cv2.LINE_AA)

    def disc(self, centre: object, radius: float, colour: tuple[int, int, int]) -> None:
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        circle = radius * np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)
        self.polygon(np.asarray(centre, float) + circle, colour)

    def box(self, centre: np.ndarray, size: object, colour: tuple[int, int, int]) -> None:
        half = np.asarray(size, float) / 2
        signs = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)])
        corners = centre + signs * half
        self.polygon(corners, _shade(colour, 0.72))  # silhouette = side faces
        self.polygon(corners[signs[:, 0] < 0], colour)  # the face towards the camera
        self.polygon(corners[signs[:, 2] > 0], _shade(colour, 1.25))

    def bowl(self, centre: np.ndarray, radius: float, colour: tuple[int, int, int]) -> None:
        rim = centre + np.array([0.0, 0.0, 0.035])
        self.disc(centre, radius * 0.75, _shade(colour, 0.6))
        self.disc(rim, radius, colour)
        self.disc(rim - np.array([0.0, 0.0, 0.008]), radius * 0.82, _shade(colour, 0.7))
