"""A demo in the simulated cell: an arm is told one thing after another, in the same scene.

Time is simulated (/clock): on a machine that is too slow everything takes longer, and the arm does
the same.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rich.console import Console
from rich.markup import escape
from sensor_msgs.msg import CameraInfo, CompressedImage, JointState
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from openvla_ros.errors import ConfigurationError
from openvla_ros.messages import check_instruction
from openvla_ros.ros.child_processes import ChildProcesses
from openvla_ros.ros.demo_episode import VIEW_TOPIC, Episode, Track, read_tracks
from openvla_ros.ros.demo_film import film_frames, write_gif, write_mp4
from openvla_ros.ros.demo_options import DemoError, DemoOptions
from openvla_ros.ros.demo_pace import RATE_HZ, Pace, choose_pace
from openvla_ros.ros.demo_page import DemoFacts, demo_page
from openvla_ros.ros.demo_policy import NODE_NAME, DemoPolicy
from openvla_ros.ros.demo_report import DemoReport
from openvla_ros.ros.demo_stage import FIRST_MESSAGES_S, Stage
from openvla_ros.ros.monitor import show
from openvla_ros.ros.recorder import RecordedTopic, demo_topics
from openvla_ros.ros.service_client import ServiceClient
from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.scene import COLOURS
from openvla_ros.sim.tasks import phrases, read_task

CELL_NAME = "sim_cell"
DURATION_S = 12.0
VIEW_PIXELS = 448
LINGER_S = 0.8  # simulated, after an instruction: the film shows that the arm stands still
LATENCY_ANSWERS = 3
MEASURED_S = 1.5
MOST_TRIES = 200  # seeds, until a scene has the block that is named
CALL_S = 10.0
#: An arm that waits for its policy gets more time: so many actions, and at most so much time.
FAIR_SHARE = 0.67
MOST_TIMES_LONGER = 5.0


class CellScene:
    """The cell as a process, and what the arm is told in it. A `Scene`.

    Attributes:
        instructions: In order.
        seed: Of the scene.
        episodes: What has been done.
    """

    def __init__(self, options: DemoOptions) -> None:
        """Choose scene and instructions.

        Raises:
            ConfigurationError: No such arm, or no scene has the block that is named.
            InstructionError: The instruction is not one line of text.
            DependencyError: MuJoCo or the arm's meshes are not installed.
        """
        self._options = options
        self._cell = SimCell(options.robot)
        self.seed, self.instructions = _choose(self._cell, options)
        self.episodes: list[Episode] = []
        self.description = (
            f"Scene: simulated cell, {options.robot}, seed {self.seed}: "
            f"{', '.join(self._cell.state().blocks)} blocks. No hardware."
        )
        self.node_parameters: dict[str, Any] = {"use_sim_time": True}
        self.topics = (
            *demo_topics(NODE_NAME),
            RecordedTopic(VIEW_TOPIC, CompressedImage, is_best_effort=True),
            RecordedTopic("/camera_info", CameraInfo, is_best_effort=True),
            RecordedTopic("/joint_states", JointState),
            RecordedTopic("/task_done", Bool),
        )

    def start(self, children: ChildProcesses, policy: DemoPolicy) -> None:
        """Start the cell; it tells the arm nothing yet."""
        values = {
            "arm": self._options.robot,
            "seed": self.seed,
            "instruction": "none",
            "base_frame": policy.parameters["base_frame"],
            "publish_clock": "true",
            "view_size": VIEW_PIXELS,
        }
        arguments = ["--ros-args"]
        for name in ("twist_cmd", "gripper_cmd"):
            arguments += ["-r", f"{name}:=/{NODE_NAME}/{name}"]
        for name, value in values.items():
            arguments += ["-p", f"{name}:={value}"]
        children.start("cell", "openvla_ros.ros.sim_cell", arguments)

    def play(self, stage: Stage) -> None:
        """Give one instruction after another."""
        remote = _Remote(stage)
        remote.hold()
        remote.ask(self.instructions[0])
        latency_s, factor = _measure(stage, remote)
        for number, instruction in enumerate(self.instructions, 1):
            heading = f"{number} of {len(self.instructions)}: “{instruction}”"
            pace = choose_pace(latency_s, factor)
            stage.console.print(pace.words)
            remote.set(NODE_NAME, pace.parameters)
            episode = _perform(stage, remote, instruction, heading, pace)
            self.episodes.append(episode)
            factor = episode.real_time_factor
            colour = {"ok": "green", "warn": "yellow"}.get(episode.level, "default")
            stage.console.print(
                f"[bold]{escape(heading)}[/]: [bold {colour}]{episode.outcome}[/], "
                f"real-time factor {episode.real_time_factor:.2f}",
                highlight=False,
            )

    def finish(self, report: DemoReport, out: Path, policy: DemoPolicy, console: Console) -> None:
        """Write film and page."""
        tracks = read_tracks(out / "bag", self.episodes)
        frames = film_frames(tracks)
        if frames:
            write_gif(frames, out / "demo.gif")
            problem = write_mp4(frames, out / "demo.mp4")
            if problem:
                console.print(f"Note: {problem}.")
        facts = DemoFacts(
            policy.title, policy.caution, self._facts(policy, tracks), self._cell.state().blocks
        )
        (out / "summary.html").write_text(demo_page(facts, tracks), encoding="utf-8")
        done = sum(episode.done_s is not None for episode in self.episodes)
        judged = sum(episode.task is not None for episode in self.episodes)
        if judged:
            console.print(f"\n[bold]{done} of {judged} instructions done.[/]")

    def _facts(self, policy: DemoPolicy, tracks: list[Track]) -> dict[str, str]:
        factor = _ratio(self.episodes)
        return {
            "Policy": str(policy.parameters.get("checkpoint", policy.parameters["backend"])),
            "Scene": f"arm {self._options.robot}, seed {self.seed}",
            "Machine": f"{os.cpu_count()} cores, {platform.machine()}, Python "
            f"{platform.python_version()}",
            "Real-time factor": f"{factor:.2f}",
            "Answers executed": str(sum(track.executed for track in tracks)),
            "Node's time limits": "; ".join(policy.notes),
            "Beside this page": "demo.gif, demo.mp4 (where it could be written), bag (MCAP), logs",
        }


class _Remote:
    """Cell and node from afar: services, and whether the task is done."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._services = {
            name: ServiceClient(stage.driver, kind, name)
            for kind, name in (
                (SetParameters, f"/{CELL_NAME}/set_parameters"),
                (SetParameters, f"/{NODE_NAME}/set_parameters"),
                (Trigger, f"/{CELL_NAME}/reset"),
                (Trigger, f"/{NODE_NAME}/stop"),
                (Trigger, f"/{NODE_NAME}/start"),
            )
        }
        self.is_done = False
        self.done_ns: int | None = None  # when it first was, since `ask`
        stage.driver.create_subscription(Bool, "/task_done", self._on_done, 10)

    @property
    def now_ns(self) -> int:
        """Simulated time."""
        return self._stage.driver.get_clock().now().nanoseconds

    def hold(self) -> None:
        """Stop the arm; the node goes on answering."""
        self._trigger(f"/{NODE_NAME}/stop")

    def release(self) -> None:
        """Let the policy move the arm."""
        self._trigger(f"/{NODE_NAME}/start")

    def ask(self, instruction: str) -> None:
        """Put everything back to the start, and send an instruction."""
        self.set(CELL_NAME, {"instruction": instruction})
        self._trigger(f"/{CELL_NAME}/reset")
        # What was on its way from before the reset may say something else.
        self._stage.wait(lambda: not self.is_done, "the cell to be at its start", CALL_S)
        self._stage.wait(
            lambda: self._told() == instruction, "the node to get its instruction", CALL_S
        )
        self.done_ns = None

    def set(self, node: str, values: Mapping[str, Any]) -> None:
        """Set parameters.

        Raises:
            DemoError: One was refused.
        """
        parameters = [Parameter(name, value=v).to_parameter_msg() for name, v in values.items()]
        request = SetParameters.Request(parameters=parameters)
        for result in self._call(f"/{node}/set_parameters", request).results:
            if not result.successful:
                raise DemoError(f"{node} refuses {dict(values)}: {result.reason}")

    def _told(self) -> str:
        status = self._stage.monitor.state.latest("status")
        return status.instruction if status is not None else ""

    def _trigger(self, name: str) -> None:
        answer = self._call(name, Trigger.Request())
        if not answer.success:
            raise DemoError(f"{name} was refused: {answer.message}")

    def _call(self, name: str, request: Any) -> Any:
        return self._services[name].call(request, CALL_S, self._stage.children.check)

    def _on_done(self, message: Bool) -> None:
        self.is_done = message.data
        if message.data and self.done_ns is None:
            self.done_ns = self.now_ns


def _choose(cell: SimCell, options: DemoOptions) -> tuple[int, tuple[str, ...]]:
    """Return the seed and the instructions; `cell` is left in that scene."""
    instruction = check_instruction(options.instruction)
    if not instruction:
        cell.reset(options.seed)
        told = [phrases("reach", c)[n] for n, c in enumerate(cell.state().blocks)]
        return options.seed, tuple(told)
    task = read_task(instruction, COLOURS)
    kind, target = (task.kind, task.target) if task else ("reach", "")
    for seed in range(options.seed, options.seed + MOST_TRIES):
        cell.reset(seed, kind)
        if not target or target in cell.state().blocks:
            return seed, (instruction,)
    raise ConfigurationError(
        f"no scene of the seeds {options.seed} to {options.seed + MOST_TRIES - 1} has a {target} "
        "block: choose another --seed."
    )


def _measure(stage: Stage, remote: _Remote) -> tuple[float, float]:
    """Return seconds per answer and the real-time factor while both work and the arm is held."""
    taken_s = []
    begin_ns, begin_s = remote.now_ns, time.monotonic()
    with stage.console.status("measuring how fast policy and cell are here ..."):
        for _ in range(LATENCY_ANSWERS):
            stage.wait_for_answers()
            taken_s.append(1e-3 * stage.monitor.state.latest("action").inference_ms)
        time.sleep(max(0.0, MEASURED_S - (time.monotonic() - begin_s)))
    factor = (remote.now_ns - begin_ns) * 1e-9 / (time.monotonic() - begin_s)
    return float(np.median(taken_s)), factor


def _perform(stage: Stage, remote: _Remote, instruction: str, heading: str, pace: Pace) -> Episode:
    """Give an instruction and wait until it is done, or its time is over."""
    remote.ask(instruction)
    if not stage.console.is_terminal:
        stage.console.print(escape(heading))
    task = read_task(instruction, COLOURS)
    limit_s = stage.options.duration_s or DURATION_S
    executed, begin_ns, begin_s = stage.monitor.state.executed, remote.now_ns, time.monotonic()
    remote.release()

    def simulated_s() -> float:
        return (remote.now_ns - begin_ns) * 1e-9

    def is_over() -> bool:
        if task is not None and remote.done_ns is not None:
            return True
        actions = pace.step_share * (stage.monitor.state.executed - executed)
        had_its_time = simulated_s() >= limit_s and actions >= FAIR_SHARE * RATE_HZ * limit_s
        return had_its_time or time.monotonic() - begin_s >= MOST_TIMES_LONGER * limit_s

    def title() -> str:
        factor = simulated_s() / max(1e-3, time.monotonic() - begin_s)
        return escape(f"{heading}  {simulated_s():.1f} s, real-time factor {factor:.2f}")

    show(stage.monitor, stage.console, None, title, stage.children.check, is_over)
    end_ns, wall_s = remote.now_ns, time.monotonic() - begin_s
    remote.hold()
    last_ns = end_ns + round(LINGER_S * 1e9)
    stage.wait(lambda: remote.now_ns > last_ns, "simulated time to pass", FIRST_MESSAGES_S)
    done_ns = remote.done_ns
    is_done = task is not None and done_ns is not None and done_ns <= end_ns
    done_s = (done_ns - begin_ns) * 1e-9 if is_done else None
    return Episode(instruction, task, begin_ns, end_ns, last_ns, wall_s, done_s)


def _ratio(episodes: list[Episode]) -> float:
    wall_s = sum(episode.wall_s for episode in episodes)
    return sum(e.duration_s for e in episodes) / wall_s if wall_s > 0.0 else math.nan
