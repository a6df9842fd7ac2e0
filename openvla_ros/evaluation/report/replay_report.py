"""The report of a replay: one HTML file, verdicts first, that needs neither network nor script."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from openvla_ros.evaluation.report.charts import styles_of
from openvla_ros.evaluation.report.detail_sections import (
    axes_section,
    gripper_section,
    latency_section,
)
from openvla_ros.evaluation.report.episode_sections import (
    answered_episodes,
    episodes_section,
    path_section,
    series_section,
    worst_section,
)
from openvla_ros.evaluation.report.live_section import live_section
from openvla_ros.evaluation.report.page import html_page
from openvla_ros.evaluation.report.provenance import glossary_section, provenance_section
from openvla_ros.evaluation.report.results import Results, read_results
from openvla_ros.evaluation.report.selection import digest
from openvla_ros.evaluation.report.svg import require_matplotlib
from openvla_ros.evaluation.report.verdict_sections import (
    baselines_section,
    comparison_section,
    figures_section,
    findings_section,
    incomplete_notice,
    summary_line,
)

REPORT_FILE = "report.html"


def write_report(out: Path) -> Path:
    """Write `report.html` from the figures and records of a replay, and return its path.

    The same folder gives the same bytes.

    Args:
        out: Folder that `openvla-ros replay --out` has filled.

    Raises:
        ConfigurationError: `metrics.json` or a record is missing, damaged, or of another version.
        DependencyError: matplotlib is not installed.
        OSError: The file cannot be written; an older report is as it was.
    """
    require_matplotlib()
    page = report_page(read_results(out))
    path = out / REPORT_FILE
    handle, name = tempfile.mkstemp(prefix=f".{REPORT_FILE}.", dir=out)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # a temporary file is its owner's alone
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def report_page(results: Results) -> str:
    """Return the whole report as HTML.

    Raises:
        ConfigurationError: A record is damaged.
        DependencyError: matplotlib is not installed.
    """
    styles = styles_of(results.variants)
    digests = {variant: digest(results, variant) for variant in results.variants}
    answered = answered_episodes(results, digests)
    sections = [findings_section(results), baselines_section(results, styles)]
    if len(results.variants) > 1:
        sections.append(comparison_section(results))
    sections += [
        figures_section(results),
        axes_section(results),
        gripper_section(results),
        latency_section(results, digests, styles),
        *([live_section(results)] if results.live else []),
        series_section(results, answered, styles),
        path_section(results, answered, styles),
        worst_section(results, digests),
        episodes_section(results),
        provenance_section(results),
        glossary_section(results.units),
    ]
    is_whole = results.metrics["complete"]
    return html_page(
        "Replay report" if is_whole else "Replay report (INCOMPLETE)",
        sections,
        subtitle=summary_line(results),
        notice_html=incomplete_notice(results),
    )
