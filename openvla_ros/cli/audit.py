"""`openvla-ros audit`: what is wrong with recorded episodes, before a policy learns them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from openvla_ros.action_specs import described_keys, load_action_spec, read_action_specs
from openvla_ros.cli.doctor import MARKS
from openvla_ros.cli.keys import local_folder
from openvla_ros.cli.output import needs, print_json, wide_console
from openvla_ros.errors import ConfigurationError
from openvla_ros.model.action_stats import (
    ActionStats,
    read_norm_stats,
    resolve_unnorm_key,
    tuned_unnorm_key,
)

if TYPE_CHECKING:
    from openvla_ros.data.episode import Episode
    from openvla_ros.evaluation.audit.audit_report import AuditReport

JSON_FILE, HTML_FILE = "audit.json", "audit.html"


def audit(
    sources: Annotated[
        list[Path],
        typer.Argument(help="rosbag2, LeRobot or RLDS folders, npz episodes; or folders of them."),
    ],
    topics: Annotated[
        Path | None, typer.Option(help="YAML that names the topics of a bag (docs/data.md).")
    ] = None,
    camera: Annotated[str, typer.Option(help="Which camera of a dataset; not for bags.")] = "",
    rate_hz: Annotated[
        float | None, typer.Option(help="Steps per second: a bag is resampled to it.")
    ] = None,
    pose_key: Annotated[
        str, typer.Option(help="Feature of a LeRobot or RLDS dataset that is the arm's pose.")
    ] = "",
    transform: Annotated[
        str, typer.Option(help="Of an RLDS dataset: its Open X-Embodiment name, as trained on.")
    ] = "",
    unnorm_key: Annotated[
        str, typer.Option(help="Statistics key that the actions are meant for.")
    ] = "",
    checkpoint: Annotated[
        str, typer.Option(help="Folder or hub id whose statistics the actions must fit.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help=f"Folder for {JSON_FILE} and {HTML_FILE}.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False,
) -> None:
    """Look for mistakes in recorded episodes; exit code 1 when there is a problem."""
    from openvla_ros.data.sources import list_recordings

    sources = list_recordings(sources)
    _prepare(sources, topics, out)
    folder = local_folder(checkpoint) if checkpoint else None
    norm_stats = read_norm_stats(folder) if folder else {}
    stored = read_action_specs(folder) if folder else {}
    tuned = tuned_unnorm_key(folder) if folder else ""
    key = _chosen_key(norm_stats, unnorm_key or tuned)
    with needs("Reading recordings"):
        from openvla_ros.evaluation.audit.audit_report import audit_episodes

        episodes = [
            episode
            for source in sources
            for episode in _episodes(source, topics, rate_hz, camera, pose_key, transform)
        ]
        with _progress(len(episodes)) as on_episode:
            report = audit_episodes(
                episodes,
                load_action_spec(key, stored=stored),
                norm_stats,
                key or None,
                on_episode=on_episode,
            )
    if out is not None:
        _write(out, report, [str(source) for source in sources])
    if as_json:
        print_json(report.to_dict())
    else:
        _print_tables(report, out)
    if report.has_problems:
        raise typer.Exit(1)


def _prepare(sources: list[Path], topics: Path | None, out: Path | None) -> None:
    """Refuse what would show only after reading for minutes, or never."""
    from openvla_ros.data.sources import BAG, source_kind

    if topics is not None and BAG not in map(source_kind, sources):
        raise ConfigurationError(
            f"--topics {topics} says how a bag is read, and no source is a bag. Leave it out; "
            "other recordings take --camera, --rate-hz and --pose-key."
        )
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"--out {out} cannot be made a folder ({error}). Choose another one."
            ) from error


def _chosen_key(norm_stats: dict[str, ActionStats], unnorm_key: str) -> str:
    """The key; "" when none was named, and what needs one is left out."""
    if norm_stats:
        return resolve_unnorm_key(norm_stats, unnorm_key)
    if unnorm_key and unnorm_key not in described_keys():
        raise ConfigurationError(
            f"nothing is published about the statistics key {unnorm_key!r}. For a key of your own, "
            f"give --checkpoint with it; described are: {', '.join(described_keys())}."
        )
    return unnorm_key


def _episodes(
    source: Path,
    topics: Path | None,
    rate_hz: float | None,
    camera: str,
    pose_key: str,
    transform: str,
) -> list[Episode]:
    from openvla_ros.data.sources import BAG, open_episodes, source_kind
    from openvla_ros.data.topics import TopicConfig, read_topic_file

    config = None
    if source_kind(source) == BAG:
        config = TopicConfig() if topics is None else read_topic_file(topics)
        if rate_hz is not None:
            config, rate_hz = dataclasses.replace(config, rate_hz=rate_hz), None
    return open_episodes(
        source,
        topics=config,
        camera=camera,
        rate_hz=rate_hz,
        pose_key=pose_key,
        transform=transform,
    )


@contextmanager
def _progress(episodes: int) -> Iterator[Callable[[str], None]]:
    """A bar on standard error, with the time that is left; nothing of it stays on screen."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("episodes", total=episodes)

        def advance(_name: str) -> None:
            bar.advance(task)

        yield advance


def _write(out: Path, report: AuditReport, sources: list[str]) -> None:
    from openvla_ros.evaluation.audit.page import audit_page
    from openvla_ros.evaluation.replay.folder import plain, writing_file

    content = {"sources": sources, **plain(report.to_dict())}
    with writing_file(out / JSON_FILE) as path:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
    with writing_file(out / HTML_FILE) as path:
        path.write_text(audit_page(report, sources), encoding="utf-8")


def _print_tables(report: AuditReport, out: Path | None) -> None:
    console = wide_console()
    for section in dict.fromkeys(finding.section for finding in report.findings):
        table = Table(title=section, title_justify="left", show_header=False, expand=True)
        table.add_column(style="bold", no_wrap=True, width=22)
        table.add_column(overflow="fold", ratio=2)
        table.add_column(overflow="fold", ratio=3, style="dim")
        table.add_column(no_wrap=True, justify="right", width=7)
        for finding in report.findings:
            if finding.section == section:
                row = (finding.item, finding.value, finding.reason)
                table.add_row(*map(escape, row), MARKS[finding.level])
        console.print(table)
    problems = [finding for finding in report.findings if finding.level == "problem"]
    for finding in problems:
        words = f"{finding.item}: {finding.value}. {finding.reason}"
        console.print(f"[bold red]Problem:[/] {escape(words)}", soft_wrap=True)
    warnings = sum(finding.level == "warn" for finding in report.findings)
    if not problems:
        noun = "note" if warnings == 1 else "notes"
        console.print(f"[green]No problem found[/], {warnings} {noun}.")
    if out is not None:
        console.print(f"Written: {escape(str(out / JSON_FILE))}, {escape(str(out / HTML_FILE))}")
