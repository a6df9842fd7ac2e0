"""An audit as one HTML file: findings first, then the numbers behind them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from openvla_ros.evaluation.audit.audit_report import AuditReport
from openvla_ros.evaluation.report.page import (
    Html,
    Section,
    findings_html,
    html_page,
    notice,
    paragraph,
    table_html,
    text,
)

MOST_ROWS = 200  # of a table of episodes or tasks; audit.json has all
LARGEST_SIDE = 320  # pixels of a sample frame


def audit_page(report: AuditReport, sources: Sequence[str]) -> str:
    """Return the page; `sources` are named as the user has named them."""
    problems = [finding for finding in report.findings if finding.level == "problem"]
    warning = (
        notice(
            f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}.",
            "Do not train on this recording, or judge a policy by it, before they are solved.",
            [f"{finding.item}: {finding.value}" for finding in problems],
        )
        if problems
        else ""
    )
    key = f", statistics key {report.unnorm_key}" if report.unnorm_key else ", no statistics key"
    size = f"{len(report.episodes)} episodes, {report.steps} steps"
    return html_page(
        "Audit of recorded episodes",
        [Section("Findings", findings_html(report.findings)), *_sections(report)],
        subtitle=f"{', '.join(sources)}: {size}{key}",
        notice_html=warning,
    )


def _sections(report: AuditReport) -> Iterable[Section]:
    measured = report.measured
    if report.samples:
        yield Section("Frames", _frames(report))
    yield Section("Tasks", _tasks(measured["language"]))
    if measured["scale"] is not None:
        yield Section("Action scale", _scale(measured["scale"]))
    if measured["tracking"] is not None:
        yield Section("Actions and states", _tracking(measured["tracking"]))
    yield Section("Episodes", _episodes(report), on_new_page=True)


def _frames(report: AuditReport) -> str:
    words = "First frames, in the colours the model gets: skin and wood must not be blue."
    figures = "".join(_frame(name, image) for name, image in report.samples)
    return paragraph(words) + Html(f'<div class="figures">{figures}</div>')


def _frame(name: str, image: np.ndarray) -> str:
    scale = min(1.0, LARGEST_SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    data = base64.b64encode(encoded.tobytes()).decode("ascii")
    return (
        f'<figure class="card"><img src="data:image/jpeg;base64,{data}" '
        f'alt="First frame of {text(name)}"><figcaption>{text(name)}, {image.shape[1]} × '
        f"{image.shape[0]}</figcaption></figure>"
    )


def _tasks(language: Mapping[str, Any]) -> str:
    rows = [
        [repr(task["instruction"])[1:-1], task["episodes"], task["steps"]]
        for task in language["tasks"][:MOST_ROWS]
    ]
    return table_html(["Instruction", "Episodes", "Steps"], rows) + _cut(len(language["tasks"]))


def _scale(scale: Mapping[str, Any]) -> str:
    axes = [
        [axis["axis"], _percent(axis["outside_share"]), f"{axis['spread_ratio']:.2f}"]
        for axis in scale["axes"]
    ]
    keys = sorted(scale["misfit_by_key"].items(), key=lambda entry: entry[1])
    words = (
        f"Against {scale['unnorm_key']}. 2 % outside and a ratio of about 1 are expected; the "
        "ratio is (q99 - q01) of the recording, divided by that of the key."
    )
    return (
        paragraph(words)
        + table_html(["Axis", "Outside q01–q99", "Spread ratio"], axes)
        + table_html(
            ["Statistics key", "Typical axis off by"],
            [[key, f"{misfit:.2f}"] for key, misfit in keys[:MOST_ROWS]],
            "Keys of the checkpoint by the size of their steps",
        )
    )


def _tracking(tracking: Mapping[str, Any]) -> str:
    lags = [[f"{lag:+d}", f"{value:.2f}"] for lag, value in tracking["correlation_by_lag"].items()]
    axes = [
        [axis, "does not move" if value is None else f"{value:+.2f}"]
        for axis, value in tracking["correlation_by_axis"].items()
    ]
    return (
        paragraph(
            "Correlation of the commanded step with the reached one. A positive lag means that the "
            "arm moves after its command: between 0 and 1 is usual."
        )
        + table_html(["Lag in steps", "Mean correlation"], lags)
        + table_html(["Axis", "At the best lag"], axes)
    )


def _episodes(report: AuditReport) -> str:
    rows = [
        [
            row.episode,
            row.instruction,
            row.steps,
            row.steps_without_action,
            "n/a" if row.idle_share is None else _percent(row.idle_share),
            "n/a" if row.longest_pause_s is None else f"{row.longest_pause_s:.1f} s",
            "n/a" if row.gripper_events is None else row.gripper_events,
            row.repeated_frames,
        ]
        for row in report.episodes[:MOST_ROWS]
    ]
    headings = [
        "Episode",
        "Instruction",
        "Steps",
        "Without action",
        "Idle",
        "Longest pause",
        "Gripper events",
        "Repeated frames",
    ]
    return table_html(headings, rows) + _cut(len(report.episodes))


def _cut(rows: int) -> str:
    if rows <= MOST_ROWS:
        return ""
    return paragraph(f"{rows - MOST_ROWS} more rows are in audit.json.", "note")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
