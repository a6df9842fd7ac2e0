"""`openvla-ros replay`: policies judged on recorded episodes, before a robot moves."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from openvla_ros.cli import replay_options as given
from openvla_ros.cli.output import needs, print_json
from openvla_ros.cli.replay_progress import replay_progress
from openvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from openvla_ros.data.topics import TopicConfig
    from openvla_ros.evaluation.replay.run import ReplayOptions
    from openvla_ros.evaluation.replay.variants import Variant

INCOMPLETE = 1  # exit code


def replay(
    sources: given.Sources,
    checkpoint: given.Checkpoint = "",
    out: given.Out = None,
    topics: given.Topics = None,
    camera: given.Camera = "",
    transform: given.Transform = "",
    rate_hz: given.RateHz = 0.0,
    unnorm_key: given.UnnormKey = "",
    adapter: given.Adapter = "",
    quantization: given.Quantization = "none",
    exactness: given.ExactnessLevel = "self",
    device: given.Device = "auto",
    dtype: given.Dtype = "auto",
    compare: given.Compare = None,
    max_episodes: given.MaxEpisodes = 0,
    engine: given.EngineName = "local",
    workers: given.Workers = 0,
    ray_address: given.RayAddress = "",
    no_probes: given.NoProbes = False,
    no_bag: given.NoBag = False,
    skip_broken: given.SkipBroken = False,
    restart: given.Restart = False,
    params_file: given.ParamsFile = None,
    ground_truth: given.GroundTruth = False,
    live: given.Live = False,
    as_json: given.AsJson = False,
) -> None:
    """Judge policies on your own recordings; exit code 1 when a part had to be left out."""
    with needs("replay"):
        from openvla_ros.cli import replay_modes
        from openvla_ros.config import NodeConfig
        from openvla_ros.config.files import read_parameter_file
        from openvla_ros.evaluation.replay.run import ReplayOptions
        from openvla_ros.evaluation.replay.variants import BASE, Variant, parse_comparison

        sources = _recordings(sources, out)
        parameters = read_parameter_file(params_file) if params_file else {}
        options = ReplayOptions(
            topics=_topics(topics),
            camera=camera,
            transform=transform,
            rate_hz=rate_hz,
            max_episodes=max_episodes,
            probes=not no_probes,
            bag=not no_bag,
            skip_broken=skip_broken,
            node=NodeConfig.from_values(parameters),
            restart=restart,
            engine=engine,
            workers=workers,
            ray_address=ray_address,
            command=shlex.join(["openvla-ros", *sys.argv[1:]]),
        )
    if ground_truth:
        spec = replay_modes.spec_of(unnorm_key, checkpoint)
        is_whole = replay_modes.run_ground_truth(sources, options, spec, out, as_json=as_json)
        raise typer.Exit(0 if is_whole else INCOMPLETE)
    folder = _required(checkpoint, out)
    base = Variant(
        BASE,
        checkpoint,
        adapter=adapter,
        quantization=quantization,
        dtype=dtype,
        exactness=exactness,
        device=device,
        unnorm_key=unnorm_key,
        **_image_steps(parameters),
    )
    variants = [base, *(parse_comparison(text, base) for text in compare or ())]
    if live:
        replay_modes.require_live(sources)
    metrics = _evaluate(sources, variants, folder, options)
    found = None
    if live:
        found = replay_modes.run_live(sources[0], base, folder, options.topics, parameters)
    _show(metrics, found, folder, as_json=as_json)
    if not metrics["complete"]:
        raise typer.Exit(INCOMPLETE)


def _required(checkpoint: str, out: Path | None) -> Path:
    if not checkpoint:
        raise ConfigurationError("--checkpoint is missing: the policy that shall be evaluated.")
    if out is None:
        raise ConfigurationError("--out is missing: the folder that gets the results.")
    return out


def _image_steps(parameters: Mapping[str, Any]) -> dict[str, bool]:
    """Return the image steps that the node's parameters add; false leaves it to the checkpoint."""
    from openvla_ros.evaluation.replay.variants import IMAGE_KEYS

    return {key: True for key in IMAGE_KEYS if parameters.get(key)}


def _recordings(sources: list[Path], out: Path | None) -> list[Path]:
    """The recordings that the sources stand for; `out` would look like one in a folder of them."""
    from openvla_ros.data.sources import list_recordings
    from openvla_ros.evaluation.replay.plan import require_apart

    if out is not None:
        require_apart(sources, out)
    return list_recordings(sources)


def _evaluate(
    sources: list[Path], variants: list[Variant], out: Path, options: ReplayOptions
) -> dict[str, Any]:
    """Return what metrics.json holds."""
    from openvla_ros.evaluation.replay.folder import METRICS
    from openvla_ros.evaluation.replay.run import replay as evaluate

    with needs("replay"), replay_progress() as shown:
        told = changed(options, on_loading=shown.loading, on_steps=shown.steps, tell=shown.tell)
        evaluate(sources, variants, out, told)
    return json.loads((out / METRICS).read_text(encoding="utf-8"))


def _show(
    metrics: dict[str, Any], live: dict[str, Any] | None, out: Path, *, as_json: bool
) -> None:
    from openvla_ros.cli import replay_tables
    from openvla_ros.evaluation.replay.folder import REPORT

    if as_json:
        print_json({"out": out, "report": out / REPORT, "metrics": metrics, "live": live})
        return
    replay_tables.show_metrics(metrics)
    if live is not None:
        replay_tables.show_live(live)
    console = Console()
    if not metrics["complete"]:
        left_out = len(metrics["problems"])
        console.print(f"[bold red]Incomplete:[/] {left_out} left out, see the report.")
    console.print(f"[bold]{escape(str(out / REPORT))}[/]", soft_wrap=True)


def _topics(path: Path | None) -> TopicConfig:
    from openvla_ros.data.topics import TopicConfig, read_topic_file

    return read_topic_file(path) if path else TopicConfig()
