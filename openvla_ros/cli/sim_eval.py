"""`openvla-ros sim eval`: how often a policy does what it is told, in the simulated cell."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from openvla_ros.cli.output import needs
from openvla_ros.cli.sim_eval_tables import show
from openvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from openvla_ros.sim.cell import SimCell
    from openvla_ros.sim.closed_loop.drivers import Driver
    from openvla_ros.sim.closed_loop.evaluation import Trial

CHECKPOINT = "checkpoint"
THROUGH = ("process", "ros")


@dataclass(frozen=True)
class _Row:
    """One row of the table: the same episodes under circumstances of its own."""

    quantization: str
    dtype: str
    mode: str
    latency_ms: float

    def named(self) -> str:
        return f"{self.quantization}_{self.dtype}_{self.mode}_{self.latency_ms:g}ms"


def evaluate(
    checkpoint: Annotated[
        str, typer.Option(help="Folder, hub id, or openvla-tiny, which is in the package.")
    ] = "openvla-tiny",
    task: Annotated[str, typer.Option(help="reach, push, pick or place.")] = "reach",
    episodes: Annotated[int, typer.Option(help="How many.")] = 100,
    seed: Annotated[
        int, typer.Option(help="Of the first scene; the others follow. Below 1000000.")
    ] = 0,
    policy: Annotated[
        str,
        typer.Option(
            help="checkpoint; or what it is compared with: expert (looks at the state), nearest "
            "(the expert, at the block nearest to the gripper), constant (the expert's mean)."
        ),
    ] = CHECKPOINT,
    swap_instruction: Annotated[
        bool, typer.Option("--swap-instruction", help="Name another block of the same scene.")
    ] = False,
    black_image: Annotated[
        bool, typer.Option("--black-image", help="Show nothing: a policy that looks must fail.")
    ] = False,
    latency_ms: Annotated[
        str, typer.Option(metavar="MS,...", help="From picture to answer, simulated time.")
    ] = "0",
    mode: Annotated[
        str, typer.Option(metavar="MODE,...", help="twist_mode: stretch, exact or hold.")
    ] = "",
    quantization: Annotated[
        str, typer.Option(metavar="Q,...", help="none, fp8, int8, int4, nf4 or bnb_int8.")
    ] = "none",
    dtype: Annotated[
        str, typer.Option(metavar="D,...", help="auto, float32, bfloat16 or float16.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    unnorm_key: Annotated[str, typer.Option(help="Statistics key; see `openvla-ros keys`.")] = "",
    adapter: Annotated[str, typer.Option(help="PEFT adapter folder or hub id.")] = "",
    params_file: Annotated[
        Path | None, typer.Option(help="Parameters of openvla_node: limits, ages, action_spec.*.")
    ] = None,
    through: Annotated[
        str,
        typer.Option(help="process; or ros: openvla_node and sim_cell, every message over DDS."),
    ] = "process",
    arm: Annotated[str, typer.Option(help="viperx or panda.")] = "viperx",
    gallery: Annotated[
        Path | None, typer.Option(help="New folder for pictures of the episodes that failed.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Evaluate a policy in closed loop; MS, MODE, Q and D may be lists, which give a table."""
    with needs("Evaluating in the simulated cell"):
        from openvla_ros.config.files import read_parameter_file
        from openvla_ros.sim.cell import SimCell
        from openvla_ros.sim.closed_loop.evaluation import Trial

        base = Trial(
            kind=task,
            episodes=episodes,
            first_seed=seed,
            is_swapped=swap_instruction,
            parameters=read_parameter_file(params_file) if params_file else {},
        )
        rows = _rows(quantization, dtype, mode or base.config.motion.twist_mode, latency_ms)
        trials = [_trial(base, row) for row in rows]
        if through not in THROUGH:
            raise ConfigurationError(f"--through {through} is not one of: {', '.join(THROUGH)}.")
        cell = SimCell(arm)
    load = _Loader(policy, checkpoint, device, unnorm_key, adapter, cell, task)
    reports = []
    for row, trial in zip(rows, trials, strict=True):
        folder = gallery and (gallery / row.named() if len(rows) > 1 else gallery)
        driver, described = load.driver(row)
        if black_image:
            driver, described = _black(driver), {**described, "black_image": True}
        made = _run(cell, driver, trial, described, folder, through)
        reports.append(made | {"command": shlex.join(["openvla-ros", *sys.argv[1:]])})
    cell.close()
    show(reports, out, as_json=as_json)


class _Loader:
    """Makes the driver of a row; a checkpoint is loaded once for rows that follow each other."""

    def __init__(
        self,
        policy: str,
        checkpoint: str,
        device: str,
        unnorm_key: str,
        adapter: str,
        cell: SimCell,
        task: str,
    ) -> None:
        self._policy = policy
        self._named: dict[str, Any] = {
            "checkpoint": checkpoint,
            "device": device,
            "unnorm_key": unnorm_key,
            "adapter": adapter,
        }
        self._cell = cell
        self._task = task
        self._loaded: tuple[tuple[str, str], Driver, dict[str, Any]] | None = None

    def driver(self, row: _Row) -> tuple[Driver, dict[str, Any]]:
        """Return the driver and what the report says about it."""
        wanted = (row.quantization, row.dtype)
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None  # first: two 7B policies may not fit
            self._loaded = (wanted, *self._load(*wanted))
        return self._loaded[1], self._loaded[2]

    def _load(self, quantization: str, dtype: str) -> tuple[Driver, dict[str, Any]]:
        from openvla_ros.sim.closed_loop.drivers import control_driver, policy_driver

        if self._policy != CHECKPOINT:
            driver = control_driver(self._policy, self._cell, self._task)
            return driver, {"kind": self._policy}
        with needs("Loading a checkpoint"):
            from openvla_ros.data.fingerprint import fingerprint
            from openvla_ros.evaluation.replay.variants import Variant
            from openvla_ros.model.checkpoint import resolve_checkpoint

            variant = Variant("eval", quantization=quantization, dtype=dtype, **self._named)
            loaded = variant.load()
            described = {
                "kind": CHECKPOINT,
                "checkpoint": variant.checkpoint,
                "fingerprint": fingerprint(resolve_checkpoint(variant.checkpoint)),
                "adapter": variant.adapter,
                "unnorm_key": loaded.action_spec.unnorm_key,
                "quantization": quantization,
                "dtype": dtype,
                "choices": dict(loaded.info.choices),
            }
        return policy_driver(loaded), described


def _rows(quantization: str, dtype: str, mode: str, latency_ms: str) -> list[_Row]:
    try:
        latencies = [float(text) for text in _listed(latency_ms)]
    except ValueError as error:
        raise ConfigurationError(
            f"--latency-ms {latency_ms!r}: give milliseconds, such as 0,200,400."
        ) from error
    policies = product(_listed(quantization), _listed(dtype))
    return [
        _Row(*policy, mode_, latency)
        for policy, mode_, latency in product(policies, _listed(mode), latencies)
    ]


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _trial(base: Trial, row: _Row) -> Trial:
    return replace(base, latency_ms=row.latency_ms).with_mode(row.mode)


def _black(driver: Driver) -> Driver:
    from openvla_ros.sim.closed_loop.drivers import blackened

    return blackened(driver)


def _run(
    cell: SimCell,
    driver: Driver,
    trial: Trial,
    described: dict[str, Any],
    folder: Path | None,
    through: str,
) -> dict[str, Any]:
    from openvla_ros.sim.closed_loop.evaluation import report, run_trial
    from openvla_ros.sim.closed_loop.gallery import Gallery

    gallery = Gallery(folder, driver.spec, f"Failures: {trial.kind}") if folder else None
    with _progress(trial.episodes) as advance:

        def on_episode(result: Any, cell: SimCell) -> None:
            advance(result.succeeded)
            if gallery is not None:
                gallery.add(result, cell.scene)

        if through == "ros":
            with needs("--through ros"):
                from openvla_ros.ros.closed_loop import RosLoop
                from openvla_ros.ros.demo_environment import demo_environment

                os.environ.update(demo_environment(os.environ))  # two at a time do not meet
                with RosLoop(driver, trial, cell.arm.name) as loop:
                    results = loop.run(on_episode=on_episode, keeps_moments=gallery is not None)
        else:
            results = run_trial(
                cell, driver, trial, on_episode=on_episode, keeps_moments=gallery is not None
            )
    if gallery is not None:
        gallery.finish()
    return report(results, trial, described, through=through, arm=cell.arm.name)


@contextmanager
def _progress(count: int) -> Iterator[Callable[[bool], None]]:
    """A bar on standard error that counts successes; nothing of it stays on screen."""
    columns = (
        TextColumn("{task.fields[done]} succeeded"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=count, done=0)
        done = 0

        def advance(succeeded: bool) -> None:
            nonlocal done
            done += succeeded
            bar.update(task, advance=1, done=done)

        yield advance
