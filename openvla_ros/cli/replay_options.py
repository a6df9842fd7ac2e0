"""The options of `openvla-ros replay`, each with its help; `cli.replay` names them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="SOURCE...", help="Bags, LeRobot or RLDS folders, npz episodes; or folders of them."
    ),
]
Checkpoint = Annotated[str, typer.Option(help="Folder, or hub id such as openvla/openvla-7b.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder to fill; the same command goes on in it."),
]
Topics = Annotated[
    Path | None,
    typer.Option(help="YAML that says which topic of a bag is what."),
]
Camera = Annotated[str, typer.Option(help="Camera of a data set that has several.")]
Transform = Annotated[
    str, typer.Option(help="Of an RLDS data set: its Open X-Embodiment name, as it is trained on.")
]
RateHz = Annotated[
    float, typer.Option(min=0.0, help="Steps per second; 0 = as recorded, or as --topics says.")
]
UnnormKey = Annotated[str, typer.Option(help="Statistics key; see `openvla-ros keys`.")]
Adapter = Annotated[str, typer.Option(help="PEFT adapter folder or hub id.")]
Quantization = Annotated[str, typer.Option(help="none, fp8, int8, int4, nf4 or bnb_int8.")]
ExactnessLevel = Annotated[str, typer.Option(help="self, hf or approx.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Compare = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME:KEY=VALUE,...",
        help="Also evaluate this, and compare: int4:quantization=int4. Repeatable.",
    ),
]
MaxEpisodes = Annotated[int, typer.Option(min=0, help="Only the first so many; 0 = all.")]
EngineName = Annotated[str, typer.Option(help="local, or ray: many GPUs and machines.")]
Workers = Annotated[int, typer.Option(min=0, help="With ray: processes; 0 = one per GPU, or one.")]
RayAddress = Annotated[str, typer.Option(help="With ray: a running cluster.")]
NoProbes = Annotated[
    bool, typer.Option("--no-probes", help="Do not try pictures made wrong on purpose.")
]
NoBag = Annotated[
    bool, typer.Option("--no-bag", help="Do not write a bag with answers to look at.")
]
SkipBroken = Annotated[
    bool, typer.Option("--skip-broken", help="Leave out what cannot be read; exit code 1.")
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Remove what an earlier evaluation left in --out.")
]
ParamsFile = Annotated[
    Path | None,
    typer.Option(help="Node parameters: action_spec.* of an own key, image steps, limits."),
]
GroundTruth = Annotated[
    bool,
    typer.Option(
        "--ground-truth", help="Send the recorded actions through the motion stage; no policy."
    ),
]
Live = Annotated[bool, typer.Option("--live", help="Then play the bag to the real node over DDS.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for machines.")]
