"""Where a report comes from, and what its numbers mean: the last pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openvla_ros.evaluation.report.metric_table import BASELINES, METRICS
from openvla_ros.evaluation.report.page import (
    Html,
    Section,
    definitions_html,
    subheading,
    table_html,
    text,
)
from openvla_ros.evaluation.report.quantities import NOT_AVAILABLE, Units, moment
from openvla_ros.evaluation.report.results import Results

MOST_SOURCES = 50
_OTHER_TERMS = (
    (
        "Step",
        "One image of a recording and the action that followed it. A replay answers every image "
        "once, in order, without a robot: the next image is the recorded one, whatever the policy "
        "said.",
    ),
    (
        "n/a",
        "There is no such number, for the reason that stands near it. It is never replaced by 0.",
    ),
    (
        "95 % interval",
        "Of a difference between two variants: it is computed again from episodes drawn at random, "
        "each as often as chance has it, and 95 % of the results lie in the interval.",
    ),
)


def provenance_section(results: Results) -> Section:
    """Return with what, from what, how and when this was made."""
    metrics = results.metrics
    parts = [Html(f"<pre>{text(metrics.get('command') or 'command not known')}</pre>")]
    facts = [["Made", moment(metrics["created"])], ["Statistics key", metrics["unnorm_key"]]]
    facts += [[name, version] for name, version in results.versions.items()]
    parts.append(table_html(["What", "Value"], facts))
    sources = [[s["path"], f"{s['episodes']:,}", f"{s['steps']:,}"] for s in metrics["sources"]]
    caption = "Sources"
    if len(sources) > MOST_SOURCES:
        caption = f"Sources ({MOST_SOURCES} of {len(sources):,}; all are in metrics.json)"
    headings = ["Source", "Episodes", "Steps"]
    parts.append(table_html(headings, sources[:MOST_SOURCES], caption))
    for variant in results.variants:
        parts.append(subheading(variant))
        policy = metrics["variants"][variant]["policy"]
        parts.append(table_html(["Policy", "Value"], _policy_rows(policy)))
    spec = metrics["action_spec"]
    known_from: Mapping[str, str] = spec.get("sources") or {}
    rows = [
        [name, NOT_AVAILABLE if value is None else value, known_from.get(name, "")]
        for name, value in spec.items()
        if name != "sources"
    ]
    parts.append(table_html(["Action", "Value", "Known from"], rows, "What the actions mean"))
    return Section("Where this comes from", "".join(parts), on_new_page=True)


def glossary_section(units: Units) -> Section:
    """Return what each number means."""
    entries: list[tuple[object, object]] = []
    for metric in METRICS:
        unit = metric.unit_in(units)
        better = f" {metric.better.capitalize()} is better." if metric.better else ""
        label = f"{metric.label} [{'°' if unit == 'deg' else unit}]" if unit else metric.label
        entries.append((label, metric.meaning + better))
    entries += [
        (f"Baseline “{label}”", f"{m[0].upper()}{m[1:]}.") for label, m in BASELINES.values()
    ]
    entries += _OTHER_TERMS
    return Section("What the numbers mean", definitions_html(entries))


def _policy_rows(policy: Mapping[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = [
        [name.replace("_", " "), value or "–"]
        for name, value in policy.items()
        if not isinstance(value, Mapping)
    ]
    rows += [[name, value] for name, value in (policy.get("choices") or {}).items()]
    return rows
