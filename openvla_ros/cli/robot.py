"""`openvla-ros monitor` and `openvla-ros demo`: what needs ROS 2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from openvla_ros.cli.output import needs
from openvla_ros.errors import ConfigurationError, OpenVLAError
from openvla_ros.ros.demo_options import ARM, SCENES, SEED, DemoOptions

SCENE_HELP = (
    "cell, pictures (and a mock robot), or auto: pictures for --bag, and for a checkpoint that "
    "knows the sample pictures."
)
DURATION_HELP = "Seconds: 12 for each instruction in the cell, or 20 of pictures."


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
    instruction: Annotated[
        str,
        typer.Option(help="Give this instead of the demo's instructions, or the recorded ones."),
    ] = "",
    checkpoint: Annotated[
        str, typer.Option(envvar="CHECKPOINT", help="Folder or hub id; default: openvla-tiny.")
    ] = "",
    robot: Annotated[str, typer.Option(help="Arm of the cell: viperx or panda.")] = ARM,
    seed: Annotated[int, typer.Option(min=0, help="Scene of the cell.")] = SEED,
    scene: Annotated[str, typer.Option(help=SCENE_HELP)] = SCENES[0],
    duration: Annotated[float | None, typer.Option(min=1.0, help=DURATION_HELP)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder; default demo_output/<time>.")
    ] = None,
    bag: Annotated[
        Path | None, typer.Option(help="Pictures: play this rosbag2 instead of sample data.")
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0.1, max=30.0, help="Pictures: frames per second.")
    ] = 5.0,
    image_topic: Annotated[
        str, typer.Option(help="Image topic in the bag, if it has several.")
    ] = "",
    instruction_topic: Annotated[str, typer.Option(help="Instruction topic in the bag.")] = "",
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
    """Let a policy move a simulated arm by language: live, with a bag, a film and a page."""
    if backend not in ("openvla", "mock"):
        raise ConfigurationError(f"backend {backend!r} is unknown; use openvla or mock.")
    with needs("demo"):
        from openvla_ros.ros.demo import run_demo

        options = DemoOptions(
            scene=scene,
            robot=robot,
            seed=seed,
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
