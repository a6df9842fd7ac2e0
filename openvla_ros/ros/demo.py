"""`openvla-ros demo`: camera, policy node, mock robot and monitor, on one machine.

Three processes over real DDS (camera, node, mock robot); this one drives the node's lifecycle,
shows the table, records the bag, and then reads the bag back to judge whether the pipeline worked.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rclpy
import yaml
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rich.console import Console

from openvla_ros.errors import ConfigurationError, OpenVLAError
from openvla_ros.ros.child_processes import ChildProcesses
from openvla_ros.ros.demo_environment import demo_environment
from openvla_ros.ros.demo_policy import NODE_NAME, DemoPolicy, choose_policy
from openvla_ros.ros.demo_report import DemoReport, read_report, write_contact_sheet
from openvla_ros.ros.frame_sources import open_frame_source
from openvla_ros.ros.lifecycle_client import LifecycleClient, LifecycleError
from openvla_ros.ros.monitor import DROP_REASON_NAMES, MonitorNode, show, spinning
from openvla_ros.ros.recorder import Recorder, demo_topics

FIRST_MESSAGES_S = 20.0  # discovery takes about 0.3 s; a loaded machine is given more
STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class DemoOptions:
    """What the user chose on the command line.

    Attributes:
        duration_s: How long the table is shown.
        rate_hz: Frames per second of the camera.
        out: Folder for bag, sheet and logs; None makes demo_output/<time>.
        bag: Recording to play instead of sample data.
        image_topic: Topic in `bag`; "" when it has only one.
        instruction_topic: Topic in `bag`; "" when it has at most one.
        instruction: Sent instead of the recorded ones; "" sends those.
        checkpoint: Folder or hub id; "" builds the tiny random one.
        adapter: PEFT folder or "".
        unnorm_key: Statistics key; "" when the checkpoint has only one.
        quantization: As the node's parameter.
        exactness: As the node's parameter.
        device: As the node's parameter.
        backend: "openvla", or "mock" for machines without torch.
        image_max_age_s: Overrides the demo's choice; None keeps it.
        max_action_age_s: Overrides the demo's choice; None keeps it.
        params_file: Node parameters that replace the demo's.
        load_timeout_s: How long loading may take.
    """

    duration_s: float = 20.0
    rate_hz: float = 5.0
    out: Path | None = None
    bag: Path | None = None
    image_topic: str = ""
    instruction_topic: str = ""
    instruction: str = ""
    checkpoint: str = ""
    adapter: str = ""
    unnorm_key: str = ""
    quantization: str = "none"
    exactness: str = "self"
    device: str = "auto"
    backend: str = "openvla"
    image_max_age_s: float | None = None
    max_action_age_s: float | None = None
    params_file: Path | None = None
    load_timeout_s: float = 1800.0


class DemoError(OpenVLAError):
    """The pipeline did not work; the text says which part."""


def run_demo(options: DemoOptions, console: Console) -> DemoReport:
    """Run the demo; return what its bag says.

    Raises:
        DemoError: No answers, no motion, or nothing arrives.
        OpenVLAError: A process died, the node refused a transition, an input is unusable.
        KeyboardInterrupt: Ctrl-C or SIGTERM; processes are ended and the bag is closed by then.
    """
    source = open_frame_source(options.bag, options.image_topic, options.instruction_topic)
    _require_instruction(options, source)
    policy = choose_policy(options, console)
    out = _output_folder(options.out)
    os.environ.update(demo_environment(os.environ))
    _introduce(console, options, policy, source.description, out)
    parameters = out / "parameters.yaml"
    parameters.write_text(
        yaml.safe_dump({NODE_NAME: {"ros__parameters": policy.parameters}}), encoding="utf-8"
    )
    with _interruptible(), ChildProcesses(os.environ, out / "logs") as children:
        _start_processes(children, options, policy, parameters)
        _drive(children, options, policy, out, console)
    return _judge(out, policy, console)


def _start_processes(
    children: ChildProcesses, options: DemoOptions, policy: DemoPolicy, parameters: Path
) -> None:
    children.start("node", "openvla_ros.ros.node", ["--ros-args", "--params-file", str(parameters)])
    camera = ["--rate", str(options.rate_hz), "--still", str(policy.still_s)]
    for flag, value in (
        ("--bag", options.bag),
        ("--image-topic", options.image_topic),
        ("--instruction-topic", options.instruction_topic),
        ("--instruction", options.instruction),
    ):
        camera += [flag, str(value)] if value else []
    children.start("camera", "openvla_ros.ros.camera", camera)
    base_frame = str(policy.parameters["base_frame"])
    remaps = [f"{name}:=/{NODE_NAME}/{name}" for name in ("twist_cmd", "gripper_cmd")]
    children.start(
        "mock robot",
        "openvla_ros.ros.mock_robot",
        ["--base-frame", base_frame, "--ros-args", "-r", remaps[0], "-r", remaps[1]],
    )


def _drive(
    children: ChildProcesses,
    options: DemoOptions,
    policy: DemoPolicy,
    out: Path,
    console: Console,
) -> None:
    # Signals are ours: rclpy's handler would shut the context before the bag is closed.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        driver, monitor = Node("openvla_demo"), MonitorNode(NODE_NAME)
        recorder = Recorder(driver, out / "bag", demo_topics(NODE_NAME))
        try:
            with spinning(driver, monitor):
                lifecycle = LifecycleClient(driver, NODE_NAME)
                _bring_up(lifecycle, monitor, children, options, console)
                _wait_for_answer(monitor, children, policy)
                show(monitor, console, options.duration_s, policy.title, children.check)
                _wind_down(lifecycle, console)
        finally:
            recorder.close()
    finally:
        rclpy.try_shutdown()


def _bring_up(
    lifecycle: LifecycleClient,
    monitor: MonitorNode,
    children: ChildProcesses,
    options: DemoOptions,
    console: Console,
) -> None:
    begin = time.monotonic()
    with console.status("loading the policy and testing that it looks at its images ..."):
        try:
            lifecycle.change("configure", options.load_timeout_s, children.check)
            lifecycle.change("activate", STOP_TIMEOUT_S, children.check)
        except LifecycleError as error:
            status = monitor.state.latest("status")
            reason = f" It says: {status.detail}" if status is not None and status.detail else ""
            raise DemoError(f"{error}{reason}\n{children.log_tail('node')}") from error
    console.print(f"The node is active after {time.monotonic() - begin:.1f} s.")


def _wait_for_answer(monitor: MonitorNode, children: ChildProcesses, policy: DemoPolicy) -> None:
    patience_s = FIRST_MESSAGES_S + policy.parameters["max_action_age"]
    deadline = time.monotonic() + patience_s
    while not (monitor.state.counts["action"] and monitor.state.counts["pose"]):
        children.check()
        if time.monotonic() > deadline:
            absent = [
                key for key in ("status", "action", "twist", "pose") if not _seen(monitor, key)
            ]
            raise DemoError(
                f"Nothing arrived within {patience_s:.0f} s on: {', '.join(absent)}. "
                f"The node's state is {monitor.state.state_text()}.\n{children.log_tail('node')}"
            )
        time.sleep(0.05)


def _seen(monitor: MonitorNode, key: str) -> bool:
    return monitor.state.counts[key] > 0


def _wind_down(lifecycle: LifecycleClient, console: Console) -> None:
    try:
        lifecycle.change("deactivate", STOP_TIMEOUT_S)
    except LifecycleError as error:
        console.print(f"[yellow]{error}[/] The process is ended anyway.")


def _judge(out: Path, policy: DemoPolicy, console: Console) -> DemoReport:
    report = read_report(out / "bag")
    if report.answered:
        write_contact_sheet(
            out / "bag",
            out / "contact_sheet.png",
            "OpenVLA demo: frames and the actions answered to them",
            policy.caution or policy.title,
            DROP_REASON_NAMES,
        )
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
        ordered = sorted(report.latencies_s)
        console.print(
            f"{report.actions} answers, {report.executed} executed, different token sequences: "
            f"{report.token_sequences}, median latency {ordered[len(ordered) // 2]:.2f} s, "
            f"path of the end effector {100 * report.travelled_m:.1f} cm."
        )
    for name in ("bag", "contact_sheet.png", "logs"):
        if (out / name).exists():
            console.print(f"  {name:18s} {out / name}", highlight=False, soft_wrap=True)


def _introduce(
    console: Console, options: DemoOptions, policy: DemoPolicy, source: str, out: Path
) -> None:
    console.print(f"[bold]{policy.title}[/]")
    if policy.caution:
        console.print(f"[bold yellow]{policy.caution}[/]")
    console.print(f"Frames: {source}, {options.rate_hz:g} Hz. Motion: mock robot, no hardware.")
    console.print(f"ROS_DOMAIN_ID={os.environ['ROS_DOMAIN_ID']}, this machine only. Output: {out}")
    for note in policy.notes:
        console.print(f"Note: {note}")


def _require_instruction(options: DemoOptions, source: Any) -> None:
    if not options.instruction and getattr(source, "instruction_topic", None) == "":
        raise ConfigurationError(
            f"{options.bag} has no std_msgs/String topic with instructions. Give one with "
            '--instruction "put the spoon on the towel".'
        )


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
