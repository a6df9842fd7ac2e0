"""`openvla-ros bench`: the engine beside Hugging Face's, on this machine."""

from __future__ import annotations

import typer

from openvla_ros.cli.output import needs

#: `engine.bench` reads its own options: it also runs where typer is not installed.
SETTINGS = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


def bench(context: typer.Context) -> None:
    """Measure latency, memory and equality of ids beside Hugging Face; see bench --help."""
    with needs("bench"):
        from openvla_ros.engine.bench.command import main
    raise typer.Exit(main(context.args, "openvla-ros bench"))
