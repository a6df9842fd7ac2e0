"""`openvla-ros sim libero`: a checkpoint in LIBERO, by the protocol of OpenVLA's own figures."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from openvla_ros.cli.output import needs, print_json, wide_console
from openvla_ros.cli.progress import loading_bar

if TYPE_CHECKING:
    from openvla_ros.evaluation.libero.protocol import Episode


def libero(
    checkpoint: Annotated[
        str,
        typer.Option(help="Folder or hub id; openvla/openvla-7b-finetuned-libero-spatial, ..."),
    ],
    suite: Annotated[
        str, typer.Option(help="libero_spatial, libero_object, libero_goal or libero_10.")
    ],
    assets: Annotated[
        Path | None, typer.Option(help="LIBERO's own asset files, where they are not found.")
    ] = None,
    episodes_per_task: Annotated[
        int, typer.Option(min=1, max=50, help="Of 10 tasks; published figures have 50.")
    ] = 50,
    seed: Annotated[int, typer.Option(min=0, help="As in the reference; see docs/libero.md.")] = 7,
    center_crop: Annotated[
        bool | None,
        typer.Option(
            "--center-crop/--no-center-crop",
            help="For a checkpoint trained with augmentation. Default: as a result of ours says; "
            "of others, yes.",
        ),
    ] = None,
    unnorm_key: Annotated[
        str, typer.Option(help="Statistics key; default: the suite's, or with _no_noops.")
    ] = "",
    adapter: Annotated[str, typer.Option(help="PEFT adapter folder or hub id.")] = "",
    quantization: Annotated[
        str, typer.Option(help="none, fp8, int8, int4, nf4 or bnb_int8.")
    ] = "none",
    exactness: Annotated[str, typer.Option(help="self, hf or approx.")] = "self",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    revision: Annotated[str, typer.Option(help="Hub commit.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="New folder; default libero_output/<suite>_<time>.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False,
) -> None:
    """Success rate in LIBERO; its packages and original assets must be on this machine."""
    folder = out or Path("libero_output") / f"{suite}_{datetime.now():%Y%m%d_%H%M%S}"
    with needs("sim libero"):
        from openvla_ros.evaluation.libero.environment import find_libero
        from openvla_ros.evaluation.libero.run import LiberoRun, evaluate, load_policy

    run = LiberoRun(
        checkpoint=checkpoint,
        suite=suite,
        folder=folder,
        assets=assets,
        episodes_per_task=episodes_per_task,
        seed=seed,
        center_crop=center_crop,
        adapter=adapter,
        unnorm_key=unnorm_key,
        quantization=quantization,
        exactness=exactness,
        device=device,
        dtype=dtype,
        revision=revision,
    )
    found = find_libero(run.suite, run.assets)
    with loading_bar() as progress:
        policy = load_policy(run, progress)
    with redirect_stdout(sys.stderr):  # LIBERO prints
        result = evaluate(run, found, policy, _Tally())
    if as_json:
        print_json(result)
    else:
        _show(result, folder)


class _Tally:
    """One line per episode on standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._episodes = self._successes = 0

    def __call__(self, episode: Episode) -> None:
        self._episodes += 1
        self._successes += episode.is_success
        verdict = "success" if episode.is_success else episode.error or "no success"
        self._console.print(
            f"{self._successes}/{self._episodes}  {verdict} after {episode.steps} steps: "
            f"{episode.instruction} ({episode.number})",
            markup=False,
            highlight=False,
        )


def _show(result: dict[str, Any], folder: Path) -> None:
    table = Table(title=f"{result['suite']}: {result['checkpoint']}", title_justify="left")
    for heading in ("instruction", "successes", "rate", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "instruction" else "right")
    for instruction, figures in result["per_instruction"].items():
        table.add_row(instruction, *_cells(figures))
    table.add_section()
    table.add_row("all", *_cells(result), style="bold")
    console = wide_console()
    console.print(table)
    console.print(f"Written to {folder}", markup=False, highlight=False)


def _cells(figures: dict[str, Any]) -> tuple[str, str, str]:
    low, high = figures["interval"]
    return (
        f"{figures['successes']}/{figures['episodes']}",
        f"{100 * figures['success_rate']:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f} %",
    )
