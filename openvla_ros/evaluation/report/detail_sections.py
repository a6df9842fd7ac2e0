"""Tables behind the verdicts: errors per axis, the gripper's events, how long answers took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from openvla_ros.evaluation.report.charts import LineStyle, histogram_svg, latency_edge
from openvla_ros.evaluation.report.page import (
    Html,
    Section,
    figure_html,
    figures_html,
    paragraph,
    side_by_side,
    table_html,
    verdict,
)
from openvla_ros.evaluation.report.quantities import (
    AXES,
    NOT_AVAILABLE,
    count,
    dimension_name,
    joined,
    quantity,
)
from openvla_ros.evaluation.report.results import Results
from openvla_ros.evaluation.report.selection import Digest

MOST_EVENTS = 20
_KINDS = {"open": "opens", "close": "closes"}


def axes_section(results: Results) -> Section:
    """Return the mean absolute error of each axis, and how many of its tokens are right."""
    units = results.units
    rows = []
    for dimension, axis in enumerate(AXES):
        part, place = ("translation_error", "rotation_error")[dimension // 3], dimension % 3
        unit = (units.translation, units.rotation)[dimension // 3]
        errors = [_item(results.figures(v)[part], "by_axis", place) for v in results.variants]
        rows.append([axis, *(quantity(error, unit) for error in errors)])
    tokens = [results.figures(v).get("tokens") or {} for v in results.variants]
    length = max(len(stored.get("equal_by_dimension") or ()) for stored in tokens)
    shares = [
        [
            dimension_name(dimension, length),
            *(quantity(_item(stored, "equal_by_dimension", dimension), "%") for stored in tokens),
        ]
        for dimension in range(length)
    ]
    errors_table = table_html(["Axis", *results.variants], rows, "Mean absolute error of a step")
    tokens_table = table_html(["Number", *results.variants], shares, "Tokens equal to the recorded")
    notes = [*_axis_notes(rows), *_token_notes(shares)]
    return Section(
        "Errors per axis",
        side_by_side([errors_table, tokens_table])
        + "".join(paragraph(note, "note") for note in notes),
    )


def _axis_notes(rows: Sequence[Sequence[object]]) -> list[str]:
    if not any(NOT_AVAILABLE in row for row in rows):
        return []
    return ["n/a: nothing was recorded for this axis, or the actions have no known layout."]


def _token_notes(rows: Sequence[Sequence[object]]) -> list[str]:
    if not any(NOT_AVAILABLE in row for row in rows):
        return []
    return ["Tokens n/a: this number of the action was never recorded."]


def gripper_section(results: Results) -> Section:
    """Return how well the gripper opens and closes, and when."""
    variants = results.variants
    rows = []
    for key, label, unit in (
        ("accuracy", "Steps with the recorded state", "%"),
        ("precision", "Precision of “closed”", "%"),
        ("recall", "Recall of “closed”", "%"),
        ("f1", "F1 of “closed”", "%"),
        ("recorded_events", "Recorded openings and closings", ""),
        ("matched_events", "… that the policy asks for within 1 s", ""),
        ("mean_delay_s", "… how much later, on average", "s"),
        ("predicted_events", "Openings and closings the policy asks for", ""),
    ):
        values = [_gripper(results, v).get(key) for v in variants]
        rows.append([label, *(_count_or(value, unit) for value in values)])
    parts = [table_html(["Gripper", *variants], rows)]
    if any(NOT_AVAILABLE in row for row in rows):
        why = "no gripper was recorded, it never closes, nothing is matched, or its values for open"
        parts.append(paragraph(f"n/a: {why} and closed are not known.", "note"))
    return Section("Gripper", "".join(parts) + _events(results))


def _events(results: Results) -> Html:
    """Return the recorded events, one row each, with the answer of every variant beside it."""
    rows_of: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for variant in results.variants:
        for event in _gripper(results, variant).get("events") or ():
            key = (event.get("source", ""), event["episode"], event["step"], event["kind"])
            rows_of.setdefault(key, {})[variant] = event
    off = {key: row for key, row in rows_of.items() if _furthest(row) > 0}
    ranked = sorted(off, key=lambda key: -_furthest(off[key]))
    rows = [
        [episode, f"{step}", _KINDS[kind]]
        + [_delay(off[source, episode, step, kind].get(v)) for v in results.variants]
        for source, episode, step, kind in ranked[:MOST_EVENTS]
    ]
    on_time = f"{len(rows_of) - len(off):,} of {count(len(rows_of), 'recorded event')}"
    words = f"{on_time} are answered at the same step by every variant."
    if len(rows) < len(off):
        words += f" Of the others {len(rows)} of {len(off):,} are listed; all are in metrics.json."
    if not rows_of:
        return paragraph("No opening or closing was recorded.", "note")
    table = table_html(
        ["Episode", "Step", "The gripper", *results.variants],
        rows,
        "Openings and closings, missed ones first",
        empty="all at the same step.",
    )
    return Html(paragraph(words) + (table if rows else ""))


def _furthest(row: Mapping[str, Mapping[str, Any]]) -> float:
    """Return the largest delay of an event, early or late, in steps; infinity where missed."""
    steps = [event["delay_steps"] for event in row.values()]
    return max(math.inf if delay is None else abs(delay) for delay in steps)


def latency_section(
    results: Results, digests: Mapping[str, Digest], styles: Mapping[str, LineStyle]
) -> Section:
    """Return how long answers took, beside the time that a step of the recording lasts."""
    rows, charts = [], []
    for variant in results.variants:
        stored, digest = results.figures(variant).get("latency_ms") or {}, digests[variant]
        times = [quantity(stored.get(key), "ms") for key in ("p50", "p90", "p99", "max")]
        rows.append([variant, *times, _late(digest)])
        if len(digest.latency_ms):
            charts.append(_histogram(variant, stored, digest, styles[variant]))
    lengths = sorted({ms for digest in digests.values() for ms in digest.step_ms})
    words = (
        "From the image to the action, on the machine that ran this replay; the first answers "
        "after loading are among them. "
    )
    if lengths:
        words += f"A step of the recordings lasts {joined([quantity(ms, 'ms') for ms in lengths])}."
    headings = ["Variant", "Median", "90th percentile", "99th percentile", "Longest"]
    table = table_html([*headings, "Answers longer than a step"], rows, "Latency of an answer")
    return Section("Latency", paragraph(words) + table + figures_html(charts))


def _gripper(results: Results, variant: str) -> Mapping[str, Any]:
    return results.figures(variant).get("gripper") or {}


def _delay(event: Mapping[str, Any] | None) -> Html:
    if event is None:  # another variant answered this episode, this one did not
        return verdict(NOT_AVAILABLE, "")
    steps = event["delay_steps"]
    if steps is None:
        return verdict("not within 1 s", "problem")
    if steps == 0:
        return verdict("at the same step", "ok")
    seconds = quantity(abs(event["delay_s"]), "s")
    words = f"{count(abs(steps), 'step')} ({seconds}) {'late' if steps > 0 else 'early'}"
    return verdict(words, "warn")


def _late(digest: Digest) -> Html:
    if digest.late is None:
        return verdict(NOT_AVAILABLE, "")
    return verdict(quantity(digest.late, "%"), "ok" if digest.late == 0.0 else "warn")


def _histogram(variant: str, stored: Mapping[str, Any], digest: Digest, style: LineStyle) -> Html:
    values = digest.latency_ms
    edge = latency_edge(values)
    marks = {"Dashed: median": stored.get("p50"), "dotted: 99th percentile": stored.get("p99")}
    if len(digest.step_ms) == 1:
        marks["dash-dotted: one step"] = digest.step_ms[0]
    known = {label: ms for label, ms in marks.items() if ms is not None}
    svg = histogram_svg(f"latency-{variant}", variant, values, style, list(known.values()))
    caption = f"{count(len(values), 'answer')}. " + "; ".join(
        f"{label} {quantity(ms, 'ms')}{'' if ms <= edge else ', beyond the right edge'}"
        for label, ms in known.items()
    )
    beyond = int((values > edge).sum())
    if beyond:
        caption += f". The last bar holds {count(beyond, 'answer')} beyond {quantity(edge, 'ms')}"
    words = f"Histogram of the latency of {variant}; median {quantity(stored.get('p50'), 'ms')}."
    return figure_html(svg, f"{caption}.", words)


def _count_or(value: float | None, unit: str) -> str:
    return f"{value:,}" if isinstance(value, int) and not unit else quantity(value, unit)


def _item(values: Mapping[str, Any] | None, key: str, place: int) -> float | None:
    stored = (values or {}).get(key)
    return stored[place] if stored and place < len(stored) else None
