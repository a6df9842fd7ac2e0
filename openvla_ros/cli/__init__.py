"""`openvla-ros`: everything a user does from a shell.

Starting it imports neither torch nor rclpy; each command imports what it needs. Exit codes: 0 done,
1 a mistake that the message explains, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from openvla_ros.cli import audit, bench, checkpoints, doctor, finetune, keys, replay, robot, sim
from openvla_ros.cli.output import print_error
from openvla_ros.errors import OpenVLAError

DEBUG_FLAG = "--debug"
INTERRUPTED = 130

app = typer.Typer(
    name="openvla-ros",
    help="OpenVLA on a real arm: camera and instruction in, twist and gripper command out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(doctor.doctor)
app.command()(keys.keys)
app.command()(checkpoints.predict)
app.command()(checkpoints.convert)
app.command()(checkpoints.merge)
app.command()(audit.audit)
app.command()(replay.replay)
app.command()(finetune.finetune)
app.command(context_settings=bench.SETTINGS)(bench.bench)
app.command()(robot.monitor)
app.command()(robot.demo)
app.add_typer(sim.app)


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option(DEBUG_FLAG, help="Show the traceback of an error.")
    ] = False,
) -> None:
    """OpenVLA on a real arm: camera and instruction in, twist and gripper command out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Accepted anywhere, because it is added at the end of a line that has just failed.
    wants_traceback = DEBUG_FLAG in given
    given = [argument for argument in given if argument != DEBUG_FLAG]
    try:
        app(args=given, prog_name="openvla-ros")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OpenVLAError as error:
        if wants_traceback:
            raise
        print_error(error, as_json="--json" in given)
        return 1
    return 0
