"""Episodes as they went: lines over steps, paths in space, pictures of the worst steps."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openvla_ros.evaluation.episode_record import EpisodeRecord, read_record
from openvla_ros.evaluation.report.charts import (
    MOST_POINTS,
    LineStyle,
    legend_html,
    series_svg,
)
from openvla_ros.evaluation.report.page import (
    Html,
    Section,
    episode_html,
    figure_html,
    figures_html,
    paragraph,
    subheading,
    table_html,
    text,
    verdict,
)
from openvla_ros.evaluation.report.path_chart import integrated_path, path_svgs
from openvla_ros.evaluation.report.quantities import (
    NOT_AVAILABLE,
    Units,
    count,
    dimension_name,
    joined,
    quantity,
)
from openvla_ros.evaluation.report.results import Results
from openvla_ros.evaluation.report.selection import (
    Digest,
    ShownEpisode,
    WorstStep,
    chosen_episodes,
    ranked_rows,
)

NO_ACTION = "The answer is no action: invalid tokens."
MOST_ROWS = 200  # of the table of episodes
_ARM = 6  # numbers of an action that move the arm; the path needs them


@dataclass(frozen=True)
class Answered:
    """One shown episode with the record of every variant that has one."""

    shown: ShownEpisode
    records: Mapping[str, EpisodeRecord]

    @property
    def any_record(self) -> EpisodeRecord:
        """What was recorded is the same for all."""
        return next(iter(self.records.values()))

    @property
    def heading(self) -> str:
        """Name, instruction, and why it was chosen."""
        record = self.any_record
        why = f" ({self.shown.why})" if self.shown.why else ""
        return f"{record.episode}{why}: “{record.instruction}”"


def answered_episodes(results: Results, digests: Mapping[str, Digest]) -> list[Answered]:
    """Return the episodes to show with their records.

    Raises:
        ConfigurationError: A record is damaged.
    """
    rows = results.metrics["variants"][results.variants[0]]["per_episode"]
    answered = []
    for shown in chosen_episodes(rows):
        files = {v: digests[v].files.get(shown.key) for v in results.variants}
        records = {v: read_record(path) for v, path in files.items() if path is not None}
        if records:
            answered.append(Answered(shown, records))
    return answered


def series_section(
    results: Results, answered: Sequence[Answered], styles: Mapping[str, LineStyle]
) -> Section:
    """Return predicted and recorded numbers of the action over the steps of each episode."""
    parts = [paragraph(_how_many(results, answered))]
    parts.append(
        paragraph(
            "Every answer is to the recorded image of its step; a cross marks an answer that is no "
            f"action. Of episodes longer than {MOST_POINTS} steps each stretch is drawn by its "
            "lowest and its highest value.",
            "note",
        )
    )
    for number, episode in enumerate(answered):
        record = episode.any_record
        length = f"{count(len(record), 'step')} of {quantity(1.0 / record.rate_hz, 's')}"
        parts.append(
            episode_html(
                [
                    subheading(episode.heading),
                    paragraph(f"{length}; {record.source}", "note"),
                    legend_html({v: styles[v] for v in episode.records}),
                    figures_html(_series(f"s{number}", episode, styles, results.units)),
                ],
                on_one_sheet=False,
            )
        )
    return Section("Predicted and recorded actions", "".join(parts), on_new_page=True)


def path_section(
    results: Results, answered: Sequence[Answered], styles: Mapping[str, LineStyle]
) -> Section:
    """Return where the translations lead, added up step by step."""
    parts = [
        paragraph(
            "The translations of an episode, added up step by step from one start (square) to the "
            "end (ring), on axes of one scale. It shows whether errors cancel or add up to a "
            "drift. It is not where the robot would go: every answer is to a recorded image, and a "
            "robot that has left the recorded path sees something else."
        )
    ]
    for number, episode in enumerate(answered):
        drawn = _path(f"p{number}", episode, styles, results)
        parts.append(episode_html([subheading(episode.heading), drawn], on_one_sheet=True))
    return Section("Integrated path", "".join(parts))


def worst_section(results: Results, digests: Mapping[str, Digest]) -> Section:
    """Return pictures of the steps that are furthest off, with both actions."""
    parts: list[str] = [
        paragraph(
            "The steps that are furthest from the recording. Order: translation and rotation "
            "error, each divided by its mean, plus the difference of the gripper; two steps of an "
            "episode at most."
        )
    ]
    for variant in results.variants:
        worst = digests[variant].worst
        total = results.metrics["variants"][variant]["steps"]
        parts.append(subheading(f"{variant}: {len(worst)} of {total:,} steps"))
        if not worst:
            parts.append(paragraph("No step has both a recorded action and a stored picture."))
            continue
        cards = "".join(_card(step, results.units) for step in worst)
        parts.append(f'<div class="cards">\n{cards}</div>')
    return Section("Worst steps", "".join(parts))


def episodes_section(results: Results) -> Section:
    """Return one row per episode, the worst of the reference variant first."""
    variants, units = results.variants, results.units
    rows_of = {
        v: {(r["source"], r["episode"]): r for r in results.metrics["variants"][v]["per_episode"]}
        for v in variants
    }
    ranked = ranked_rows(list(rows_of[variants[0]].values()))
    shown = ranked[:MOST_ROWS]
    if len(variants) == 1:
        columns = ["Translation", "Rotation", "Cosine", "Gripper", "Tokens"]
        figures = [_all_figures(row, units) for row in shown]
    else:
        columns = [f"{what}, {v}" for v in variants for what in ("Translation", "Rotation")]
        keys = [(row["source"], row["episode"]) for row in shown]
        figures = [
            [cell for v in variants for cell in _two_errors(rows_of[v].get(key), units)]
            for key in keys
        ]
    rows = [
        [row["episode"], row["instruction"], f"{row['steps']:,}", *cells]
        for row, cells in zip(shown, figures, strict=True)
    ]
    words = f"Sorted by the translation error of {variants[0]}, largest first."
    if len(shown) < len(ranked):
        words += f" {len(shown)} of {len(ranked):,} episodes; all are in metrics.json."
    table = table_html(["Episode", "Instruction", "Steps", *columns], rows, "Means over steps")
    has_gaps = any(NOT_AVAILABLE in cells for cells in figures)
    why = "nothing was recorded, every step is a pause (cosine), or the gripper is not known"
    note = paragraph(f"n/a: {why}.", "note") if has_gaps else ""
    return Section("Episodes", paragraph(words) + table + note)


def _how_many(results: Results, answered: Sequence[Answered]) -> str:
    total = results.metrics["variants"][results.variants[0]]["episodes"]
    if len(answered) == total:
        return f"All {count(total, 'episode')}."
    return (
        f"{len(answered)} of {count(total, 'episode')}: the worst, the middle and the best, by the "
        f"translation error of {results.variants[0]}."
    )


def _series(
    name: str, episode: Answered, styles: Mapping[str, LineStyle], units: Units
) -> list[Html]:
    record = episode.any_record
    recorded = units.shown(record.recorded)
    predicted = {v: units.shown(r.predicted) for v, r in episode.records.items()}
    invalid = {v: ~r.is_valid for v, r in episode.records.items()}
    charts = []
    length = recorded.shape[1]
    for dimension in range(length):
        title, unit = dimension_name(dimension, length), units.of_dimension(dimension, length)
        svg = series_svg(
            f"{name}-{dimension}",
            title if unit else f"{title} (dataset value)",
            unit,
            recorded[:, dimension],
            {v: values[:, dimension] for v, values in predicted.items()},
            styles,
            invalid,
        )
        words = f"{title} over the steps of {record.episode}, recorded and predicted"
        charts.append(figure_html(svg, "", words))
    return charts


def _path(name: str, episode: Answered, styles: Mapping[str, LineStyle], results: Results) -> str:
    record = episode.any_record
    if record.recorded.shape[1] <= _ARM:
        return paragraph(
            f"n/a: its actions have {record.recorded.shape[1]} numbers, and which of them are "
            "translations is not known."
        )
    known = np.isfinite(record.recorded[:, :_ARM]).all(axis=1)
    for other in episode.records.values():
        known &= np.isfinite(other.predicted[:, :_ARM]).all(axis=1)
    if not known.any():
        return paragraph("n/a: no step has a recorded action.")
    recorded = integrated_path(record.recorded[known], results.spec, results.units)
    predicted = {
        v: integrated_path(r.predicted[known], results.spec, results.units)
        for v, r in episode.records.items()
    }
    unit = results.units.translation
    apart = [
        f"{v} ends {quantity(float(np.linalg.norm(path[-1] - recorded[-1])), unit)} from its end"
        for v, path in predicted.items()
    ]
    length = float(np.linalg.norm(np.diff(recorded, axis=0), axis=1).sum())
    words = f"The recorded path is {quantity(length, unit)} long; {joined(apart)}."
    left_out = len(known) - int(known.sum())
    if left_out:
        words += f" {count(left_out, 'step')} without a recording or an answer left out of all."
    views = path_svgs(name, recorded, predicted, styles, unit)
    figures = [
        figure_html(svg, view, f"Path of {record.episode} {view}. {words}") for view, svg in views
    ]
    return legend_html({v: styles[v] for v in predicted}) + figures_html(figures) + paragraph(words)


def _card(worst: WorstStep, units: Units) -> str:
    """Return one picture with the actions below it."""
    length = len(worst.recorded)
    both = [units.shown(action[None])[0] for action in (worst.recorded, worst.predicted)]
    rows = []
    for dimension in range(length):
        name, unit = dimension_name(dimension, length), units.of_dimension(dimension, length)
        recorded, predicted = (float(action[dimension]) for action in both)
        numbers = (recorded, predicted, predicted - recorded)
        rows.append(
            [
                f"{name} [{'°' if unit == 'deg' else unit}]" if unit else name,
                *(_fixed(number, unit) for number in numbers),
            ]
        )
    table = table_html(["", "recorded", "predicted", "error"], rows)
    alarm = "" if worst.is_valid else Html(f"<br>{verdict(NO_ACTION, 'problem')}")
    data = base64.b64encode(worst.jpeg).decode("ascii")
    alt = text(f"Image of step {worst.step} of {worst.episode}")
    return (
        f'<figure class="card"><img src="data:image/jpeg;base64,{data}" alt="{alt}">'
        f"<figcaption>“{text(worst.instruction)}”<br>"
        f'<span class="reason">{text(worst.episode)}, step {worst.step}</span>{alarm}{table}'
        "</figcaption></figure>\n"
    )


def _fixed(value: float, unit: str) -> str:
    """Return a number as it stands in a column: tenths of a mm or degree."""
    if unit not in ("mm", "deg", "") or not math.isfinite(value):
        return quantity(value)
    words = f"{value:+.1f}" if unit else f"{value:.2f}"
    return words.replace("-", "−") if float(words) else words.lstrip("+-")


def _all_figures(row: Mapping[str, Any], units: Units) -> list[str]:
    return [
        quantity(row["translation_error"], units.translation),
        quantity(row["rotation_error"], units.rotation),
        quantity(row["direction_cosine"]),
        quantity(row["gripper_accuracy"], "%"),
        quantity(row["tokens_equal"], "%"),
    ]


def _two_errors(row: Mapping[str, Any] | None, units: Units) -> list[str]:
    row = row or {}
    return [
        quantity(row.get("translation_error"), units.translation),
        quantity(row.get("rotation_error"), units.rotation),
    ]
