"""`openvla-ros finetune`: from recordings to a folder that the node loads."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openvla_ros.cli.finetune_progress import finetune_progress
from openvla_ros.cli.output import needs, print_json

if TYPE_CHECKING:
    from openvla_ros.training.config import FinetuneConfig

Config = Annotated[
    Path, typer.Option("--config", help="YAML file; config/finetune.yaml lists every key.")
]
Strategy = Annotated[
    str, typer.Option(help="full, last_layer, frozen_vision, sandwich, lora or qlora.")
]
Out = Annotated[str, typer.Option(help="Folder of the run; the same command resumes it.")]
Base = Annotated[str, typer.Option(help="Checkpoint to start from: folder or hub id.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other key: run.seed=3. Repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and train nothing.")]
TflopS = Annotated[
    float,
    typer.Option(
        "--tflop-s", min=0.0, help="With --dry-run: 10^12 operations/s a device sustains."
    ),
]
NoResume = Annotated[
    bool, typer.Option("--no-resume", help="Start over; checkpoints in --out are removed.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def finetune(
    config: Config,
    strategy: Strategy = "",
    out: Out = "",
    base: Base = "",
    settings: Set = None,
    dry_run: DryRun = False,
    tflop_s: TflopS = 0.0,
    no_resume: NoResume = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a checkpoint on your recordings; the same command resumes."""
    with needs("finetune"):
        from openvla_ros.training.config_file import parse_overrides, read_finetune_config

        overrides = parse_overrides(settings or [])
        short = {"strategy.name": strategy, "run.out": out, "base": base}
        overrides |= {key: value for key, value in short.items() if value}
        chosen = read_finetune_config(config, overrides)
        _register_losses(chosen)
        if dry_run:
            _plan(chosen, tflop_s, as_json=as_json)
        else:
            _train(chosen, resume=not no_resume, as_json=as_json)


def _register_losses(config: FinetuneConfig) -> None:
    """Make the losses known that come with the package."""
    if "grounding" in config.optimization.auxiliary_losses:
        with needs("sim"):
            from openvla_ros.sim.tiny.grounding import register_grounding
        register_grounding([Path(source.path) for source in config.data.sources])


def _plan(config: FinetuneConfig, tflop_s: float, *, as_json: bool) -> None:
    from openvla_ros.cli.finetune_tables import show_plan
    from openvla_ros.training.plan import make_plan

    plan = make_plan(config, world_size=_processes(), tflop_s=tflop_s)
    if as_json:
        print_json(asdict(plan) | {"memory_bytes": plan.memory.total})
    else:
        show_plan(plan)


def _train(config: FinetuneConfig, *, resume: bool, as_json: bool) -> None:
    from openvla_ros.cli.finetune_tables import show_result
    from openvla_ros.training.finetune import finetune as run

    is_main = os.environ.get("RANK", "0") == "0"
    with finetune_progress(config.run.log_every) as watcher:
        result = run(config, resume=resume, watcher=watcher)
    if not is_main:
        return
    if as_json:
        print_json(asdict(result))
    else:
        show_result(result.folder, result.metrics, result.plots)


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
