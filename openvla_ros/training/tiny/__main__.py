"""Train `openvla-tiny`: `finetune` with the grounding loss, on recordings of the simulated cell.

    python -m openvla_ros.training.tiny base start                  random weights to start from
    python -m openvla_ros.training.tiny train reach.yaml            one run; the same line goes on

The configuration is that of `openvla-ros finetune`; `optimization.auxiliary_losses` may have
"grounding", and the folder of each source then holds the places that `openvla-ros sim record` noted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from openvla_ros.cli.finetune_progress import finetune_progress
from openvla_ros.sim.recording.grounding import Grounding, read_grounding
from openvla_ros.training.auxiliary import register_auxiliary_loss
from openvla_ros.training.config_file import parse_overrides, read_finetune_config
from openvla_ros.training.datasets import training_sources
from openvla_ros.training.finetune import finetune
from openvla_ros.training.tiny.base import build_random_base
from openvla_ros.training.tiny.grounding import LOSS, GroundingLoss

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
def base(out: Path, seed: int = 0) -> None:
    """Write the random weights that training starts from."""
    print(build_random_base(out, seed))


@app.command()
def train(
    config: Path,
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE")] = None,
    threads: Annotated[int, typer.Option(help="Of torch; 0 = as many as there are cores.")] = 0,
) -> None:
    """Do one run, or go on with it; print the folder of its result."""
    if threads:
        torch.set_num_threads(threads)
    run = read_finetune_config(config, parse_overrides(override or []))
    places = read_places([Path(source.path) for source in training_sources(run.data)])
    register_auxiliary_loss(LOSS, lambda model: GroundingLoss(model, places))
    with finetune_progress(run.run.log_every) as watcher:
        result = finetune(run, watcher=watcher)
    print(result.folder)


def read_places(folders: Sequence[Path]) -> dict[str, Grounding]:
    """Return the places of the episodes of several recordings, by the name of the episode."""
    found: dict[str, Grounding] = {}
    for folder in folders:
        places = read_grounding(folder)
        twice = sorted(set(found) & set(places))
        assert not twice, f"two recordings have an episode {twice[0]}"
        found |= places
    return found


if __name__ == "__main__":
    app()
