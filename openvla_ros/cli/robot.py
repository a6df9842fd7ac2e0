"""`openvla-ros monitor` and `openvla-ros demo`: what needs ROS 2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from openvla_ros.cli.output import needs
from openvla_ros.errors import ConfigurationError, OpenVLAError


def monitor(
    node: Annotated[str, typer.Option(help="Name of the node.")] = "openvla_node",
    twist: Annotated[str, typer.Option(help="Topic of the twist, if it was remapped.")] = "",
    duration: Annotated[float, typer.Option(min=0.0, help="Seconds; 0 runs until Ctrl-C.")] = 0.0,
    foxglove: Annotated[
        bool, typer.Option("--foxglove", help="Also serve every topic to Foxglove.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="Foxglove: address to listen on; 0.0.0.0 = every network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Foxglove: TCP port.")] = 8765,
) -> None:
    """Show what the node sees, answers and commands, live."""
    console = Console()
    with needs("monitor"):
        from openvla_ros.ros.monitor import run_monitor
    if foxglove:
        with needs("monitor --foxglove"):
            from openvla_ros.ros.foxglove_bridge import FoxgloveBridge

    def bridge() -> list[FoxgloveBridge]:
        if not foxglove:
            return []
        made = FoxgloveBridge(host, port)
        console.print(f"Foxglove: open a connection to ws://{host}:{made.port}", highlight=False)
        return [made]

    if not run_monitor(node, duration or None, console, twist, bridge):
        raise OpenVLAError(
            f"Nothing was heard from {node}. Is it running, and with the same ROS_DOMAIN_ID and "
            "ROS_AUTOMATIC_DISCOVERY_RANGE as this shell?"
        )


def demo(
    duration: Annotated[float, typer.Option(min=1.0, help="Seconds to run after loading.")] = 20.0,
    rate: Annotated[float, typer.Option(min=0.1, max=30.0, help="Frames per second.")] = 5.0,
    out: Annotated[
        Path | None, typer.Option(help="Output folder; default demo_output/<time>.")
    ] = None,
    bag: Annotated[
        Path | None, typer.Option(help="Play this rosbag2 instead of sample data.")
    ] = None,
    image_topic: Annotated[
        str, typer.Option(help="Image topic in the bag, if it has several.")
    ] = "",
    instruction_topic: Annotated[str, typer.Option(help="Instruction topic in the bag.")] = "",
    instruction: Annotated[
        str, typer.Option(help="Send this instead of the recorded instructions.")
    ] = "",
    checkpoint: Annotated[
        str,
        typer.Option(
            envvar="CHECKPOINT", help="Folder or hub id; default: a tiny one with random weights."
        ),
    ] = "",
    adapter: Annotated[str, typer.Option(help="PEFT adapter folder or hub id.")] = "",
    unnorm_key: Annotated[
        str, typer.Option(envvar="UNNORM_KEY", help="Statistics key; see `openvla-ros keys`.")
    ] = "",
    quantization: Annotated[
        str, typer.Option(help="none, fp8, int8, int4, nf4 or bnb_int8.")
    ] = "none",
    exactness: Annotated[str, typer.Option(help="self, hf or approx.")] = "self",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    image_max_age: Annotated[
        float | None, typer.Option(help="Seconds; widens the node's limit.")
    ] = None,
    max_action_age: Annotated[
        float | None, typer.Option(help="Seconds; widens the node's limit.")
    ] = None,
    params_file: Annotated[
        Path | None, typer.Option(help="Node parameters that replace the demo's.")
    ] = None,
    backend: Annotated[
        str, typer.Option(hidden=True, help="openvla, or mock without torch.")
    ] = "openvla",
) -> None:
    """Run camera, policy node and mock robot on this machine, show them, record a bag."""
    if backend not in ("openvla", "mock"):
        raise ConfigurationError(f"backend {backend!r} is unknown; use openvla or mock.")
    with needs("demo"):
        from openvla_ros.ros.demo import DemoOptions, run_demo

        options = DemoOptions(
            duration_s=duration,
            rate_hz=rate,
            out=out,
            bag=bag,
            image_topic=image_topic,
            instruction_topic=instruction_topic,
            instruction=instruction,
            checkpoint=checkpoint,
            adapter=adapter,
            unnorm_key=unnorm_key,
            quantization=quantization,
            exactness=exactness,
            device=device,
            backend=backend,
            image_max_age_s=image_max_age,
            max_action_age_s=max_action_age,
            params_file=params_file,
        )
        run_demo(options, Console())
