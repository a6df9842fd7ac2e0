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
    episodes: Annotated[
        int | None,
        typer.Option(help="Or: let the expert do so many tasks, through the physics."),
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
        int, typer.Option(help="With --moments: how many of one instruction make an episode.")
    ] = 100,
    pushes: Annotated[
        float, typer.Option(help="With --episodes: chance per step that the arm is pushed away.")
    ] = 0.08,
    label_noise: Annotated[
        float, typer.Option(help="With --episodes: noise of an action, as a share of a full step.")
    ] = 0.02,
    policy: Annotated[
        str,
        typer.Option(
            help="With --episodes: a checkpoint that drives; recorded is what the expert would do."
        ),
    ] = "",
    arm: Annotated[str, typer.Option(help="viperx or panda.")] = "viperx",
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False,
) -> None:
    """Record the scripted expert in the simulated cell as rosbag2 episodes."""
    if (moments is None) == (episodes is None):
        raise ConfigurationError(
            "give one of --moments N (independent pictures) and --episodes N (whole tasks)."
        )
    with needs("Recording the simulated cell"):
        from openvla_ros.sim.recording.options import RecordingOptions
        from openvla_ros.sim.recording.run import record_moments, record_trajectories

        options = RecordingOptions(
            tasks=tuple(task or ["reach"]),
            seed=seed,
            arm=arm,
            width=width,
            height=height,
            jpeg_quality=jpeg_quality,
            steps_per_episode=steps_per_episode,
            pushes=pushes,
            label_noise=label_noise,
            policy=policy,
        )
        if moments is not None:
            with _progress("pictures", moments) as on_made:
                recorded = record_moments(out, moments, options, workers=workers, on_made=on_made)
        else:
            assert episodes is not None
            with _progress("episodes", episodes) as on_made:
                recorded = record_trajectories(
                    out, episodes, options, workers=workers, on_made=on_made
                )
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
    if recorded.pushed_steps:
        console.print(f"In {recorded.pushed_steps} of these steps the arm was pushed off its way.")
    if recorded.left_out:
        console.print(f"{recorded.left_out} episodes were not done in time and are left out.")
    console.print(f"Look at them: openvla-ros audit {escape(str(out))} --topics {TOPICS}")
