"""Recorded actions through the real motion stage: what the limits would do to your own data.

The first check of a new robot: if a recording does not survive its own replay, no policy that was
trained on it will. Nothing moves; nothing here knows what a policy is.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from openvla_ros.config.motion import GripperConfig, MotionConfig
from openvla_ros.control.displacement import AXES
from openvla_ros.control.gripper import opening
from openvla_ros.control.pose import Pose
from openvla_ros.control.slew import SpeedLimits
from openvla_ros.control.states import Drop
from openvla_ros.data.episode import Episode
from openvla_ros.evaluation.motion.gripper_replay import gripper_outcome
from openvla_ros.evaluation.motion.ground_truth_findings import ground_truth_findings
from openvla_ros.evaluation.motion.ground_truth_report import (
    AxisUse,
    EpisodeMotion,
    Gap,
    GroundTruthReport,
)
from openvla_ros.evaluation.motion.motion_replay import (
    StreamedMotion,
    commanded_steps,
    pose_of_state,
    stream_actions,
    without_unknown_box,
)
from openvla_ros.evaluation.pictures.step_shapes import DeltaPath
from openvla_ros.types import ActionSpec


def replay_ground_truth(
    episodes: Iterable[Episode],
    spec: ActionSpec,
    motion: MotionConfig,
    gripper: GripperConfig,
    *,
    speed_scale: float = 1.0,
) -> GroundTruthReport:
    """Return what limits, filter and gripper logic do to recorded actions.

    Every action is given on time, at the rate of its episode. Images are not read. The arm follows
    every twist exactly and begins at the first recorded state. Where there is none it begins at the
    identity, and a workspace is left out, because nobody knows where in it the arm is.

    Args:
        episodes: Recorded actions, in the units of `spec`.
        spec: What the numbers mean; complete it with `control.motion.complete_spec`.
        motion: Limits and scales of the profile.
        gripper: Threshold, hysteresis, votes.
        speed_scale: Replaces that of the profile: at 0.5 the arm ends half-way on purpose, and
            nothing else could be seen.

    Raises:
        MotionError: `spec` does not say what motion needs (the text names the parameters), or an
            action does not have seven numbers.
    """
    motion = dataclasses.replace(motion, speed_scale=speed_scale)
    rows, sizes = [], [np.zeros((0, 6))]
    for episode in episodes:
        rows.append(_replayed(episode, spec, motion, gripper))
        sizes.append(_sizes(episode, spec))
    axes = _axis_use(np.concatenate(sizes), rows, motion)
    report = GroundTruthReport(spec.unnorm_key, speed_scale, motion.twist_mode, tuple(rows), axes)
    findings = ground_truth_findings(report, spec, motion, gripper)
    return dataclasses.replace(report, findings=findings)


def _replayed(
    episode: Episode, spec: ActionSpec, motion: MotionConfig, gripper: GripperConfig
) -> EpisodeMotion:
    states = () if episode.states is None else tuple(episode.states)
    measured = [pose_of_state(state, motion) for state in states]
    start = measured[0] if measured else None
    has_unchecked_box = motion.has_workspace and start is None
    motion = without_unknown_box(motion, start)
    streamed = stream_actions(
        _with_gripper(episode.actions, spec),
        spec,
        motion,
        gripper,
        rate_hz=episode.rate_hz,
        start=start,
    )
    path = _composed(episode, spec, motion, start)
    refused = [plan for plan in streamed.plans if plan.refusal is not Drop.NONE]
    last = measured[-1] if start is not None else None
    counts = streamed.report.counts.items()
    return EpisodeMotion(
        episode=episode.name,
        source=episode.source,
        steps=len(episode),
        rate_hz=episode.rate_hz,
        clipped_steps=int(streamed.clipped.any(axis=1).sum()),
        clipped_by_axis=dict(zip(AXES, streamed.clipped.sum(axis=0).tolist(), strict=True)),
        slowed_steps=_slowed(streamed, spec, motion),
        refused=dict(Counter(plan.refusal.name for plan in refused)),
        refusal=refused[0].detail if refused else "",
        interventions={reason.value: count for reason, count in counts if count},
        path_mm=_length_mm(path),
        end=Gap.between(path[-1], streamed.end),
        end_recorded=Gap.between(last, streamed.pose_at(streamed.due_s[-1])) if last else None,
        recording=Gap.between(last, path[-2]) if last else None,
        has_unchecked_box=has_unchecked_box,
        gripper=gripper_outcome(
            _openings(episode, spec), streamed.gripper_is_open, votes=gripper.sticky_steps
        ),
    )


def _composed(
    episode: Episode, spec: ActionSpec, motion: MotionConfig, start: Pose | None
) -> list[Pose]:
    """T + 1 poses to which the recorded actions lead; a step that was not recorded stays."""
    path = DeltaPath(longest=len(episode) + 1)
    path.begin(start or Pose())
    path.add(np.nan_to_num(commanded_steps(episode.actions, spec, motion, start)))
    return list(path.poses)


def _length_mm(path: Sequence[Pose]) -> float:
    ways = np.diff([pose.position for pose in path], axis=0)
    return float(np.linalg.norm(ways, axis=1).sum()) * 1e3


def _slowed(streamed: StreamedMotion, spec: ActionSpec, motion: MotionConfig) -> int:
    """Executed steps that need more than their own time at the speed limits."""
    assert spec.action_hz is not None
    limits = SpeedLimits(motion.linear_speed, motion.angular_speed)
    own_s = 1.0 / spec.action_hz
    steps = [p.steps[0] for p in streamed.plans if p.refusal is Drop.NONE and p.steps is not None]
    return sum(limits.shortest_time_s(step) > own_s * (1.0 + 1e-9) for step in steps)


def _with_gripper(actions: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """(T, 7) where a gripper that was not recorded stays as it was, open at first.

    The node refuses an action with a number missing. A twist topic has no gripper, and moves.
    """
    known = np.isfinite(actions[:, 6])
    if known.all():
        return actions
    last = np.maximum.accumulate(np.where(known, np.arange(len(actions)), -1))
    at_first = 1.0 if spec.gripper_open is None else spec.gripper_open
    held = np.where(last >= 0, actions[np.maximum(last, 0), 6], at_first)
    return np.column_stack([actions[:, :6], held])


def _openings(episode: Episode, spec: ActionSpec) -> np.ndarray:
    """(T,) 0 closed ... 1 open, as the spec reads the recording; NaN where nothing was recorded."""
    values = episode.actions[:, 6]
    return np.array([opening(v, spec) if np.isfinite(v) else np.nan for v in values.tolist()])


def _sizes(episode: Episode, spec: ActionSpec) -> np.ndarray:
    """(T', 6) metres and radians, absolute, of the recorded steps."""
    assert spec.translation_unit_m is not None and spec.rotation_unit_rad is not None
    units = np.repeat([spec.translation_unit_m, spec.rotation_unit_rad], 3)
    sizes = np.abs(episode.actions[:, :6] * units)
    return sizes[np.isfinite(sizes).all(axis=1)]


def _axis_use(
    sizes: np.ndarray, rows: Sequence[EpisodeMotion], motion: MotionConfig
) -> dict[str, AxisUse]:
    if not len(sizes):
        return {}
    limits = np.repeat([motion.delta_position, motion.delta_rotation], 3).tolist()
    q99, largest = np.quantile(sizes, 0.99, axis=0).tolist(), sizes.max(axis=0).tolist()
    return {
        axis: AxisUse(limits[i], q99[i], largest[i], sum(r.clipped_by_axis[axis] for r in rows))
        for i, axis in enumerate(AXES)
    }
