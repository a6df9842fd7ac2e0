"""`openvla-ros sim record`: the scripted expert as rosbag2 episodes, to audit and to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from openvla_ros.cli.output import needs, print_json, wide_console
from openvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from openvla_ros.sim.recording.run import Recorded

TOPICS = "config/topics/sim.yaml"


def record(
    out: Annotated[Path, typer.Argument(help="Folder for the bags; new or empty.")],
    moments: Annotated[
        int | None,
        typer.Option(help="Record so many independent pictures, each with up to 3 instructions."),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="reach, push, pick or place; several take turns.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the first picture or episode; below 10000 are evaluations.")
    ] = 1_000_000,
    workers: Annotated[int, typer.Option(help="Processes; they do not change the bags.")] = 1,
    width: Annotated[int, typer.Option(help="Of the pictures, pixels.")] = 224,
    height: Annotated[int, typer.Option(help="Of the pictures, pixels.")] = 224,
    jpeg_quality: Annotated[int, typer.Option(help="1 to 100.")] = 95,
    steps_per_episode: Annotated[
        int, typer.Option(help="How many moments of one instruction make an episode.")
    ] = 100,
    arm: Annotated[str, typer.Option(help="viperx or panda.")] = "viperx",
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False,
) -> None:
    """Record the scripted expert in the simulated cell as rosbag2 episodes."""
    if moments is None:
        raise ConfigurationError("nothing to record: give --moments N.")
    with needs("Recording the simulated cell"):
        from openvla_ros.sim.recording.options import RecordingOptions
        from openvla_ros.sim.recording.run import record_moments

        options = RecordingOptions(
            tasks=tuple(task or ["reach"]),
            seed=seed,
            arm=arm,
            width=width,
            height=height,
            jpeg_quality=jpeg_quality,
            steps_per_episode=steps_per_episode,
        )
        with _progress("pictures", moments) as on_made:
            recorded = record_moments(out, moments, options, workers=workers, on_made=on_made)
    if as_json:
        print_json({"folder": str(out), **asdict(recorded)})
    else:
        _print_summary(out, recorded)


@contextmanager
def _progress(what: str, count: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error, with the time that is left; nothing of it stays on screen."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=count)
        yield lambda: bar.advance(task)


def _print_summary(out: Path, recorded: Recorded) -> None:
    console = wide_console()
    console.print(
        f"{recorded.episodes} episodes, {recorded.steps} steps, {recorded.seconds:.0f} s, "
        f"{recorded.bytes / 1e6:.1f} MB: {escape(str(out))}"
    )
    console.print(f"Look at them: openvla-ros audit {escape(str(out))} --topics {TOPICS}")
