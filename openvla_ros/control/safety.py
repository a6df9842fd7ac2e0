"""The last look at a twist before it leaves: finite, bounded, inside the box, able to stop.

Every intervention is counted by its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from openvla_ros.control.pose import EndEffectorPose, pose_problem
from openvla_ros.control.slew import AccelerationLimits, SlewLimiter, SpeedLimits
from openvla_ros.control.workspace import Workspace


class Intervention(Enum):
    """Why the arm did something else than the policy said; the comment says what is counted."""

    NON_FINITE = "non_finite"  # answers and twists with NaN or infinity, refused
    STEP_CLIP = "step_clip"  # steps of which some axis was cut to limits.delta_*
    DEAD_BAND = "dead_band"  # steps of which a half was too small and became zero
    SPEED = "speed"  # steps, and ticks, that were too fast and take longer
    ACCELERATION = "acceleration"  # ticks
    WORKSPACE = "workspace"  # ticks in which the outward component was removed
    NO_POSE = "no_pose"  # ticks in which the arm wanted to move and its pose was unknown
    LEASH = "leash"  # ticks in which the target pose was pulled back towards the measured one
    RAMP = "ramp"  # stops in `decay_s` while the arm moved
    CUT = "cut"  # stops at once while the arm moved


@dataclass(frozen=True)
class SafetyReport:
    """What was changed, and when the arm moved last.

    Attributes:
        counts: Interventions since activation, every reason present.
        current: Reasons of the last tick.
        still_s: Seconds for which the twist has been zero; 0 while it is not.
    """

    counts: Mapping[Intervention, int]
    current: tuple[Intervention, ...] = ()
    still_s: float = 0.0

    @property
    def current_words(self) -> str:
        """Reasons of the last tick, e.g. "speed, workspace"; "" when the twist passed unchanged."""
        return ", ".join(reason.value for reason in self.current)

    @property
    def counted_words(self) -> str:
        """What happened since activation, e.g. "speed 3, workspace 41"; "" when nothing did."""
        return ", ".join(f"{reason.value} {n}" for reason, n in self.counts.items() if n)


@dataclass(frozen=True)
class SafetySettings:
    """The limits of `SafetyFilter`.

    Attributes:
        speed: Norms of the twist.
        acceleration: Norms of its change; stops may exceed them.
        workspace: The box; None = no box, and no pose is needed.
        tick_s: Time between two calls of `apply`.
        decay_s: Length of the ramp to zero after `fade`.
    """

    speed: SpeedLimits = field(default_factory=SpeedLimits)
    acceleration: AccelerationLimits = field(default_factory=AccelerationLimits)
    workspace: Workspace | None = None
    tick_s: float = 0.02
    decay_s: float = 0.1


class SafetyFilter:
    """Lets a twist pass, changed as little as the limits demand.

    Speed and acceleration are reduced for translation and rotation together, so that the path of
    the end effector is kept. Displacement that the acceleration limit holds back follows later;
    what the workspace, a stop or a missing pose takes away is lost.
    """

    def __init__(self, settings: SafetySettings) -> None:
        self._settings = settings
        self._slew = SlewLimiter(settings.acceleration, settings.speed, settings.tick_s)
        self._counts: Counter[Intervention] = Counter()
        self._current: dict[Intervention, None] = {}  # a set that keeps its order
        # Since when, and how fast the arm was then and is now; fast = the time it takes to stop.
        self._fade: tuple[float, float, float] | None = None
        self._still_since_s: float | None = None

    @property
    def settings(self) -> SafetySettings:
        """The limits in force; replace them at any time."""
        return self._settings

    @settings.setter
    def settings(self, settings: SafetySettings) -> None:
        self._settings = settings
        self._slew.acceleration, self._slew.speed = settings.acceleration, settings.speed
        self._slew.tick_s = settings.tick_s

    @property
    def is_moving(self) -> bool:
        """True when the last twist was not zero, or some displacement is owed."""
        return bool(self._slew.twist.any() or self._slew.owed.any())

    def count(self, reason: Intervention, times: int = 1) -> None:
        """Book interventions of an earlier stage."""
        self._counts[reason] += times

    def report(self, now_s: float) -> SafetyReport:
        """Return what has been changed until now."""
        since_s = self._still_since_s
        return SafetyReport(
            counts={reason: self._counts[reason] for reason in Intervention},
            current=tuple(self._current),
            still_s=0.0 if since_s is None else max(now_s - since_s, 0.0),
        )

    def apply(
        self,
        twist: np.ndarray,
        now_s: float,
        ee_pose: EndEffectorPose | None = None,
        *,
        is_steered: bool = False,
    ) -> np.ndarray:
        """Return the (6,) twist (m/s, rad/s, base axes) to publish and hold until the next tick.

        Args:
            twist: (6,) what the arm shall do.
            now_s: Steady time, seconds.
            ee_pose: Where the end effector is; needed when there is a workspace.
            is_steered: True for the velocity of a person: what acceleration holds back is not made
                good later.
        """
        self._current.clear()
        twist = np.asarray(twist, dtype=np.float64)
        if twist.shape != (6,) or not np.isfinite(twist).all():
            self._note(Intervention.NON_FINITE)
            self.cut()
            twist = np.zeros(6)
        position = self._position(twist, now_s, ee_pose)
        if self._settings.workspace is not None and position is None:
            twist = np.zeros(6)
        passed = self._limited(twist, now_s, position, is_steered)
        passed = self._faded(passed, now_s)
        self._slew.override(passed)
        if passed.any():
            self._still_since_s = None
        elif self._still_since_s is None:
            self._still_since_s = now_s
        return passed

    def fade(self, now_s: float) -> None:
        """Ramp from the twist of now to zero in `decay_s`, and stay there until `resume`."""
        if self._fade is None:
            self._counts[Intervention.RAMP] += self.is_moving
            size = self._settings.acceleration.ramp_time_s(self._slew.twist)
            self._fade = (now_s, size, size)

    def cut(self) -> None:
        """Zero at the next tick."""
        self._counts[Intervention.CUT] += self.is_moving
        self._slew.forget()

    def resume(self) -> None:
        """Let the arm move again."""
        self._fade = None

    def reset(self) -> None:
        """Zero, and count from zero."""
        self._slew.forget()
        self._fade = self._still_since_s = None
        self._counts.clear()
        self._current.clear()

    def _note(self, reason: Intervention) -> None:
        self._counts[reason] += 1
        self._current[reason] = None

    def _position(
        self, twist: np.ndarray, now_s: float, ee_pose: EndEffectorPose | None
    ) -> np.ndarray | None:
        """Where the end effector is now, (3,); None when it is unknown, and then the arm stops."""
        if self._settings.workspace is None:
            return None
        if ee_pose is None or pose_problem(ee_pose):
            if twist.any() or self.is_moving:
                self._note(Intervention.NO_POSE)
                self.fade(now_s)
            return None
        # The pose is a moment old, and the arm has moved on.
        return ee_pose.position + self._slew.twist[0:3] * max(ee_pose.age_s, 0.0)

    def _limited(
        self, twist: np.ndarray, now_s: float, position: np.ndarray | None, is_steered: bool
    ) -> np.ndarray:
        box = self._settings.workspace
        wanted, was_fast = self._settings.speed.capped(twist)
        blocked = None
        if box is not None and position is not None:
            at_edge = [box.outward(t, position, box.margin_m) for t in (wanted, self._slew.twist)]
            if np.any(at_edge):
                self._note(Intervention.WORKSPACE)
            # What is still owed may point out of the box too.
            blocked = np.any([*at_edge, box.outward(self._slew.owed, position, box.margin_m)], 0)
        limited = self._slew.steer if is_steered else self._slew.follow
        passed, was_abrupt = limited(wanted, now_s, blocked)
        passed, is_fast = self._settings.speed.capped(passed)
        if box is not None and position is not None:
            passed = np.where(box.outward(passed, position, 0.0), 0.0, passed)
        if was_fast or is_fast:
            self._note(Intervention.SPEED)
        if was_abrupt:
            self._note(Intervention.ACCELERATION)
        return passed

    def _faded(self, twist: np.ndarray, now_s: float) -> np.ndarray:
        """The twist under the ramp of `fade`: slower with every tick, then zero."""
        if self._fade is None:
            return twist
        start_s, start, last = self._fade
        decay_s = self._settings.decay_s
        left = 1.0 - (now_s - start_s) / decay_s if decay_s > 0.0 else 0.0
        if left <= 1e-9:  # rounding of a clock must not add a tick to a ramp of five
            self._slew.forget()
            return np.zeros(6)
        size = self._settings.acceleration.ramp_time_s(twist)
        ceiling = min(start * left, last)
        self._fade = (start_s, start, min(size, ceiling))
        return twist * (ceiling / size) if size > ceiling else twist
