"""How much of a recording is pause: what a policy without memory learns to stay in.

Actions are taken as displacements of one step, in the units of the spec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openvla_ros.types import ActionSpec, Finding

SECTION = "Motion"
EEF_DIM = 7  # x y z roll pitch yaw gripper: the only layout whose numbers have a meaning here

#: Slower than both is a pause: a hand on a teleoperation device is never slower on purpose.
PAUSE_M_S = 0.01
PAUSE_RAD_S = 0.1
ZERO = 1e-5  # dataset units: what float32 and a resampler leave of a zero
GRIPPER_STILL = 0.02  # of the range between closed and open: the noise of a reading

#: BridgeData has 7 % to 10 % (docs/audit.md): three times as much is another way to demonstrate.
IDLE_WARNING = 0.2
IDLE_PROBLEM = 0.5  # most pictures teach to stay where one is
PAUSE_WARNING_S = 1.0  # a person who thinks; a model without history does not know for how long
LISTED = 5  # episodes named in a finding


@dataclass(frozen=True)
class EpisodeIdle:
    """Pauses of one episode.

    Attributes:
        episode: Its name.
        share: Of its steps that are pauses.
        longest_s: The longest pause.
        start_steps: Leading steps that are pauses.
        is_start_zero: Whether the first action is zero in translation and rotation.
    """

    episode: str
    share: float
    longest_s: float
    start_steps: int
    is_start_zero: bool


@dataclass(frozen=True)
class Idle:
    """Pauses of all episodes.

    Attributes:
        share: Of the steps that are pauses.
        longest_s: The longest pause.
        episodes: One each, the one with the largest share first.
    """

    share: float
    longest_s: float
    episodes: tuple[EpisodeIdle, ...]


def find_pauses(actions: np.ndarray, rate_hz: float, spec: ActionSpec) -> np.ndarray:
    """Return (T,) bool: the arm is slower than a pause and the gripper does what it did before.

    Args:
        actions: (T, 7); a step without a recording is no pause.
        rate_hz: Steps per second.
        spec: With both units known.
    """
    assert spec.translation_unit_m is not None and spec.rotation_unit_rad is not None
    speed = np.linalg.norm(actions[:, :3], axis=1) * spec.translation_unit_m * rate_hz
    turning = np.linalg.norm(actions[:, 3:6], axis=1) * spec.rotation_unit_rad * rate_hz
    opening = (spec.gripper_open or 0.0) - (spec.gripper_closed or 0.0)
    change = np.abs(np.diff(actions[:, 6], prepend=actions[:1, 6]))
    is_still = change <= GRIPPER_STILL * (abs(opening) or 1.0)
    return (speed < PAUSE_M_S) & (turning < PAUSE_RAD_S) & is_still


def measure_idle(
    names: Sequence[str],
    actions: Sequence[np.ndarray],
    rates_hz: Sequence[float],
    spec: ActionSpec,
) -> Idle:
    """Return the pauses of episodes; arguments as for `find_pauses`, one per episode."""
    rows, steps, pauses = [], 0, 0
    for name, episode, rate_hz in zip(names, actions, rates_hz, strict=True):
        is_pause = find_pauses(episode, rate_hz, spec)
        steps, pauses = steps + len(is_pause), pauses + int(is_pause.sum())
        rows.append(
            EpisodeIdle(
                episode=name,
                share=float(is_pause.mean()),
                longest_s=longest_run(is_pause) / rate_hz,
                start_steps=len(is_pause) if is_pause.all() else int(np.argmin(is_pause)),
                is_start_zero=bool((np.abs(episode[0, :6]) < ZERO).all()),
            )
        )
    rows.sort(key=lambda row: (-row.share, row.episode))
    return Idle(pauses / max(1, steps), max((row.longest_s for row in rows), default=0.0), (*rows,))


def longest_run(is_set: np.ndarray) -> int:
    """Return the length of the longest run of True in (T,) bool."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_set, [False]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def judge_idle(idle: Idle) -> list[Finding]:
    """Return what is to be said about the pauses."""
    return [_share(idle), _longest(idle), *_start(idle)]


def _share(idle: Idle) -> Finding:
    value = f"{100 * idle.share:.0f} % of the steps"
    if idle.share <= IDLE_WARNING:
        return Finding(SECTION, "idle share", value)
    worst = ", ".join(f"{row.episode} {100 * row.share:.0f} %" for row in idle.episodes[:LISTED])
    reason = (
        f"Slower than {100 * PAUSE_M_S:g} cm/s and {PAUSE_RAD_S:g} rad/s with a still gripper. A "
        "policy without memory that has seen pauses freezes before the grasp; leave these steps "
        f"out of the training data. Worst: {worst}."
    )
    level = "problem" if idle.share > IDLE_PROBLEM else "warn"
    return Finding(SECTION, "idle share", value, reason, level)


def _longest(idle: Idle) -> Finding:
    value = f"{idle.longest_s:.1f} s"
    if idle.longest_s <= PAUSE_WARNING_S:
        return Finding(SECTION, "longest pause", value)
    rows = sorted(idle.episodes, key=lambda row: -row.longest_s)[:LISTED]
    worst = ", ".join(f"{row.episode} {row.longest_s:.1f} s" for row in rows)
    reason = f"Pauses of more than {PAUSE_WARNING_S:g} s teach to wait; cut them. Longest: {worst}."
    return Finding(SECTION, "longest pause", value, reason, "warn")


def _start(idle: Idle) -> list[Finding]:
    """Idle at the start: every episode has one, so the policy learns to begin with nothing."""
    zero = sum(row.is_start_zero for row in idle.episodes)
    if 2 * zero > len(idle.episodes):
        return [
            Finding(
                SECTION,
                "idle start",
                f"{zero} of {len(idle.episodes)} episodes begin with an all-zero action",
                "Nothing was commanded yet when the first image was taken. Leave that step out: "
                "the first image of a task must not teach to stay.",
                "warn",
            )
        ]
    waiting = [row for row in idle.episodes if row.start_steps]
    value = f"{len(waiting)} of {len(idle.episodes)} episodes begin with a pause"
    return [Finding(SECTION, "idle start", value)]
