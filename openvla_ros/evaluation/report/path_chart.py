"""Where the translations of an episode lead, one after another: recorded beside predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from openvla_ros.control.displacement import StepLimits, displacement
from openvla_ros.errors import MotionError
from openvla_ros.evaluation.report.charts import MOST_POINTS, RECORDED, LineStyle
from openvla_ros.evaluation.report.quantities import Units
from openvla_ros.evaluation.report.svg import FAINT, INK, drawing, svg_of
from openvla_ros.types import ActionSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE_IN = 3.1
_UNLIMITED = StepLimits(math.inf, math.inf)
_CENTIMETRES_FROM_MM = 200.0  # a path longer than this is given in cm


def integrated_path(actions: np.ndarray, spec: ActionSpec, units: Units) -> np.ndarray:
    """Return (T + 1, 3) positions that the actions lead through, from the origin.

    In the base axes of the dataset, and for actions in tool axes from a tool that begins parallel
    to the base. Where a fact is unknown that this needs, translations are added as they are.

    Args:
        actions: (T, n) in dataset units, finite.
        spec: What the numbers mean.
        units: Units of the result.
    """
    try:
        moves = displacement(actions, spec, limits=_UNLIMITED, ee_rotation=np.eye(3)).steps[:, :3]
        steps = (
            moves * 1000.0 if units.translation == "mm" else moves / (spec.translation_unit_m or 1)
        )
    except MotionError:
        steps = actions[:, :3] * units.translation_scale
    return np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)])


def path_svgs(
    name: str,
    recorded: np.ndarray,
    predicted: Mapping[str, np.ndarray],
    styles: Mapping[str, LineStyle],
    unit: str,
) -> list[tuple[str, str]]:
    """Return three views of the paths: what each shows, and its drawing.

    Args:
        name: Of the drawings, unique in the page.
        recorded: (T + 1, 3) positions.
        predicted: Variant to (T + 1, 3).
        styles: Variant to its style.
        unit: Of the positions.
    """
    paths = [(recorded, RECORDED), *((path, styles[v]) for v, path in predicted.items())]
    reach = float(np.max(np.ptp(np.concatenate([path for path, _ in paths]), axis=0)))
    if unit == "mm" and reach > _CENTIMETRES_FROM_MM:
        paths, unit = [(path / 10.0, style) for path, style in paths], "cm"
    return [
        ("in space", _space(f"{name}-space", paths, unit)),
        ("from above", _plane(f"{name}-above", paths, unit, (0, 1))),
        ("from the side", _plane(f"{name}-side", paths, unit, (0, 2))),
    ]


def _space(name: str, paths: list[tuple[np.ndarray, LineStyle]], unit: str) -> str:
    with drawing(_SIZE_IN, _SIZE_IN, (0.15, 0.35, 0.25, 0.0)) as figure:
        axes: Any = figure.add_subplot(projection="3d")
        for path, style in paths:
            _draw(axes, path, style, (0, 1, 2))
        middle, half = _cube(paths)
        for axis, letter in enumerate("xyz"):
            getattr(axes, f"set_{letter}lim")(middle[axis] - half, middle[axis] + half)
            getattr(axes, f"set_{letter}label")(f"{letter} [{unit}]", labelpad=-4)
            pane = getattr(axes, f"{letter}axis")
            pane.set_pane_color((0.5, 0.5, 0.5, 0.06))
            pane.get_major_locator().set_params(nbins=4)
            pane.set_tick_params(pad=-3, labelsize=7)
        axes.set_box_aspect((1, 1, 1), zoom=1.02)
        axes.view_init(elev=24, azim=-60)
        return svg_of(figure, name)


def _plane(
    name: str, paths: list[tuple[np.ndarray, LineStyle]], unit: str, shown: tuple[int, int]
) -> str:
    with drawing(_SIZE_IN, _SIZE_IN, (0.55, 0.1, 0.45, 0.1)) as figure:
        axes = figure.subplots()
        for path, style in paths:
            _draw(axes, path, style, shown)
        middle, half = _cube(paths)
        axes.set_xlim(middle[shown[0]] - half, middle[shown[0]] + half)
        axes.set_ylim(middle[shown[1]] - half, middle[shown[1]] + half)
        axes.set_aspect("equal")
        axes.set_xlabel(f"{'xyz'[shown[0]]} [{unit}]")
        axes.set_ylabel(f"{'xyz'[shown[1]]} [{unit}]")
        axes.axhline(0.0, color=FAINT, linewidth=0.6, zorder=0)
        axes.axvline(0.0, color=FAINT, linewidth=0.6, zorder=0)
        return svg_of(figure, name)


def _draw(axes: Axes | Any, path: np.ndarray, style: LineStyle, shown: tuple[int, ...]) -> None:
    """Draw one path, a ring around its end, and a square where all begin."""
    most = np.linspace(0, len(path) - 1, min(len(path), MOST_POINTS)).astype(int)
    columns = [path[most, axis] for axis in shown]
    axes.plot(
        *columns,
        color=style.colour,
        linewidth=2.0 if style is RECORDED else 1.5,
        linestyle=(0, style.dashes) if style.dashes else "-",
    )
    ends = [column[-1:] for column in columns]
    axes.plot(*ends, "o", color=style.colour, markersize=6, markerfacecolor="none")
    axes.plot(*[column[:1] for column in columns], "s", color=INK, markersize=5)


def _cube(paths: list[tuple[np.ndarray, LineStyle]]) -> tuple[np.ndarray, float]:
    """Return middle and half the edge of a cube around all paths: one scale for all axes."""
    points = np.concatenate([path for path, _ in paths])
    low, high = points.min(axis=0), points.max(axis=0)
    half = 0.55 * float(np.max(high - low))
    return (low + high) / 2.0, half if half > 0.0 else 1.0
