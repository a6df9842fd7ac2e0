"""`openvla-ros demo`: a policy node, what it sees and what it moves, on one machine.

The node and its surroundings are processes of their own over real DDS; this one drives the node's
lifecycle, shows the table, records the bag, and then reads the bag back to judge whether the
pipeline worked.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from rich.console import Console

from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.child_processes import ChildProcesses
from openvla_ros.ros.demo_cell import CellScene
from openvla_ros.ros.demo_environment import demo_environment
from openvla_ros.ros.demo_options import CELL, DemoError, DemoOptions
from openvla_ros.ros.demo_pictures import PictureScene
from openvla_ros.ros.demo_policy import NODE_NAME, DemoPolicy, choose_policy, choose_scene
from openvla_ros.ros.demo_report import DemoReport, read_report
from openvla_ros.ros.demo_stage import Scene, open_stage
from openvla_ros.ros.monitor import DROP_REASON_NAMES

RESULTS = ("summary.html", "demo.gif", "demo.mp4", "contact_sheet.png", "bag", "logs")


def run_demo(options: DemoOptions, console: Console) -> DemoReport:
    """Run the demo; return what its bag says.

    Raises:
        DemoError: No answers, no motion, or nothing arrives.
        OpenVLAError: A process died, the node refused a transition, an input is unusable.
        KeyboardInterrupt: Ctrl-C or SIGTERM; processes are ended and the bag is closed by then.
    """
    kind = choose_scene(options)
    scene: Scene = CellScene(options) if kind == CELL else PictureScene(options)
    policy = choose_policy(options, kind)
    out = _output_folder(options.out)
    os.environ.update(demo_environment(os.environ))
    _introduce(console, policy, scene, out)
    parameters = out / "parameters.yaml"
    values = policy.parameters | scene.node_parameters
    parameters.write_text(yaml.safe_dump({NODE_NAME: {"ros__parameters": values}}), "utf-8")
    with _interruptible():
        with ChildProcesses(os.environ, out / "logs") as children:
            node = ["--ros-args", "--params-file", str(parameters)]
            children.start("node", "openvla_ros.ros.node", node)
            scene.start(children, policy)
            with open_stage(scene, options, policy, out, console, children) as stage:
                scene.play(stage)
        return _judge(scene, policy, out, console)


def _judge(scene: Scene, policy: DemoPolicy, out: Path, console: Console) -> DemoReport:
    report = read_report(out / "bag")
    scene.finish(report, out, policy, console)
    _summarize(report, out, console)
    problems = report.problems(DROP_REASON_NAMES)
    if problems:
        raise DemoError(" ".join(problems) + f" Logs: {out / 'logs'}")
    return report


def _summarize(report: DemoReport, out: Path, console: Console) -> None:
    console.print("\n[bold]Read back from the bag[/]")
    for topic, count in report.counts.items():
        if count:
            console.print(f"  {count:6d}  {topic}", highlight=False)
    if report.latencies_s:
        console.print(
            f"{report.actions} answers, {report.executed} executed, different token sequences: "
            f"{report.token_sequences}, median latency {report.median_latency_s:.2f} s, "
            f"path of the end effector {100 * report.travelled_m:.1f} cm."
        )
    for name in RESULTS:
        if (out / name).exists():
            console.print(f"  {name:18s} {out / name}", highlight=False, soft_wrap=True)


def _introduce(console: Console, policy: DemoPolicy, scene: Scene, out: Path) -> None:
    console.print(f"[bold]{policy.title}[/]")
    if policy.caution:
        console.print(f"[bold yellow]{policy.caution}[/]")
    console.print(scene.description)
    console.print(f"ROS_DOMAIN_ID={os.environ['ROS_DOMAIN_ID']}, this machine only. Output: {out}")
    for note in policy.notes:
        console.print(f"Note: {note}")


def _output_folder(out: Path | None) -> Path:
    folder = out if out is not None else Path("demo_output") / time.strftime("%Y-%m-%d_%H-%M-%S")
    if (folder / "bag").exists():
        raise ConfigurationError(f"{folder} already holds a demo. Choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make SIGTERM and SIGINT raise KeyboardInterrupt, even where a shell had them ignored."""
    previous = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
