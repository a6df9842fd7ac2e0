"""A report as Markdown: tables for people.

This file knows the report's keys, and measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STAGES = ("copy_ms", "towers_ms", "prefill_ms", "decode_ms")
_COLD = ("draw_weights_s", "build_s", "first_call_s", "second_call_s")


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report's numbers as Markdown."""
    sections = [
        _heading(report),
        _latencies(report),
        _stages(report),
        _cold_start(report),
        _drafts(report),
        _busy(report),
        _mismatches(report),
        _margins(report),
        _left_out(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _heading(report: Mapping[str, Any]) -> str:
    machine, plan, floor = report["machine"], report["plan"], report["floor"]
    where = machine.get("gpu") or f"{machine['cores']} cores of {machine['cpu']}"
    lines = [
        f"Profile {plan['profile']}, {plan['dtype']}, on {where}; torch {machine['torch']}, "
        f"transformers {machine['transformers']}, commit {machine['commit']}.",
        f"Processes: {report['processes']}.",
        f"{report['note']}",
    ]
    if "none" in floor:
        parts = floor["none"]
        lines.append(
            f"Floor of {plan['dtype']} weights: {parts['total_ms']:.2f} ms = towers "
            f"{parts['towers_ms']:.2f} + prompt {parts['prefill_ms']:.2f} + passes "
            f"{parts['decode_ms']:.2f}, from {floor['gemm_flops_per_s'] / 1e12:.3g} TFLOP/s and "
            f"{floor['read_bytes_per_s'] / 1e9:.4g} GB/s. {floor['definition']}"
        )
    return "\n\n".join(lines)


def _latencies(report: Mapping[str, Any]) -> str:
    head = [
        "variant", "p50 ms", "p90", "p99", "max", "floor ms", "% of floor", "peak GB",
        f"actions equal to {report['reference']}'s",
    ]  # fmt: skip
    rows = [
        [
            f"`{name}`",
            *(f"{v[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms", "max_ms", "floor_ms")),
            f"{100 * v['share_of_floor']:.0f}",
            "–" if v["peak_bytes"] is None else f"{v['peak_bytes'] / 1e9:.2f}",
            f"{v['tokens_equal_reference']:.2f}",
        ]
        for name, v in report["variants"].items()
    ]
    return _table(head, rows)


def _stages(report: Mapping[str, Any]) -> str:
    rows = []
    for name, v in report["variants"].items():
        if v["stages_ms"]:
            cells = []
            for stage in _STAGES:
                value, share = v["stages_ms"].get(stage), v["stage_shares_of_floor"].get(stage)
                text = "–" if value is None else f"{value:.2f}"
                cells.append(text if share is None else f"{text} ({100 * share:.0f} %)")
            rows.append([f"`{name}`", *cells])
    head = ["stage, median ms (% of its floor)", "copy", "towers", "prompt", "six passes"]
    return _table(head, rows) if rows else ""


def _cold_start(report: Mapping[str, Any]) -> str:
    head = ["cold start, s", "weights drawn", "built", "first call", "second call"]
    rows = [
        [f"`{name}`", *(f"{v['cold_start'][key]:.2f}" for key in _COLD)]
        for name, v in report["variants"].items()
    ]
    return _table(head, rows)


def _drafts(report: Mapping[str, Any]) -> str:
    drafts = report.get("drafts")
    if drafts is None:
        return ""
    rows = [
        [str(p["right_drafts"]), f"{p['p50_ms']:.2f}", f"{p['mean_passes']:.2f}"]
        for p in drafts["latency"]
    ]
    lines = [_table(["right draft ids", "p50 ms", "passes, mean"], rows), drafts["warning"]]
    if "exactness" in drafts:
        e = drafts["exactness"]
        lines.append(
            f"Of {e['drafts']} drafts on {e['inputs']} other images {e['mismatches']} changed an "
            f"action; the guard (margin {drafts['margin']:.3g}) fired for {e['guard_fired']} of "
            f"{e['full_accepts']} fully accepted ones."
        )
    return "\n\n".join(lines)


def _busy(report: Mapping[str, Any]) -> str:
    busy = report.get("busy")
    if busy is None:
        return ""
    rows = [
        [
            f"`{name}`",
            f"{v['p50_ms']:.2f}",
            f"{v['p99_ms']:.2f}",
            f"{v['p99_ms'] / v['p50_ms']:.2f}",
        ]
        for name, v in busy["variants"].items()
    ]
    return _table([f"with {busy['cores']} busy cores", "p50 ms", "p99", "p99 / p50"], rows)


def _mismatches(report: Mapping[str, Any]) -> str:
    found = report.get("mismatches")
    if found is None:
        return ""
    names = found["variants"]
    rows = [
        [f"`{name}`", *(f"{share:.2f}" for share in row)]
        for name, row in zip(names, found["actions"], strict=True)
    ]
    return _table(["share of differing actions", *(f"`{name}`" for name in names)], rows)


def _margins(report: Mapping[str, Any]) -> str:
    margins = report.get("margins")
    if margins is None:
        return ""
    if "skipped" in margins:
        return f"No comparison with float32: {margins['skipped']}."
    rows = []
    for name, v in margins["variants"].items():
        largest = v["largest_margin_of_a_mismatch"]
        rows.append(
            [
                f"`{name}`",
                f"{v['mismatches']} of {v['ids']}",
                "–" if largest is None else f"{largest:.3f}",
                f"{v['median_margin']:.2f}",
            ]
        )
    head = ["against float32", "differing ids", "largest margin of one", "median margin of all"]
    return _table(head, rows) + f"\n\n{margins['definition']}."


def _left_out(report: Mapping[str, Any]) -> str:
    lines = [f"- `{name}` was left out: {why}." for name, why in report["skipped"].items()]
    lines += [f"- `{name}` failed: {why}" for name, why in report["failed"].items()]
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
