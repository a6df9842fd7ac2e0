"""The twist with which a person steers the arm: checked, and worth nothing after a moment."""

from __future__ import annotations

import math

import numpy as np

TIMEOUT_S = 0.1  # by arrival, as MoveIt Servo does it with the stamp
MAX_STAMP_AGE_S = 0.3  # what has queued up on its way is not what the person wants now


class Teleoperation:
    """Holds the newest twist of ~/teleop_twist.

    Attributes:
        refusal: Why the newest one is not followed, in words; "" when it is.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.refusal = ""
        self._twist = np.zeros(6)
        self._received_s = -math.inf

    def receive(
        self, twist: np.ndarray, frame: str, age_s: float, now_s: float, base_frame: str
    ) -> str:
        """Take a twist; return why it is refused, in words, or "".

        A refused twist stops the arm as silence does.

        Args:
            twist: (6,) m/s and rad/s, axes of `frame`.
            frame: Its header.frame_id.
            age_s: ROS time minus its stamp; NaN = the stamp is not set.
            now_s: Steady time, seconds.
            base_frame: The only frame that is taken.
        """
        self.forget()
        self.refusal = _refusal(np.asarray(twist), frame, age_s, base_frame)
        if not self.refusal:
            self._twist, self._received_s = np.array(twist, dtype=np.float64), now_s
        return self.refusal

    def twist(self, now_s: float) -> np.ndarray | None:
        """The (6,) twist to follow now; None when the newest is refused or too old."""
        return self._twist if now_s - self._received_s <= TIMEOUT_S else None

    def forget(self) -> None:
        """Follow nothing until the next twist."""
        self._received_s = -math.inf
        self.refusal = ""


def _refusal(twist: np.ndarray, frame: str, age_s: float, base_frame: str) -> str:
    if frame != base_frame:
        return f"it is given in the frame '{frame}', and base_frame is '{base_frame}'."
    if not np.isfinite(twist).all():
        return f"it is not finite: {twist.tolist()}."
    if math.isnan(age_s):
        return "it carries no time stamp (header.stamp is 0)."
    if abs(age_s) > MAX_STAMP_AGE_S:
        return f"its stamp is {age_s:.2f} s old, and {MAX_STAMP_AGE_S} s is the limit."
    return ""
