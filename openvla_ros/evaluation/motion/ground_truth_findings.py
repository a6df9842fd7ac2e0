"""A replay of recorded actions in plain words: what the limits take away, and what to do."""

from __future__ import annotations

import statistics

import numpy as np

from openvla_ros.config.motion import GripperConfig, MotionConfig
from openvla_ros.evaluation.motion.ground_truth_report import (
    AxisUse,
    EpisodeMotion,
    GroundTruthReport,
)
from openvla_ros.types import ActionSpec, Finding

SECTION = "ground truth"

#: A share of steps, and of the commanded path, from which a loss is no longer an outlier.
OFTEN = 0.05
#: An end this far off is told, and is a problem; shares are of the commanded path.
NEAR_MM, NEAR_SHARE, NEAR_DEG = 1.0, 0.02, 1.0
FAR_MM, FAR_SHARE, FAR_DEG = 10.0, 0.2, 10.0
SAME_RATE = 0.01


def ground_truth_findings(
    report: GroundTruthReport, spec: ActionSpec, motion: MotionConfig, gripper: GripperConfig
) -> tuple[Finding, ...]:
    """Return what a user should know of a report, in the order in which causes come.

    Args:
        report: Rows of all episodes.
        spec: What the numbers mean.
        motion: The limits in force, `speed_scale` as in the report.
        gripper: The gripper logic in force.
    """
    if not report.episodes:
        return ()
    findings = [
        _rate(report, spec),
        _scales(motion),
        _refused(report),
        *(_limit(axis, use, report.steps) for axis, use in report.axes.items()),
        _speed(report, spec, motion),
        _workspace(report),
        _path_end(report),
        _recorded_end(report),
        _gripper(report, gripper),
    ]
    return tuple(finding for finding in findings if finding is not None)


def _rate(report: GroundTruthReport, spec: ActionSpec) -> Finding | None:
    assert spec.action_hz is not None
    own = spec.action_hz
    other = [row for row in report.episodes if abs(row.rate_hz - own) > SAME_RATE * own]
    if not other:
        return None
    rate = other[0].rate_hz
    effect = (
        f"each step is cut off after {1 / rate:.3g} s, and the arm goes {rate / own:.2g} times "
        "less far"
        if rate > own
        else f"the arm takes {own / rate:.2g} times as long as in the dataset"
    )
    return Finding(
        SECTION,
        "rate",
        f"{rate:g} Hz in {len(other)} of {len(report.episodes)} episodes",
        f"steps of '{spec.unnorm_key}' last {1 / own:.3g} s ({own:g} Hz): {effect}. Resample the "
        "recording to the rate of the dataset, or correct action_hz.",
        "problem",
    )


def _scales(motion: MotionConfig) -> Finding | None:
    names = ("linear_scale", "angular_scale", "speed_scale")
    other = [f"{name} {getattr(motion, name):g}" for name in names if getattr(motion, name) != 1.0]
    if not other:
        return None
    return Finding(
        SECTION,
        "scales",
        ", ".join(other),
        "every step is multiplied by these: the arm does not end where the recording does.",
        "warn",
    )


def _refused(report: GroundTruthReport) -> Finding | None:
    if not report.refused:
        return None
    first = next(row for row in report.episodes if row.refused)
    words = ", ".join(f"{reason} {count}" for reason, count in report.refused.items())
    return Finding(
        SECTION,
        "refused steps",
        f"{sum(report.refused.values())} of {report.steps} ({words})",
        f"the arm stops at each of them. The first is in {first.episode}: {first.refusal}.",
        "warn",
    )


def _limit(axis: str, use: AxisUse, steps: int) -> Finding | None:
    if not use.clipped_steps:
        return None
    is_translation = axis in ("x", "y", "z")
    name = "limits.delta_position" if is_translation else "limits.delta_rotation"
    share = use.clipped_steps / steps
    return Finding(
        SECTION,
        f"limit on {axis}",
        f"{use.clipped_steps} of {steps} steps cut",
        f"the filter would cut {_percent(share)} of your steps on {axis}: q99 is "
        f"{_size(use.q99, is_translation)} per step, limit {_size(use.limit, is_translation)} "
        f"({name}), the largest {_size(use.largest, is_translation)}. Is the statistics key right, "
        "and the unit? If so, raise the limit as far as the robot allows.",
        "problem" if share >= OFTEN else "warn",
    )


def _speed(report: GroundTruthReport, spec: ActionSpec, motion: MotionConfig) -> Finding | None:
    slowed = [row for row in report.episodes if row.slowed_steps]
    if not slowed:
        return None
    assert spec.action_hz is not None
    count = sum(row.slowed_steps for row in slowed)
    level = "ok"  # two ticks of a step are made good in the next one
    if any(_excess(row) > 1.0 for row in slowed):
        level = "problem" if count >= OFTEN * report.steps else "warn"
    return Finding(
        SECTION,
        "speed",
        f"{count} of {report.steps} steps too fast",
        f"they need more than their {1 / spec.action_hz:.3g} s at limits.linear_speed "
        f"{motion.linear_speed:g} m/s and limits.angular_speed {motion.angular_speed:g} rad/s. The "
        "next action cuts off what is left of them, except for the last two ticks.",
        level,
    )


def _workspace(report: GroundTruthReport) -> Finding | None:
    unchecked = sum(row.has_unchecked_box for row in report.episodes)
    if unchecked:
        return Finding(
            SECTION,
            "workspace",
            f"not checked in {unchecked} of {len(report.episodes)} episodes",
            "no recorded state says where the arm began, so the box was left out.",
            "warn",
        )
    touched = [row for row in report.episodes if row.interventions.get("workspace")]
    if not touched:
        return None
    return Finding(
        SECTION,
        "workspace",
        f"left in {len(touched)} of {len(report.episodes)} episodes",
        f"the recorded path leaves the box of limits.workspace_min and limits.workspace_max, first "
        f"in {touched[0].episode}. Positions are those of the dataset's base, turned by "
        "action_rotation_rpy and not moved: is the base of this robot at the same place?",
        "problem",
    )


def _path_end(report: GroundTruthReport) -> Finding:
    worst = max(report.episodes, key=_excess)
    median_mm = statistics.median(row.end.distance_mm for row in report.episodes)
    median_deg = statistics.median(row.end.angle_deg for row in report.episodes)
    level = "ok"
    if _excess(worst) > 1.0:
        level = "problem" if _excess(worst, FAR_MM, FAR_SHARE, FAR_DEG) > 1.0 else "warn"
    return Finding(
        SECTION,
        "end of the path",
        f"{median_mm:.1f} mm and {median_deg:.1f}° from the commanded one (median)",
        f"worst {worst.end.distance_mm:.1f} mm and {worst.end.angle_deg:.1f}° on a path of "
        f"{worst.path_mm:.0f} mm, in {worst.episode}.",
        level,
    )


def _recorded_end(report: GroundTruthReport) -> Finding:
    pairs = [(r.end_recorded, r.recording) for r in report.episodes if r.end_recorded]
    if not pairs:
        return Finding(
            SECTION, "recorded end pose", "n/a", "the episodes hold no poses of the end effector."
        )
    ends = [end for end, _ in pairs]
    own = [recording.distance_mm for _, recording in pairs if recording]
    return Finding(
        SECTION,
        "recorded end pose",
        f"{statistics.median(end.distance_mm for end in ends):.1f} mm and "
        f"{statistics.median(end.angle_deg for end in ends):.1f}° away (median)",
        f"the recording robot itself ended {statistics.median(own):.1f} mm from where its commands "
        "lead (median): an arm that follows slowly, or another meaning of the actions.",
    )


def _gripper(report: GroundTruthReport, gripper: GripperConfig) -> Finding:
    outcomes = [row.gripper for row in report.episodes]
    recorded, lost = sum(o.recorded for o in outcomes), sum(o.lost for o in outcomes)
    extra = sum(o.extra for o in outcomes)
    delays = [delay for o in outcomes for delay in o.delays if delay is not None]
    value = f"{recorded - lost} of {recorded} events kept"
    if extra:
        value += f", {extra} more that were not recorded"
    if delays:
        value += f", {np.mean(delays):.1f} steps late on average"
    reason, level = "", "ok"
    if gripper.invert and (lost or extra):
        reason = (
            "gripper.invert turns every opening round. That is right only where gripper_open and "
            "gripper_closed of the statistics are the wrong way round."
        )
    elif lost or extra:
        reason = (
            f"a decision takes {gripper.sticky_steps} equal answers in a row "
            f"(gripper.sticky_steps) outside {gripper.threshold:g} ± {gripper.hysteresis / 2:g} "
            "(gripper.threshold, gripper.hysteresis)."
        )
    if lost or extra:
        level = "problem" if gripper.invert or lost > OFTEN * recorded else "warn"
    return Finding(SECTION, "gripper", value, reason, level)


def _excess(
    row: EpisodeMotion, mm: float = NEAR_MM, share: float = NEAR_SHARE, deg: float = NEAR_DEG
) -> float:
    """How many times further off the end is than a distance or share of the path, or an angle."""
    end = row.end
    return max(end.distance_mm / max(mm, share * row.path_mm), end.angle_deg / deg)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"


def _size(value: float, is_translation: bool) -> str:
    return f"{value * 1e3:.0f} mm" if is_translation else f"{np.degrees(value):.1f}°"
