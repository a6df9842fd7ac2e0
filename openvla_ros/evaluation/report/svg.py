"""Drawings of matplotlib as small, repeatable SVG elements that live in a page.

The same drawing gives the same bytes. Text stays text, lines that are ink take the colour of the
page's text, so that they are seen on white and on black.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from openvla_ros.errors import DependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT = "#010203", "#8a929c"  # INK becomes the colour of the page's text

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "openvla-ros",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "path.simplify_threshold": 0.2,
    "axes.unicode_minus": True,
}
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_COORDINATES = re.compile(r' (?:d|x|y|width|height|transform|points)="[^"]*"')
_REFERENCE = re.compile(r'(?:xlink:href="#|href="#|url\(#)([^")]+)')


def require_matplotlib() -> None:
    """Return if charts can be drawn.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "The charts of a report need matplotlib, which is not installed: "
            "pip install '.[plots]' in the folder of openvla_ros."
        ) from error


@contextmanager
def drawing(
    width_in: float, height_in: float, margins_in: tuple[float, float, float, float]
) -> Iterator[Figure]:
    """Give an empty figure; `svg_of` must be called inside.

    Args:
        width_in: Inches; a page scales it.
        height_in: Inches.
        margins_in: Left, right, bottom and top, inches. Fixed ones are four times as fast as a
            layout that measures every word, and charts of a page stand in line.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_SETTINGS):
        figure = Figure(figsize=(width_in, height_in))
        left, right, bottom, top = margins_in
        figure.subplots_adjust(
            left=left / width_in,
            right=1.0 - right / width_in,
            bottom=bottom / height_in,
            top=1.0 - top / height_in,
        )
        yield figure


def svg_of(figure: Figure, name: str) -> str:
    """Return the figure as an `<svg>` element.

    Args:
        figure: Made by `drawing`.
        name: Letters, digits and "-", different for every drawing of a page: ids begin with it.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inlined(file.getvalue(), name)


def _inlined(document: str, name: str) -> str:
    """Return the drawing of a file as an element: nothing in it reaches out of it."""
    svg = document[document.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would rule the whole page
    svg = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r"<defs>\s*</defs>", "", svg)
    used = set(_REFERENCE.findall(svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = _COORDINATES.sub(lambda m: _NUMBER.sub(lambda n: _short(n[0]), m[0]), svg)
    svg = svg.replace(INK, "currentColor").replace("'DejaVu Sans', sans-serif", "sans-serif")
    return re.sub(r"\n\s*", "\n", svg)


def _short(number: str) -> str:
    """Two decimals are a hundredth of a point: finer than any screen or printer shows."""
    return f"{float(number):.2f}".rstrip("0").rstrip(".")
