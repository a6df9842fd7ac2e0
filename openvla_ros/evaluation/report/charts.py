"""Small charts of a report: lines over steps, bars, a histogram. Each gives one `<svg>`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from openvla_ros.evaluation.report.page import Html, text
from openvla_ros.evaluation.report.svg import FAINT, INK, drawing, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Locator

WIDTH_IN, HEIGHT_IN = 3.4, 1.9
_MARGINS_IN = (0.52, 0.06, 0.4, 0.26)
_BAR_MARGINS_IN = (1.25, 0.1, 0.08, 0.3)
_LONGEST_LABEL = 18  # characters beside a bar
MOST_POINTS = 400  # of one line: a chart this wide shows no more


@dataclass(frozen=True)
class LineStyle:
    """How one variant is drawn, everywhere: a colour and a dash pattern of its own."""

    colour: str
    dashes: tuple[float, ...]
    marker: str


RECORDED = LineStyle(INK, (), "")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b")
_DASHES = ((4, 1.5), (1.5, 1.2), (6, 1.5, 1.5, 1.5), (8, 2), (3, 1, 1, 1, 1, 1), (1, 2))
_MARKERS = "osD^vP"


def styles_of(variants: Sequence[str]) -> dict[str, LineStyle]:
    """Return a style for every variant; after six the colours begin again with other dashes."""
    styles = {}
    for index, name in enumerate(variants):
        shift = index + index // len(_COLOURS)
        styles[name] = LineStyle(
            _COLOURS[index % len(_COLOURS)],
            _DASHES[shift % len(_DASHES)],
            _MARKERS[shift % len(_MARKERS)],
        )
    return styles


def legend_html(styles: Mapping[str, LineStyle]) -> Html:
    """Return one line that says which style is which."""
    entries = []
    for name, style in {"recorded": RECORDED, **styles}.items():
        colour = "currentColor" if style.colour == INK else style.colour
        dashes = f' stroke-dasharray="{" ".join(str(2 * d) for d in style.dashes)}"'
        entries.append(
            '<span><svg viewBox="0 0 44 10" aria-hidden="true"><path d="M1 5H43" '
            f'stroke="{colour}" stroke-width="{2.6 if style is RECORDED else 2}"'
            f"{dashes if style.dashes else ''}></path></svg>{text(name)}</span>"
        )
    return Html(f'<p class="legend">{"".join(entries)}</p>\n')


def series_svg(
    name: str,
    title: str,
    unit: str,
    recorded: np.ndarray,
    predicted: Mapping[str, np.ndarray],
    styles: Mapping[str, LineStyle],
    invalid: Mapping[str, np.ndarray],
) -> str:
    """Return one number of the action over the steps of an episode.

    Args:
        name: Of the drawing, unique in the page.
        title: What is drawn.
        unit: Of the numbers; "" for none.
        recorded: (T,), NaN where nothing was recorded.
        predicted: Variant to (T,).
        styles: Variant to its style.
        invalid: Variant to (T,) bool: steps whose answer is no action; marked with a cross.
    """
    with drawing(WIDTH_IN, HEIGHT_IN, _MARGINS_IN) as figure:
        axes = figure.subplots()
        _line(axes, recorded, RECORDED, 2.0)
        for variant, values in predicted.items():
            _line(axes, values, styles[variant], 1.4)
            wrong = np.flatnonzero(invalid[variant])[:MOST_POINTS]
            axes.plot(wrong, values[wrong], "x", color=styles[variant].colour, markersize=7)
        axes.set_title(f"{title} [{'°' if unit == 'deg' else unit}]" if unit else title)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(_whole_numbers())
        axes.margins(x=0.02)
        if unit:
            axes.axhline(0.0, color=FAINT, linewidth=0.7, zorder=0)
        else:
            axes.set_ylim(-0.1, 1.1)
        return svg_of(figure, name)


def _line(axes: Axes, values: np.ndarray, style: LineStyle, width: float) -> None:
    steps = thinned(values)
    few = len(values) <= 40
    axes.plot(
        steps,
        values[steps],
        color=style.colour,
        linewidth=width,
        linestyle=(0, style.dashes) if style.dashes else "-",
        marker=(style.marker or ".") if few else "",
        markersize=2.8 if style.marker else 5,
    )


def _whole_numbers() -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, integer=True)


def thinned(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Return the indices of `values` to draw: all, or the lowest and highest of each stretch.

    A spike of one step stays visible, however long the episode.
    """
    if len(values) <= most:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), most // 2):
        part = values[stretch]
        if np.isfinite(part).any():
            kept |= {int(stretch[np.nanargmin(part)]), int(stretch[np.nanargmax(part)])}
        if np.isnan(part).any():  # the gap in the line stays, too
            kept.add(int(stretch[np.flatnonzero(np.isnan(part))[0]]))
    return np.array(sorted(kept))


def bars_svg(name: str, title: str, bars: Sequence[tuple[str, float, str, str]]) -> str:
    """Return horizontal bars, the first one on top.

    Args:
        name: Of the drawing, unique in the page.
        title: What is drawn, with its unit.
        bars: Label, length, label of the length, and colour; "" is the grey of a baseline.
    """
    with drawing(WIDTH_IN, 0.4 + 0.24 * len(bars), _BAR_MARGINS_IN) as figure:
        axes = figure.subplots()
        places = np.arange(len(bars))[::-1]
        for place, (_, length, words, colour) in zip(places, bars, strict=True):
            axes.barh(
                place,
                length,
                height=0.62,
                color=colour or "none",
                edgecolor=colour or FAINT,
                hatch="" if colour else "////",
                linewidth=0.8,
            )
            axes.annotate(
                words, (max(length, 0.0), place), (3, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(places, [_cut(label) for label, *_ in bars])
        axes.set_title(title)
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines.bottom.set_visible(False)
        axes.tick_params(left=False)
        lengths = [length for _, length, *_ in bars]
        axes.set_xlim(min(0.0, 1.1 * min(lengths)), 1.4 * max(*lengths, 1e-9))
        return svg_of(figure, name)


def _cut(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"


def histogram_svg(
    name: str, title: str, values_ms: np.ndarray, style: LineStyle, marks: Sequence[float]
) -> str:
    """Return how often each latency occurs; what is beyond the right edge is in the last bar.

    Args:
        name: Of the drawing, unique in the page.
        title: What is drawn.
        values_ms: (N,) latencies, N > 0.
        style: Of the variant.
        marks: Milliseconds, each a vertical line: dashed, dotted, dash-dotted.
    """
    edge = latency_edge(values_ms)
    low = 0.9 * min(float(values_ms.min()), *marks, edge)
    with drawing(WIDTH_IN, HEIGHT_IN, _MARGINS_IN) as figure:
        axes = figure.subplots()
        axes.hist(
            np.minimum(values_ms, edge),
            bins=np.linspace(max(0.0, low), edge, 31).tolist(),
            color=style.colour,
            linewidth=0.4,
            edgecolor="white",
        )
        patterns: Any = ("--", ":", "-.")
        for place, pattern in zip(marks, patterns, strict=False):
            if place <= edge:
                axes.axvline(place, color=INK, linewidth=1.2, linestyle=pattern)
        axes.set_title(title)
        axes.set_xlabel("ms per answer")
        axes.set_ylabel("answers")
        axes.yaxis.set_major_locator(_whole_numbers())
        return svg_of(figure, name)


def latency_edge(values_ms: np.ndarray) -> float:
    """Return the right edge of a latency histogram: one slow answer does not squeeze all others."""
    return float(min(values_ms.max(), 1.5 * np.percentile(values_ms, 99))) or 1.0
