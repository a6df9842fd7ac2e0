"""Accuracy and drafts on real frames as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from accuracy_measurement import Comparison, Drafts, FrameSet, RoundingResult
from draft_acceptance import TOKENIZER, USEFUL, Acceptance, LatencyCurve, Recorded
from overfitted_policy import Training

from openvla_ros.evaluation.metrics.token_metrics import Agreement, compare_tokens

DIMENSIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
REFERENCE = "bf16"


def accuracy_report(comparisons: Sequence[Comparison], training: Training) -> str:
    """Return the answers of every variant against bf16 and against the recording."""
    lines = [
        f"The policy: {training.parameters / 1e6:.1f} million trained weights, "
        f"{training.steps} batches over {training.frames} frames in {training.seconds:.0f} s, loss "
        f"{training.loss:.4f} per id at the end (teacher-forced; all below is free-running).",
    ]
    for comparison in comparisons:
        lines += ["", f"### {_counted(comparison.frames)}", "", *_summary(comparison)]
    lines += ["", "### Bin error against bf16 by dimension, mean / p99"]
    for comparison in comparisons:
        lines += ["", f"{_counted(comparison.frames)}:", "", *_by_dimension(comparison)]
    return "\n".join(lines)


def _counted(frames: FrameSet) -> str:
    name = frames.name[0].upper() + frames.name[1:]
    return f"{name}: {len(frames.tokens)} frames of {len(frames.episodes)} sequences"


def _summary(comparison: Comparison) -> list[str]:
    reference, recorded = comparison.variants[REFERENCE], comparison.frames.tokens
    rows = []
    for name, found in (comparison.variants | comparison.baselines).items():
        is_reference = name in (REFERENCE, *comparison.baselines)
        against = None if is_reference else compare_tokens(found, reference, TOKENIZER)
        truth = compare_tokens(found, recorded, TOKENIZER)
        rows.append([name, *_cells(against), *_cells(truth)])
    head = ["", "ids = bf16's", "actions = bf16's", "bins off bf16, mean / p99"]
    head += ["ids = recorded", "actions = recorded", "bins off the recording, mean / p99"]
    return _table(head, rows)


def _cells(agreement: Agreement | None) -> list[str]:
    if agreement is None:
        return ["–", "–", "–"]
    return [
        _percent(agreement.tokens_equal),
        _percent(agreement.actions_equal),
        f"{agreement.mean_bins:.2f} / {agreement.p99_bins:.0f}",
    ]


def _by_dimension(comparison: Comparison) -> list[str]:
    reference = comparison.variants[REFERENCE]
    rows = []
    for name, found in comparison.variants.items():
        if name != REFERENCE:
            agreement = compare_tokens(found, reference, TOKENIZER)
            pairs = zip(
                agreement.mean_bins_by_dimension, agreement.p99_bins_by_dimension, strict=True
            )
            rows.append([name, *(f"{mean:.2f} / {p99:.0f}" for mean, p99 in pairs)])
    return _table(["", *DIMENSIONS], rows)


def recorded_report(sources: Sequence[Recorded], curve: LatencyCurve) -> str:
    """Return how often consecutive recorded actions begin alike; no network is involved."""
    exact = [[s.name, str(len(s.matches)), *_shares(s.matches), _mean(s.matches)] for s in sources]
    near = [[s.name, str(len(s.near)), *_shares(s.near), _mean(s.near)] for s in sources]
    head = ["", "steps", *(str(k) for k in range(USEFUL + 1)), "mean"]
    spread = [
        f"- {s.name}: mean per sequence {_spread(s)}; latency if a policy answered exactly so: "
        f"**{curve.by_accepted(_histogram(s.matches)):.1f} ms** (calculated)"
        for s in sources
    ]
    return "\n".join(
        [
            "Share of steps whose first k of six ids equal those of the step before:",
            "",
            *_table(head, exact),
            "",
            "The same, an id counting as right when it is at most one bin off:",
            "",
            *_table(head, near),
            "",
            *spread,
        ]
    )


def _histogram(matches: np.ndarray) -> np.ndarray:
    return np.bincount(matches, minlength=USEFUL + 1)


def _shares(matches: np.ndarray) -> list[str]:
    return [_percent(share) for share in _histogram(matches) / len(matches)]


def _mean(matches: np.ndarray) -> str:
    return f"{matches.mean():.2f}"


def _spread(source: Recorded) -> str:
    means = [source.matches[source.episodes == e].mean() for e in np.unique(source.episodes)]
    low, middle, high = np.percentile(means, [0, 50, 100])
    return f"{low:.2f} / {middle:.2f} / {high:.2f} (least, median, most of {len(means)})"


def drafts_report(measured: Sequence[Drafts], curve: LatencyCurve) -> str:
    """Return accepted ids, passes, exactness, and the latency calculated from them."""
    lines = [*_exactness(measured), "", "### Exact verification, the draft is the action before"]
    for name in measured[0].on_gpu:
        parts = {drafts.mode: drafts.on_gpu[name] for drafts in measured}
        lines += ["", f"{_sentence(name)}:", "", *_acceptance(parts)]
    lines += ["", "### Relaxed: an id at most one bin off is accepted (other actions)"]
    for name in measured[0].relaxed:
        parts = {drafts.mode: drafts.relaxed[name] for drafts in measured}
        lines += ["", f"{_sentence(name)}:", "", *_acceptance(parts, relaxed=True)]
    return "\n".join([*lines, "", *_latency(measured, curve)])


def _sentence(name: str) -> str:
    return name[0].upper() + name[1:]


def _exactness(measured: Sequence[Drafts]) -> list[str]:
    rows = []
    total = different = 0
    for drafts in measured:
        parts = [*drafts.followed.values(), drafts.challenged]
        count = sum(len(part.found) for part in parts)
        wrong = sum(part.mismatches for part in parts)
        fired = sum(part.guard_fired for part in parts)
        confirmed = sum(int(part.accepted[USEFUL]) for part in parts)
        plain = "yes" if drafts.passes_are_plain else "no"
        cells = [drafts.mode, str(count), str(wrong), f"{drafts.margin:.3g}"]
        rows.append([*cells, f"{fired} of {confirmed}", plain])
        total, different = total + count, different + wrong
    head = ["", "drafts verified", "actions unlike plain decoding", "margin", "guard fired"]
    head.append("passes of 7 rows have the bits of single ones")
    return [
        f"**{total} drafts, {different} actions unlike plain decoding.** Drafts are the action "
        "before, the right answer, the right answer with one id a bin off, and random action ids.",
        "",
        *_table(head, rows),
    ]


def _acceptance(parts: dict[str, Acceptance], relaxed: bool = False) -> list[str]:
    head = ["", "drafts", *(f"{k} accepted" for k in range(USEFUL + 1)), "mean", "passes, mean"]
    head += ["actions = plain", "bins off, mean / p99"] if relaxed else []
    rows = []
    for mode, part in parts.items():
        count = len(part.found)
        row = [mode, str(count), *(_percent(n / count) for n in part.accepted)]
        row.append(f"{part.accepted @ np.arange(USEFUL + 1) / count:.2f}")
        row.append(f"{part.passes @ np.arange(len(part.passes)) / count:.2f}")
        if relaxed:
            off = compare_tokens(np.array(part.found), np.array(part.plain), TOKENIZER)
            row += [_percent(off.actions_equal), f"{off.mean_bins:.2f} / {off.p99_bins:.0f}"]
        rows.append(row)
    return _table(head, rows)


def _latency(measured: Sequence[Drafts], curve: LatencyCurve) -> list[str]:
    plain = next(drafts for drafts in measured if drafts.mode == "none")
    rows = []
    for kind, parts in (("exact", plain.on_gpu), ("relaxed", plain.relaxed)):
        for name, part in parts.items():
            by_accepted, by_passes = curve.by_accepted(part.accepted), curve.by_passes(part.passes)
            rows.append(
                [
                    f"{name}, {kind}",
                    f"{by_accepted:.1f} ms ({1e3 / by_accepted:.0f} Hz)",
                    f"{by_passes:.1f} ms ({1e3 / by_passes:.0f} Hz)",
                ]
            )
    return [
        "### Calculated, not measured: openvla-7b in bf16 on an H200",
        "",
        f"The shares above with the latencies of `raw/{curve.source}`: by accepted ids (its curve "
        f"L(k)), and by passes ({curve.base_ms:.1f} + {curve.pass_ms:.2f} ms per pass, the line "
        f"through its points). Plain decoding there: {curve.plain_ms:.1f} ms.",
        "",
        *_table(["acceptance of", "by accepted ids", "by passes"], rows),
    ]


def int4_report(results: Sequence[RoundingResult], sets: Sequence[FrameSet]) -> str:
    """Return weight errors and answers of every way of rounding."""
    return "\n".join(
        _table(
            ["", "format of the engine", "error of the policy's weights", "of normal weights"]
            + [f"ids = bf16's: {frames.name}" for frames in sets],
            [_rounding_row(result, results[0]) for result in results[1:]],
        )
    )


def _rounding_row(result: RoundingResult, reference: RoundingResult) -> list[str]:
    agreements = [
        compare_tokens(found, expected, TOKENIZER)
        for found, expected in zip(result.answers, reference.answers, strict=True)
    ]
    return [
        result.name,
        "yes" if result.fits else "no",
        f"{result.trained_error:.4f}",
        f"{result.normal_error:.4f}",
        *(f"{_percent(a.tokens_equal)} ({a.mean_bins:.2f} bins)" for a in agreements),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
