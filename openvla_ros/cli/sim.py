"""`openvla-ros sim`: what is done in the simulated cell."""

from __future__ import annotations

import typer

from openvla_ros.cli import sim_eval, sim_libero, sim_record

app = typer.Typer(
    name="sim",
    help="The simulated cell: record demonstrations, evaluate policies.",
    no_args_is_help=True,
)
app.command()(sim_record.record)
app.command("eval")(sim_eval.evaluate)
app.command()(sim_libero.libero)
