"""What a reader wants to know first: findings, the baselines, the comparison of variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openvla_ros.evaluation.report.charts import LineStyle, bars_svg
from openvla_ros.evaluation.report.metric_table import (
    AGAINST_BASELINES,
    BASELINES,
    L1,
    METRICS,
    ROTATION,
    TRANSLATION,
    Metric,
    missing_notes,
)
from openvla_ros.evaluation.report.page import (
    Html,
    Section,
    figure_html,
    figures_html,
    findings_html,
    notice,
    paragraph,
    side_by_side,
    table_html,
    verdict,
)
from openvla_ros.evaluation.report.quantities import (
    NOT_AVAILABLE,
    Units,
    count,
    joined,
    moment,
    quantity,
)
from openvla_ros.evaluation.report.results import Results

BETTER, NOT_BETTER = "✔", "✖"
MOST_PROBLEMS = 50
_NOTE = "note"
#: A policy that does not beat the first two has learned nothing; the third one has seen a person.
_LEVEL_OF_DEFEAT = {"zero": "problem", "mean_action": "problem", "previous_action": "warn"}
COMPARED = {
    "translation_error": "Translation error",
    "rotation_error": "Rotation error",
    "normalized_l1": "Normalised L1 error",
    "direction_cosine": "Direction cosine",
    "gripper_accuracy": "Gripper accuracy",
    "tokens_equal": "Tokens equal to the recorded ones",
    "latency": "Latency",
    "token_agreement": "Tokens equal to the reference's",
    "action_agreement": "Actions equal to the reference's",
}
_SHARES = ("gripper_accuracy", "tokens_equal", "token_agreement", "action_agreement")
_VERDICT_LEVELS = {"better": "ok", "worse": "problem"}
_CHARTED = (TRANSLATION, ROTATION, L1)


def incomplete_notice(results: Results) -> Html:
    """Return a box that says what is missing, or nothing for a replay that is complete."""
    if results.metrics["complete"]:
        return Html("")
    problems = [str(problem) for problem in results.metrics["problems"]]
    listed = problems[:MOST_PROBLEMS]
    if len(listed) < len(problems):
        listed.append(f"and {len(problems) - len(listed):,} more, all of them in metrics.json")
    words = "Part of what was asked for is not in this report; its figures are about the rest."
    return notice("INCOMPLETE.", words, listed)


def findings_section(results: Results) -> Section:
    """Return the findings, problems first."""
    return Section("Findings", findings_html(results.findings))


def baselines_section(results: Results, styles: Mapping[str, LineStyle]) -> Section:
    """Return whether each variant is better than policies that do not look at the image."""
    explained = "; ".join(f"“{label}” {what}" for label, what in BASELINES.values())
    tables = [_baseline_table(results, variant) for variant in results.variants]
    sentences = [
        paragraph(_beaten_sentence(v, results.figures(v), _baselines(results, v)))
        for v in results.variants
    ]
    parts = [
        *sentences,
        figures_html(_baseline_bars(results, styles)),
        side_by_side(tables),
        paragraph(f"{BETTER} better than the baseline, {NOT_BETTER} not better.", _NOTE),
        *(paragraph(note, _NOTE) for note in _baseline_notes(results)),
        paragraph(
            f"A policy that looks at the image must beat those that do not. {explained}. The last "
            "one is hard to beat, because a motion goes on as it began; and no robot has it, "
            "because it repeats what was recorded.",
            _NOTE,
        ),
    ]
    return Section("Does the policy beat the baselines?", "".join(parts))


def _baseline_table(results: Results, variant: str) -> Html:
    figures, baselines = results.figures(variant), _baselines(results, variant)
    rows = [
        [metric.label, metric.shown(metric.of(figures), results.units)]
        + [_against(metric, figures, name, baselines[name], results.units) for name in BASELINES]
        for metric in AGAINST_BASELINES
    ]
    headings = ["Figure", variant, *(label for label, _ in BASELINES.values())]
    return table_html(headings, rows, f"{variant} against the baselines")


def figures_section(results: Results) -> Section:
    """Return every figure of every variant."""
    units, variants = results.units, results.variants
    rows = [
        [metric.label, *(metric.shown(metric.of(results.figures(v)), units) for v in variants)]
        for metric in METRICS
    ]
    counts = [results.metrics["variants"][v] for v in variants]
    rows.insert(0, ["Episodes", *(f"{c['episodes']:,}" for c in counts)])
    rows.insert(1, ["Steps", *(f"{c['steps']:,}" for c in counts)])
    rows.insert(2, ["Steps without a recording", *(_lost(c) for c in counts)])
    notes = missing_notes((m, m.of(results.figures(v))) for v in variants for m in METRICS)
    return Section(
        "All figures",
        table_html(["Figure", *variants], rows) + "".join(paragraph(n, _NOTE) for n in notes),
    )


def comparison_section(results: Results) -> Section:
    """Return the paired differences of the variants."""
    entries = results.metrics["comparisons"]
    several = len(results.variants) > 2
    rows = []
    for entry in entries:
        label, unit = _compared(entry)
        rows.append(
            [
                f"{label}, {entry['variant']}" if several else label,
                quantity(entry["reference_value"], unit),
                quantity(entry["variant_value"], unit),
                _difference(entry["difference"], unit),
                _interval(entry["low"], entry["high"], unit),
                verdict(entry["verdict"], _VERDICT_LEVELS.get(entry["verdict"], "")),
                f"{entry['steps']:,}",
                f"{entry['episodes']:,}",
            ]
        )
    reference = results.variants[0]
    words = (
        f"Each variant beside {reference}, on the steps that both answered. A difference is the "
        f"variant's figure minus that of {reference}; its interval comes from drawing whole "
        "episodes again. Where the interval contains 0 the recordings show no difference."
    )
    headings = ["Figure", reference, "variant" if several else results.variants[1]]
    headings += ["Difference", "95 % interval", "Verdict", "Steps", "Episodes"]
    table = table_html(headings, rows, "Paired differences", empty="nothing to compare.")
    notes = {f"{_compared(e)[0]}: {e['note']}." for e in entries if e.get(_NOTE)}
    ordered = "".join(paragraph(note, _NOTE) for note in sorted(notes))
    return Section("Comparison of the variants", paragraph(words) + table + ordered)


def _difference(value: float | None, unit: str) -> str:
    """Return a signed difference; one of two shares is in points, not in per cent of a share."""
    if unit == "%":
        return quantity(None if value is None else 100.0 * value, "% points", signed=True)
    return quantity(value, unit, signed=True)


def _interval(low: float | None, high: float | None, unit: str) -> str:
    """Return "−1.2 to +0.3 mm"; "n/a" where an end is missing."""
    if low is None or high is None:
        return NOT_AVAILABLE
    first = _difference(low, unit).split("\u00a0")[0].removesuffix("°")
    return f"{first} to {_difference(high, unit)}"


def _compared(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Return name and unit of the numbers of a comparison."""
    name = entry["metric"]
    return COMPARED.get(name, name.replace("_", " ").capitalize()), (
        "%" if name in _SHARES else entry["unit"]
    )


def _baselines(results: Results, variant: str) -> Mapping[str, Mapping[str, Any] | None]:
    stored = results.metrics["variants"][variant]["baselines"]
    return {name: stored.get(name) for name in BASELINES}


def _beside(figures: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the policy's figures on the steps that a baseline has an answer to."""
    return (baseline or {}).get("policy_on_same_steps") or figures


def beats(metric: Metric, policy: float | None, baseline: float | None) -> bool | None:
    """Return whether the policy's number is the better one; None where one is missing."""
    if policy is None or baseline is None:
        return None
    return policy < baseline if metric.better == "lower" else policy > baseline


def _against(
    metric: Metric,
    figures: Mapping[str, Any],
    name: str,
    baseline: Mapping[str, Any] | None,
    units: Units,
) -> Html:
    """Return a baseline's number, with a mark that says whether the policy beats it."""
    value = metric.of(baseline)
    better = beats(metric, metric.of(_beside(figures, baseline)), value)
    words = metric.shown(value, units)
    if better is None:
        return verdict(words, "")
    level = "ok" if better else _LEVEL_OF_DEFEAT[name]
    return verdict(f"{words} {BETTER if better else NOT_BETTER}", level)


def _beaten_sentence(
    variant: str, figures: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any] | None]
) -> Html:
    """Return "base beats Zero in 5 of 5 figures, ..."."""
    parts = []
    for name, (label, _) in BASELINES.items():
        baseline = baselines[name]
        beside = _beside(figures, baseline)
        wins = [beats(m, m.of(beside), m.of(baseline)) for m in AGAINST_BASELINES]
        known = [win for win in wins if win is not None]
        if known:
            won = sum(known)
            level = "ok" if won == len(known) else _LEVEL_OF_DEFEAT[name]
            words = f"“{label}” in {won} of {len(known)} figures"
            parts.append(verdict(words, level))
    if not parts:
        return Html(f"{verdict(variant, '')}: nothing was recorded that it could be judged by.")
    return Html(f"<strong>{verdict(variant, '')}</strong> beats {joined(parts)}.")


def _baseline_notes(results: Results) -> list[str]:
    notes = []
    previous = _baselines(results, results.variants[0])["previous_action"]
    if previous is None:
        notes.append("Previous action: n/a, because no recorded step follows another.")
    elif "steps" in previous:
        notes.append(
            f"Previous action: on the {previous['steps']:,} steps that follow a recorded one; its "
            "marks compare with the policy on the same steps."
        )
    return notes + missing_notes(
        (metric, metric.of(results.figures(v)))
        for v in results.variants
        for metric in AGAINST_BASELINES
    )


def _baseline_bars(results: Results, styles: Mapping[str, LineStyle]) -> list[Html]:
    """Return a chart per error: the variants in their colours, the baselines in grey."""
    charts = []
    reference = results.variants[0]
    for metric in _CHARTED:
        bars = [(v, metric.of(results.figures(v)), styles[v].colour) for v in results.variants]
        bars += [
            (label, metric.of(_baselines(results, reference)[name]), "")
            for name, (label, _) in BASELINES.items()
        ]
        known = [
            (label, value, metric.shown(value, results.units), colour)
            for label, value, colour in bars
            if value is not None
        ]
        if known:
            unit = metric.unit_in(results.units)
            title = f"{metric.label} [{'°' if unit == 'deg' else unit}]" if unit else metric.label
            words = "; ".join(f"{label} {shown}" for label, _, shown, _ in known)
            svg = bars_svg(f"bars-{metric.path[0].replace('_', '-')}", title, known)
            charts.append(figure_html(svg, "", f"{metric.label}: {words}"))
    return charts


def _lost(counts: Mapping[str, Any]) -> str:
    return f"{counts['steps_without_recording']:,}"


def summary_line(results: Results) -> str:
    """Return how much was replayed, in a few words."""
    sources: Sequence[Mapping[str, Any]] = results.metrics["sources"]
    episodes, steps = (sum(source[key] for source in sources) for key in ("episodes", "steps"))
    names = results.variants
    return (
        f"{count(episodes, 'episode')} with {count(steps, 'step')} from "
        f"{count(len(sources), 'source')}, answered by {joined(names)}. Statistics key "
        f"{results.metrics['unnorm_key']}. Made {moment(results.metrics['created'])}."
    )
