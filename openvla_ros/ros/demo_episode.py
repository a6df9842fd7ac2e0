"""What happened under one instruction of a demo: its outcome, and what the bag holds of it.

No rclpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from openvla_ros.data.bag_file import open_bag
from openvla_ros.ros.demo_report import ACTION_TYPE, position_of, step_m
from openvla_ros.ros.monitor_view import latency_s
from openvla_ros.sim.tasks import Task

POSE_TOPIC, VIEW_TOPIC = "/ee_pose", "/view/compressed"


@dataclass(frozen=True)
class Episode:
    """One instruction, from the start of the arm to its stop.

    Attributes:
        instruction: As it was sent.
        task: What the cell makes of it; None when it does not know the words.
        begin_ns: Simulated time of the start.
        end_ns: Simulated time of the stop.
        last_ns: Simulated time of the last picture that belongs to it.
        wall_s: How long begin to end took.
        done_s: Simulated seconds until the task was done; None when it was not.
    """

    instruction: str
    task: Task | None
    begin_ns: int
    end_ns: int
    last_ns: int
    wall_s: float
    done_s: float | None = None

    @property
    def duration_s(self) -> float:
        """Simulated seconds from start to stop."""
        return (self.end_ns - self.begin_ns) * 1e-9

    @property
    def real_time_factor(self) -> float:
        """Simulated seconds per second."""
        return self.duration_s / self.wall_s if self.wall_s > 0.0 else math.nan

    @property
    def outcome(self) -> str:
        """The result in words."""
        if self.task is None:
            return "not judged"
        return f"missed in {self.duration_s:.1f} s" if self.done_s is None else self.success

    @property
    def success(self) -> str:
        """The words for a task that is done."""
        return f"done after {self.done_s:.1f} s"

    @property
    def level(self) -> str:
        """Of the outcome: "ok", "warn", or "" when nobody can judge it."""
        return "" if self.task is None else "warn" if self.done_s is None else "ok"


@dataclass
class Track:
    """What the bag holds of an episode.

    Attributes:
        episode: The episode.
        views: Seconds since the start, and the JPEG of the view.
        times_s: Of `positions`, since the start.
        positions: (3,) each, metres in the base frame, of the tool.
        latencies_s: Image stamp to answer, simulated.
        model_ms: What the policy took, in real milliseconds.
        executed: How many answers moved the arm.
    """

    episode: Episode
    views: list[tuple[float, bytes]] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    model_ms: list[float] = field(default_factory=list)
    executed: int = 0

    @property
    def path_m(self) -> float:
        """Length of the way of the tool."""
        return sum(
            step_m(one, other)
            for one, other in zip(self.positions, self.positions[1:], strict=False)
        )


def read_tracks(bag: Path, episodes: Sequence[Episode]) -> list[Track]:
    """Return what a bag holds of each episode.

    Raises:
        ConfigurationError: The bag cannot be read.
    """
    tracks = [Track(episode) for episode in episodes]
    with open_bag(bag) as reader:
        wanted = [
            c
            for c in reader.connections
            if c.topic in (POSE_TOPIC, VIEW_TOPIC) or c.msgtype == ACTION_TYPE
        ]
        for connection, time_ns, raw in reader.messages(wanted):
            for track in _those_at(tracks, time_ns):
                message = reader.deserialize(raw, connection.msgtype)
                time_s = (time_ns - track.episode.begin_ns) * 1e-9
                if connection.topic == VIEW_TOPIC:
                    track.views.append((time_s, bytes(message.data)))
                elif connection.topic == POSE_TOPIC:
                    track.times_s.append(time_s)
                    track.positions.append(position_of(message))
                elif time_ns <= track.episode.end_ns:
                    track.latencies_s.append(latency_s(message))
                    track.model_ms.append(float(message.inference_ms))
                    track.executed += bool(message.executed)
    return tracks


def _those_at(tracks: Sequence[Track], time_ns: int) -> Iterator[Track]:
    return (t for t in tracks if t.episode.begin_ns <= time_ns <= t.episode.last_ns)
