"""The episodes that failed, as pictures: start, middle and end, with the named block marked."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from openvla_ros.config.motion import MotionConfig
from openvla_ros.errors import ConfigurationError, MotionError
from openvla_ros.evaluation.motion.motion_replay import commanded_steps
from openvla_ros.evaluation.pictures.contact_sheet import (
    SheetStep,
    draw_contact_sheet,
    pick_evenly,
)
from openvla_ros.evaluation.pictures.projection import CameraModel
from openvla_ros.evaluation.report.page import Section, html_page, paragraph
from openvla_ros.sim.cell_model import camera_pose, focal_length_pixels
from openvla_ros.sim.closed_loop.episode import EpisodeResult, Moment
from openvla_ros.sim.scene import Scene
from openvla_ros.types import ActionSpec

INDEX = "index.html"
SHOWN = 3  # of an episode's moments
RING_M = 0.035  # about the middle of the block
RING, RING_SHADOW = (255, 255, 255), (0, 0, 0)
JPEG_QUALITY = 85


class Gallery:
    """A folder with one contact sheet for each failed episode, and a page that shows them all."""

    def __init__(self, folder: Path, spec: ActionSpec, title: str) -> None:
        """Begin an empty gallery.

        Args:
            folder: New or empty.
            spec: What the numbers of the actions mean.
            title: Of the page.

        Raises:
            ConfigurationError: Something is in the folder.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigurationError(f"--gallery {folder} is not empty: name a new folder.")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._spec = spec
        self._title = title
        self._sections: list[Section] = []
        self._episodes = 0

    def add(self, result: EpisodeResult, scene: Scene) -> None:
        """Draw the sheet of an episode that failed; one that succeeded is only counted."""
        self._episodes += 1
        if result.succeeded or not result.moments:
            return
        sheet = draw_failure(result, scene, self._spec)
        name = f"seed_{result.seed:06d}.png"
        sheet.save(self.folder / name)
        jpeg = io.BytesIO()
        sheet.save(jpeg, "JPEG", quality=JPEG_QUALITY)
        data = base64.b64encode(jpeg.getvalue()).decode()
        alt = html.escape(f"Start, middle and end of seed {result.seed}")
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="{alt}">'
        self._sections.append(
            Section(f"Seed {result.seed}: {result.instruction}", f"{_told(result)}{picture}")
        )

    def finish(self) -> Path:
        """Write the page and return its path."""
        told = f"{len(self._sections)} of {self._episodes} episodes failed."
        sections = self._sections or [Section("No failure", paragraph("Every episode succeeded."))]
        path = self.folder / INDEX
        path.write_text(html_page(self._title, sections, subtitle=told), encoding="utf-8")
        return path


def draw_failure(result: EpisodeResult, scene: Scene, spec: ActionSpec) -> Image.Image:
    """Return the contact sheet of an episode: its first, middle and last moment.

    Args:
        result: With its moments.
        scene: Where the camera is.
        spec: What the numbers of the actions mean.
    """
    chosen = pick_evenly(len(result.moments), SHOWN)
    steps = [_sheet_step(result, index, scene, spec) for index in chosen]
    return draw_contact_sheet(
        steps, f"seed {result.seed}: {result.instruction}", _summary(result), columns=SHOWN
    )


def _sheet_step(result: EpisodeResult, index: int, scene: Scene, spec: ActionSpec) -> SheetStep:
    moment = result.moments[index]
    action = moment.prediction.action
    try:
        step = commanded_steps(action[None], spec, MotionConfig(), moment.state.tool)[0]
    except MotionError:
        step = np.full(6, np.nan)
    away_m = float(np.linalg.norm(moment.state.blocks[result.target] - moment.state.tool.position))
    return SheetStep(
        image=_marked(moment, result.target, scene),
        instruction=result.instruction,
        delta_position_m=step[:3],
        delta_rotation_rad=step[3:],
        gripper=float(action[6]),
        is_valid=moment.prediction.is_valid,
        verdict=f"{100 * away_m:.0f} cm from the block",
        caption=f"answer {index + 1} of {len(result.moments)}",
    )


def _marked(moment: Moment, colour: str, scene: Scene) -> np.ndarray:
    """The picture with a ring about the named block."""
    height, width = moment.picture.shape[:2]
    focal = focal_length_pixels(height)
    position, rotation = camera_pose(scene)
    camera = CameraModel(
        matrix=np.array(
            [[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]]
        ),
        distortion=np.zeros(0),
        rotation=rotation.T,
        translation=-rotation.T @ position,
    )
    centre = moment.state.blocks[colour]
    aside = centre + rotation[:, 0] * RING_M
    pixels = camera.pixels(np.stack([centre, aside]))
    if pixels is None:
        return moment.picture
    (x, y), radius = pixels[0], float(np.linalg.norm(pixels[1] - pixels[0]))
    picture = Image.fromarray(moment.picture)
    draw = ImageDraw.Draw(picture)
    for grown, ink, thickness in ((1.0, RING_SHADOW, 3), (0.0, RING, 1)):
        r = radius + grown
        draw.ellipse((x - r, y - r, x + r, y + r), outline=ink, width=thickness)
    return np.asarray(picture)


def _summary(result: EpisodeResult) -> str:
    first = result.done_with[0] if result.done_with else ""
    went = f"It was done with the {first} block." if first else "It was done with no block."
    refused = ", ".join(f"{count} {reason}" for reason, count in result.refused.items())
    return f"{went} Nearest at the start: {result.nearest}." + (
        f" Refused answers: {refused}." if refused else ""
    )


def _told(result: EpisodeResult) -> str:
    return paragraph(_summary(result))
