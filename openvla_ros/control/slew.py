"""A stream of twists → the same displacement with bounded acceleration.

The arm is behind the stream while it speeds up, and makes that good while it slows down. What it is
behind is kept as a displacement, so nothing is lost, and it never passes the point where the stream
has put it: the speed is always one from which it can still stop there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

_AT_REST_S2 = 1e-9  # a remainder below this, 5 nm at 5 m/s², is rounding


@dataclass(frozen=True)
class SpeedLimits:
    """Norms that the twist never exceeds, m/s and rad/s."""

    linear_m_s: float = 0.25
    angular_rad_s: float = 1.0

    def shortest_time_s(self, step: np.ndarray) -> float:
        """Return the time that a (6,) displacement needs at these speeds."""
        return _larger_norm(step, self.linear_m_s, self.angular_rad_s)

    def capped(self, twist: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return a (6,) twist slowed to these speeds in its own direction, and whether it was."""
        excess = self.shortest_time_s(twist)  # > 1: so many times too fast
        # Streamed twists sit exactly at the limit; rounding must not count as an intervention.
        return twist / max(excess, 1.0), excess > 1.0 + 1e-9


@dataclass(frozen=True)
class AccelerationLimits:
    """Norms of the change of the twist, m/s² and rad/s².

    The defaults follow BridgeData at 5 Hz; 1 m/s² could not.
    """

    linear_m_s2: float = 5.0
    angular_rad_s2: float = 10.0

    def ramp_time_s(self, change: np.ndarray) -> float:
        """Return the time that a (6,) change of the twist needs, seconds."""
        return _larger_norm(change, self.linear_m_s2, self.angular_rad_s2)


@dataclass
class SlewLimiter:
    """Follows the stream. Times are those of the ticks; a twist holds until the next one.

    Attributes:
        acceleration: May be replaced at any time.
        speed: May be replaced at any time.
        tick_s: Time between two ticks.
        twist: (6,) published last.
        owed: (6,) metres and radians, base axes: streamed and not yet executed.
    """

    acceleration: AccelerationLimits
    speed: SpeedLimits
    tick_s: float
    twist: np.ndarray = field(default_factory=lambda: np.zeros(6))
    owed: np.ndarray = field(default_factory=lambda: np.zeros(6))
    _wanted: np.ndarray = field(default_factory=lambda: np.zeros(6))
    _last_tick_s: float | None = None

    def follow(
        self, wanted: np.ndarray, now_s: float, blocked: np.ndarray | None = None
    ) -> tuple[np.ndarray, bool]:
        """Return the (6,) twist of this tick, and whether acceleration held it back.

        Args:
            wanted: (6,) the stream, m/s and rad/s, within the speed limits.
            now_s: Steady time, seconds.
            blocked: (6,) bool: axes that come to rest, and whose displacement is forgotten.
        """
        elapsed_s = self._elapsed_s(now_s)
        self.owed = self.owed + (self._wanted - self.twist) * elapsed_s
        if blocked is not None:
            self.owed, wanted = np.where(blocked, 0.0, self.owed), np.where(blocked, 0.0, wanted)
        self._wanted = wanted
        left = self.owed + wanted * self.tick_s
        is_limited = self._approach(self._aim(left, wanted), elapsed_s)
        if not is_limited and self.acceleration.ramp_time_s(left) < _AT_REST_S2:
            self.twist, self.owed = np.zeros(6), np.zeros(6)
        return self.twist, is_limited

    def steer(
        self, wanted: np.ndarray, now_s: float, blocked: np.ndarray | None = None
    ) -> tuple[np.ndarray, bool]:
        """Return what `follow` returns, for a velocity that somebody steers by eye.

        Nothing is owed: the arm rests where braking ends, and does not come back from there.
        """
        elapsed_s = self._elapsed_s(now_s)
        aim = wanted if blocked is None else np.where(blocked, 0.0, wanted)
        is_limited = self._approach(aim, elapsed_s)
        self._wanted, self.owed = self.twist, np.zeros(6)
        return self.twist, is_limited

    def override(self, twist: np.ndarray) -> None:
        """Book that another twist than that of `follow` was published."""
        self.twist = twist

    def forget(self) -> None:
        """Zero at once, and nothing owed."""
        self.twist, self.owed, self._wanted = np.zeros(6), np.zeros(6), np.zeros(6)

    def _approach(self, aim: np.ndarray, elapsed_s: float) -> bool:
        """Change the twist towards `aim`; True when acceleration held it back."""
        change = aim - self.twist
        needed_s = self.acceleration.ramp_time_s(change)
        # A late tick does not buy a larger step: the twist that is due now holds a normal tick.
        allowed_s = min(elapsed_s, self.tick_s)
        is_limited = needed_s > allowed_s * (1.0 + 1e-9)
        self.twist = self.twist + change * (allowed_s / needed_s) if is_limited else aim
        return is_limited

    def _aim(self, left: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The fastest twist from which the arm can stop within the displacement `left`.

        It is no faster than the stream: what is owed makes the arm slow down later, not hurry.
        Reduced by a·T in every tick T, a speed of n·a·T covers a·T²·n(n+1)/2 until it is zero.
        """
        size = self.acceleration.ramp_time_s(left) / self.tick_s**2  # in units of a·T²
        if size == 0.0:
            return np.zeros(6)
        ticks = max(math.ceil((math.sqrt(1.0 + 8.0 * size) - 1.0) / 2.0 - 1e-9), 1)
        speed = size / ticks + (ticks - 1) / 2.0  # in units of a·T
        pace = max(map(self.acceleration.ramp_time_s, (wanted, self.twist))) / self.tick_s
        speed = min(speed, max(pace, 1.0))  # from a·T the arm stops at any time
        return self.speed.capped(left * (speed / size / self.tick_s))[0]

    def _elapsed_s(self, now_s: float) -> float:
        last_s, self._last_tick_s = self._last_tick_s, now_s
        return self.tick_s if last_s is None else max(now_s - last_s, 0.0)


def _larger_norm(six: np.ndarray, linear: float, angular: float) -> float:
    """The larger of the norms of both halves, each in units of its own limit."""
    # math.hypot is ten times faster than a norm of three numbers, and this runs in every tick.
    x, y, z, rx, ry, rz = six.tolist()
    return max(math.hypot(x, y, z) / linear, math.hypot(rx, ry, rz) / angular)
