"""`openvla-ros keys`: which datasets a checkpoint knows, and what their numbers mean."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from openvla_ros.action_specs import load_action_spec, read_action_specs
from openvla_ros.cli.output import needs, print_json, wide_console
from openvla_ros.model.action_stats import ActionStats, read_norm_stats
from openvla_ros.types import ActionSpec

AXES = ("x", "y", "z")
EEF_DIM = 7  # x y z roll pitch yaw gripper; other lengths have another layout


def keys(
    checkpoint: Annotated[
        str, typer.Argument(help="Folder, or hub id such as openvla/openvla-7b.")
    ],
    revision: Annotated[str, typer.Option(help="Hub commit.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON for machines.")] = False,
) -> None:
    """List the action statistics of a checkpoint: step size, gripper, rate and frame.

    An adapter has those it was trained with.
    """
    folder = local_folder(checkpoint, revision)
    stored = read_action_specs(folder)
    rows = [
        (stats, load_action_spec(key, stored=stored))
        for key, stats in read_norm_stats(folder).items()
    ]
    if as_json:
        print_json({"checkpoint": checkpoint, "keys": [describe(*row) for row in rows]})
        return
    console = wide_console()
    console.print(_table(checkpoint, rows))
    console.print(
        "Step: 1 % to 99 % quantile of one step per axis. “unknown” is not published: the "
        "node asks for it before it moves a robot. [bold]--json[/] names the source of each fact.",
        style="dim",
    )


def local_folder(checkpoint: str, revision: str = "", *, local_files_only: bool = False) -> Path:
    """Return the folder of a checkpoint; a local one needs neither torch nor a network.

    Raises:
        CheckpointError: Neither a folder nor available on the hub.
        DependencyError: A hub id is given, and the libraries to fetch it are absent.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    with needs("Finding a checkpoint that is not a local folder"):
        from openvla_ros.model.checkpoint import resolve_checkpoint

        return resolve_checkpoint(checkpoint, revision or None, local_files_only)


def describe(stats: ActionStats, spec: ActionSpec) -> dict[str, Any]:
    """Return everything known about one statistics key, ready for JSON."""
    return {
        "unnorm_key": stats.unnorm_key,
        "source_file": stats.source,
        "action_dim": stats.action_dim,
        "q01": stats.q01,
        "q99": stats.q99,
        "mask": stats.mask,
        "step_mm": _step(stats, slice(0, 3), _millimetres(spec)),
        "step_deg": _step(stats, slice(3, 6), _degrees(spec)),
        "action_spec": asdict(spec),
        "unknown_for_motion": spec.unknown_for_motion(),
    }


def _table(checkpoint: str, rows: list[tuple[ActionStats, ActionSpec]]) -> Table:
    table = Table(title=f"Action statistics of {checkpoint}", title_justify="left", show_lines=True)
    table.add_column("statistics key, robot", overflow="fold", style="bold")
    table.add_column("step: translation", no_wrap=True)
    table.add_column("step: rotation", no_wrap=True)
    table.add_column("gripper", no_wrap=True)
    table.add_column("rate and frame", overflow="fold")
    for stats, spec in rows:
        rate = f"{spec.action_hz:g} Hz" if spec.action_hz else "rate unknown"
        table.add_row(
            f"{stats.unnorm_key}\n[dim]{spec.robot or 'robot unknown'}[/]",
            _step_text(stats, slice(0, 3), _millimetres(spec), AXES, "mm"),
            _step_text(stats, slice(3, 6), _degrees(spec), _rotation_names(spec), "degrees"),
            _gripper_text(spec),
            f"{rate}\n{_frame_text(spec)}",
        )
    return table


def _millimetres(spec: ActionSpec) -> float | None:
    return None if spec.translation_unit_m is None else 1000 * spec.translation_unit_m


def _degrees(spec: ActionSpec) -> float | None:
    return None if spec.rotation_unit_rad is None else float(np.degrees(spec.rotation_unit_rad))


def _step(stats: ActionStats, part: slice, scale: float | None) -> dict[str, list[float]] | None:
    if scale is None or stats.action_dim != EEF_DIM:
        return None
    low, high = stats.q01[part] * scale, stats.q99[part] * scale
    return {axis: [float(low[i]), float(high[i])] for i, axis in enumerate(AXES)}


def _step_text(
    stats: ActionStats, part: slice, scale: float | None, names: tuple[str, ...], unit: str
) -> str:
    if stats.action_dim != EEF_DIM:
        return f"{stats.action_dim} numbers"
    factor, places = (1.0, 3) if scale is None else (scale, 1)
    lines = [
        f"{name} {low * factor:+.{places}f} … {high * factor:+.{places}f}"
        for name, low, high in zip(names, stats.q01[part], stats.q99[part], strict=True)
    ]
    return "\n".join([*lines, "dataset units" if scale is None else unit])


def _rotation_names(spec: ActionSpec) -> tuple[str, ...]:
    return AXES if spec.rotation_form == "rotvec" else ("roll", "pitch", "yaw")


def _gripper_text(spec: ActionSpec) -> str:
    if spec.gripper_open is None or spec.gripper_closed is None:
        return "unknown"
    return f"{spec.gripper_closed:g} closed\n{spec.gripper_open:g} open"


def _frame_text(spec: ActionSpec) -> str:
    if not (spec.translation_frame and spec.rotation_frame):
        return "frame unknown"
    same = spec.translation_frame == spec.rotation_frame
    where = spec.translation_frame if same else f"{spec.translation_frame}/{spec.rotation_frame}"
    return f"{where}, {spec.rotation_form or 'unknown rotation'}, {spec.kind or 'unknown kind'}"
