"""A demo on one page of HTML that needs nothing else: outcomes, pictures, paths, latency."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from openvla_ros.errors import DependencyError
from openvla_ros.evaluation.pictures.contact_sheet import pick_evenly
from openvla_ros.evaluation.report.page import (
    Html,
    Section,
    definitions_html,
    episode_html,
    figure_html,
    figures_html,
    html_page,
    notice,
    paragraph,
    subheading,
    table_html,
    text,
    verdict,
)
from openvla_ros.evaluation.report.svg import FAINT, INK, drawing, svg_of
from openvla_ros.ros.demo_episode import Track
from openvla_ros.sim.scene import BLOCK_SIZE_M, COLOURS

SHEET_FRAMES = 6
FRAME_PIXELS = 240
_CHART_IN = (3.6, 3.1)
_UNKNOWN = (0.4, 0.4, 0.4)


@dataclass(frozen=True)
class DemoFacts:
    """What the page says beside the tracks.

    Attributes:
        title: Heading.
        caution: What a reader must not believe; "" for nothing.
        facts: Names and values: checkpoint, arm, seed, machine, ...
        blocks: Colour to (3,) centre at the start, metres.
    """

    title: str
    caution: str
    facts: Mapping[str, str]
    blocks: Mapping[str, np.ndarray]


def demo_page(facts: DemoFacts, tracks: Sequence[Track]) -> str:
    """Return the page.

    Args:
        facts: What runs, and where.
        tracks: One per instruction, in order.
    """
    return html_page(
        facts.title,
        [
            Section("Instructions", _outcomes(facts, tracks)),
            Section("Pictures", "".join(_pictures(track) for track in tracks)),
            Section("Path of the tool", _paths(facts, tracks)),
            Section("What ran", definitions_html(facts.facts.items())),
        ],
        subtitle="One scene; before every instruction the arm is put back to the same start.",
        notice_html=notice("Note", facts.caution) if facts.caution else "",
    )


def _outcomes(facts: DemoFacts, tracks: Sequence[Track]) -> str:
    rows = [
        [
            f"“{track.episode.instruction}”",
            verdict(track.episode.outcome, track.episode.level),
            str(track.executed),
            f"{100 * track.path_m:.1f}",
            _median(track.latencies_s, 1000.0),
            _median(track.model_ms, 1.0),
            f"{track.episode.real_time_factor:.2f}",
        ]
        for track in tracks
    ]
    headings = [
        "Instruction",
        "Outcome",
        "Actions",
        "Path [cm]",
        "Image to answer [ms]",
        "Policy [ms]",
        "Real-time factor",
    ]
    return table_html(headings, rows) + paragraph(
        "Seconds, and the time from image to answer, are simulated; the policy's milliseconds are "
        "the machine's. Both are medians. Real-time factor: simulated seconds per second; below 1 "
        "the machine was too slow for real time.",
        "note",
    )


def _median(values: Sequence[float], scale: float) -> str:
    return f"{scale * float(np.median(values)):.0f}" if values else "n/a"


def _pictures(track: Track) -> str:
    if not track.views:
        return subheading(track.episode.instruction) + paragraph("No picture was recorded.")
    cards = "".join(
        _card(track, *track.views[index]) for index in pick_evenly(len(track.views), SHEET_FRAMES)
    )
    heading = f"“{track.episode.instruction}”: {track.episode.outcome}"
    return episode_html(
        [subheading(heading), Html(f'<div class="figures">{cards}</div>')], on_one_sheet=True
    )


def _card(track: Track, time_s: float, jpeg: bytes) -> str:
    small = io.BytesIO()
    picture = Image.open(io.BytesIO(jpeg))
    picture.thumbnail((FRAME_PIXELS, FRAME_PIXELS))
    picture.save(small, "JPEG", quality=85)
    data = base64.b64encode(small.getvalue()).decode("ascii")
    alt = f"{track.episode.instruction}, after {time_s:.1f} s"
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{text(alt)}">'
        f"<figcaption>{time_s:.1f} s</figcaption></figure>"
    )


def _paths(facts: DemoFacts, tracks: Sequence[Track]) -> str:
    moved = [track for track in tracks if track.positions]
    if not moved:
        return paragraph("No pose was recorded.")
    try:
        figures = [_from_above(facts, moved), _height(moved)]
    except DependencyError as error:
        return paragraph(str(error))
    return figures_html(figures) + paragraph(
        "A path has the colour of the block that was named. Square: the start; ring: where the arm "
        "was stopped. The dashed line is the height of the blocks.",
        "note",
    )


def _from_above(facts: DemoFacts, tracks: Sequence[Track]) -> Html:
    """Seen as the camera sees it: right is +y, and what is further down is closer to it."""
    with drawing(*_CHART_IN, (0.55, 0.1, 0.45, 0.1)) as figure:
        axes = figure.subplots()
        for colour, centre in facts.blocks.items():
            half = 50 * BLOCK_SIZE_M
            x, y = 100 * centre[:2]
            corners = ([y - half, y + half, y + half, y - half], [x - half, x - half, x + half])
            axes.fill(corners[0], [*corners[1], x + half], color=COLOURS[colour], alpha=0.35)
        for track in tracks:
            path = 100 * np.array(track.positions)
            _draw(axes, path[:, 1], path[:, 0], _colour(track))
        axes.set_aspect("equal", adjustable="datalim")
        axes.invert_yaxis()
        axes.set_xlabel("y [cm]")
        axes.set_ylabel("x [cm], away from the arm")
        svg = svg_of(figure, "above")
    return figure_html(svg, "From above, as the camera sees it", "Path of the tool from above")


def _height(tracks: Sequence[Track]) -> Html:
    with drawing(*_CHART_IN, (0.55, 0.1, 0.45, 0.1)) as figure:
        axes = figure.subplots()
        for track in tracks:
            heights = 100 * np.array(track.positions)[:, 2]
            _draw(axes, np.array(track.times_s), heights, _colour(track))
        axes.axhline(100 * BLOCK_SIZE_M, color=FAINT, linestyle="--", linewidth=0.8)
        axes.set_xlabel("simulated time [s]")
        axes.set_ylabel("height over the table [cm]")
        svg = svg_of(figure, "height")
    return figure_html(svg, "Height", "Height of the tool over time")


def _draw(axes: object, x: np.ndarray, y: np.ndarray, colour: tuple[float, ...]) -> None:
    axes.plot(x, y, color=colour, linewidth=1.6)  # type: ignore[attr-defined]
    axes.plot(x[:1], y[:1], "s", color=INK, markersize=5)  # type: ignore[attr-defined]
    axes.plot(x[-1:], y[-1:], "o", color=colour, markersize=7, markerfacecolor="none")  # type: ignore[attr-defined]


def _colour(track: Track) -> tuple[float, ...]:
    return COLOURS[track.episode.task.target] if track.episode.task else _UNKNOWN
