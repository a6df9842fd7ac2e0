"""What the motion stage made of recorded actions: rows, sums, and the form they have as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from openvla_ros.control.displacement import rotation_vector
from openvla_ros.control.pose import Pose
from openvla_ros.evaluation.motion.gripper_replay import GripperOutcome
from openvla_ros.types import Finding


@dataclass(frozen=True)
class Gap:
    """How far apart two poses are."""

    distance_mm: float
    angle_deg: float

    @classmethod
    def between(cls, one: Pose, other: Pose) -> Gap:
        """The gap of two poses."""
        turned = rotation_vector(one.rotation @ other.rotation.T)
        return cls(
            float(np.linalg.norm(one.position - other.position)) * 1e3,
            math.degrees(float(np.linalg.norm(turned))),
        )


@dataclass(frozen=True)
class EpisodeMotion:
    """What became of the recorded actions of one episode.

    Attributes:
        episode: Its name.
        source: What it was read from.
        steps: T.
        rate_hz: Steps per second of the episode.
        clipped_steps: Steps of which some axis was cut to the limit.
        clipped_by_axis: Axis to steps in which it was cut.
        slowed_steps: Steps that take longer than in the dataset, because of the speed limits.
        refused: Reason to refused steps; empty when all were executed.
        refusal: The first refusal in words, or "".
        interventions: Reason to count, those that happened.
        path_mm: Length of the commanded path.
        end: From where the recorded actions lead, composed exactly, to where the arm comes to rest.
        end_recorded: From the recorded pose of the last image to where the arm is then; None when
            the episode has no states.
        recording: From the recorded pose of the last image to where the actions lead until then:
            what the recording robot itself did not follow. None like `end_recorded`.
        has_unchecked_box: There is a workspace, and no state says where the arm began.
        gripper: Its events.
    """

    episode: str
    source: str
    steps: int
    rate_hz: float
    clipped_steps: int
    clipped_by_axis: Mapping[str, int]
    slowed_steps: int
    refused: Mapping[str, int]
    refusal: str
    interventions: Mapping[str, int]
    path_mm: float
    end: Gap
    end_recorded: Gap | None
    recording: Gap | None
    has_unchecked_box: bool
    gripper: GripperOutcome

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON: the fields by name, and the sums of the gripper's events."""
        delays = [delay for delay in self.gripper.delays if delay is not None]
        return dataclasses.asdict(self) | {
            "gripper": {
                "recorded_events": self.gripper.recorded,
                "kept": self.gripper.kept,
                "lost": self.gripper.lost,
                "delayed": self.gripper.delayed,
                "extra": self.gripper.extra,
                "mean_delay_steps": float(np.mean(delays)) if delays else None,
            }
        }


@dataclass(frozen=True)
class AxisUse:
    """How large the recorded steps are on one axis, beside its limit; m or rad per step."""

    limit: float
    q99: float
    largest: float
    clipped_steps: int


@dataclass(frozen=True)
class GroundTruthReport:
    """What the motion stage makes of recorded actions.

    Attributes:
        unnorm_key: Statistics key whose action spec was used.
        speed_scale: The scale in force; 1.0 unless another one was asked for.
        twist_mode: That of the profile.
        episodes: One row per episode.
        axes: Axis to the size of its steps.
        findings: The same in plain words.
    """

    unnorm_key: str
    speed_scale: float
    twist_mode: str
    episodes: tuple[EpisodeMotion, ...]
    axes: Mapping[str, AxisUse]
    findings: tuple[Finding, ...] = ()

    @property
    def steps(self) -> int:
        """Steps of all episodes."""
        return sum(row.steps for row in self.episodes)

    @property
    def clipped_steps(self) -> int:
        """Steps of which some axis was cut to the limit."""
        return sum(row.clipped_steps for row in self.episodes)

    @property
    def interventions(self) -> dict[str, int]:
        """Reason to count, over all episodes."""
        return _added(row.interventions for row in self.episodes)

    @property
    def refused(self) -> dict[str, int]:
        """Reason to refused steps, over all episodes."""
        return _added(row.refused for row in self.episodes)

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON; null = not known.

        Keys: "unnorm_key", "speed_scale", "twist_mode", "steps", "clipped_steps"; "axes": axis to
        {"limit", "q99", "largest" (m or rad per step), "clipped_steps"}; "interventions" and
        "refused": reason to count over all episodes; "episodes": rows as `EpisodeMotion.to_dict`
        gives them; "findings": {"section", "item", "value", "reason", "level"}.
        """
        return {
            "unnorm_key": self.unnorm_key,
            "speed_scale": self.speed_scale,
            "twist_mode": self.twist_mode,
            "steps": self.steps,
            "clipped_steps": self.clipped_steps,
            "axes": {axis: dataclasses.asdict(use) for axis, use in self.axes.items()},
            "interventions": self.interventions,
            "refused": self.refused,
            "episodes": [row.to_dict() for row in self.episodes],
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for row in counts:
        total.update(row)
    return dict(total)
