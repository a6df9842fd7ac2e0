"""Which twist counts, and until when: MoveIt Servo's rules, for every simulated arm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COMMAND_TIMEOUT_S = 0.1  # MoveIt Servo's default incoming_command_timeout, against header.stamp


@dataclass(frozen=True)
class TwistCommand:
    """One accepted twist: (3,) m/s and (3,) rad/s along base axes, valid from `stamp_s`."""

    linear: np.ndarray
    angular: np.ndarray
    stamp_s: float


class TwistGate:
    """Takes twists or says why not, and forgets them when they are old.

    Attributes:
        timeout_s: A command whose stamp is this old is ignored.
        accepted: How many were taken.
        refused: How many were not, by reason.
    """

    def __init__(self, base_frame: str = "", timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Hold no command.

        Args:
            base_frame: Frame a twist must be given in; "" accepts any.
            timeout_s: See the class.
        """
        self.timeout_s = timeout_s
        self.accepted = 0
        self.refused: dict[str, int] = {}
        self._base_frame = base_frame
        self._command: TwistCommand | None = None

    @property
    def command(self) -> TwistCommand | None:
        """What was taken last, fresh or not."""
        return self._command

    def refusal(
        self, linear: np.ndarray, angular: np.ndarray, frame_id: str, stamp_s: float, now_s: float
    ) -> str:
        """Return why a twist may not be taken, and count that; "" when it may.

        A stamp in the future is refused: compared with `now` it would never go stale.
        """
        reason = self._reason_to_refuse(linear, angular, frame_id, stamp_s, now_s)
        if reason:
            self.refused[reason] = self.refused.get(reason, 0) + 1
        return reason

    def take(self, linear: np.ndarray, angular: np.ndarray, stamp_s: float) -> None:
        """Let a twist count that has not been refused."""
        self._command = TwistCommand(np.array(linear, float), np.array(angular, float), stamp_s)
        self.accepted += 1

    def forget(self) -> None:
        """Hold no command."""
        self._command = None

    def twist_at(self, now_s: float) -> np.ndarray:
        """Return the (6,) twist that counts at `now_s`; zero when none is fresh."""
        if self._command is None or not now_s < self._command.stamp_s + self.timeout_s:
            return np.zeros(6)
        return np.concatenate([self._command.linear, self._command.angular])

    def _reason_to_refuse(
        self, linear: np.ndarray, angular: np.ndarray, frame_id: str, stamp_s: float, now_s: float
    ) -> str:
        if not (np.isfinite(linear).all() and np.isfinite(angular).all()):
            return "not finite"
        if not frame_id or (self._base_frame and frame_id != self._base_frame):
            return f"frame {frame_id!r} is not {self._base_frame!r}"
        if stamp_s - now_s > self.timeout_s:
            return "stamp in the future"
        if now_s - stamp_s >= self.timeout_s:
            return "stale"
        return ""
