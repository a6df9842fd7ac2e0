"""A demo with recorded or sample pictures: the node answers them and moves a mock robot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.child_processes import ChildProcesses
from openvla_ros.ros.demo_options import ARM, DemoOptions
from openvla_ros.ros.demo_policy import NODE_NAME, DemoPolicy
from openvla_ros.ros.demo_report import DemoReport, write_contact_sheet
from openvla_ros.ros.demo_stage import Stage
from openvla_ros.ros.frame_sources import open_frame_source
from openvla_ros.ros.monitor import DROP_REASON_NAMES, show
from openvla_ros.ros.recorder import demo_topics

DURATION_S = 20.0


class PictureScene:
    """A camera node that plays pictures, and a robot that is only a pose. A `Scene`."""

    def __init__(self, options: DemoOptions) -> None:
        """Look for the pictures.

        Raises:
            ConfigurationError: They cannot be read, no instruction goes with them, or an arm is
                asked for.
        """
        if options.robot != ARM:
            raise ConfigurationError(
                f"robot {options.robot} is an arm of the simulated cell, and pictures move a mock "
                "robot: leave ROBOT (--robot) out, or BAG (--bag)."
            )
        source: Any = open_frame_source(options.bag, options.image_topic, options.instruction_topic)
        if not options.instruction and getattr(source, "instruction_topic", None) == "":
            raise ConfigurationError(
                f"{options.bag} has no std_msgs/String topic with instructions. Give one with "
                '--instruction "put the spoon on the towel".'
            )
        self._options = options
        frames = f"{source.description}, {options.rate_hz:g} Hz"
        self.description = f"Frames: {frames}. Motion: mock robot, no hardware."
        self.node_parameters: dict[str, Any] = {}
        self.topics = demo_topics(NODE_NAME)

    def start(self, children: ChildProcesses, policy: DemoPolicy) -> None:
        """Start camera and robot."""
        options = self._options
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

    def play(self, stage: Stage) -> None:
        """Show the table for the demo's duration."""
        stage.wait_for_answers()
        duration_s = self._options.duration_s or DURATION_S
        show(stage.monitor, stage.console, duration_s, stage.policy.title, stage.children.check)

    def finish(self, report: DemoReport, out: Path, policy: DemoPolicy, console: Console) -> None:
        """Write the contact sheet."""
        if report.answered:
            write_contact_sheet(
                out / "bag",
                out / "contact_sheet.png",
                "OpenVLA demo: frames and the actions answered to them",
                policy.caution or policy.title,
                DROP_REASON_NAMES,
            )
