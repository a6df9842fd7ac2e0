"""What the monitor shows: the last message of each topic, how old it is, and how often it comes.

Messages are read by attribute and time is an argument, so this file needs no ROS and no clock. A
topic that is silent shows a dash and for how long; it never shows a zero that nobody sent.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from openvla_ros.control.displacement import rotation_vector
from openvla_ros.control.pose import quaternion_to_rotation

DASH = "—"
RATE_WINDOW_S = 3.0
SILENT_AFTER_S = 1.5  # every topic shown here repeats at least once a second, except on demand
TOPICS = ("status", "action", "twist", "gripper", "pose", "opening")


@dataclass(frozen=True)
class Row:
    """One line of the table: a label, the text, and "ok", "warn", "bad" or "quiet"."""

    label: str
    text: str
    level: str = "ok"


class MonitorState:
    """Last message, arrival time and rate of every topic the monitor follows."""

    def __init__(self, status_names: Mapping[str, Mapping[int, str]] | None = None) -> None:
        """Start empty.

        Args:
            status_names: "state", "reason" and "drop_reason" to the names of their constants, as
                `enum_names` gives them. Numbers are shown otherwise.
        """
        self._names = status_names or {}
        self._last: dict[str, tuple[float, Any]] = {}
        self._arrivals: dict[str, deque[float]] = {name: deque() for name in TOPICS}
        self.counts = dict.fromkeys(TOPICS, 0)
        self._first_rotation = np.eye(3)
        self.executed = 0
        self.moving_twists = 0

    def receive(self, topic: str, message: Any, now_s: float) -> None:
        """Take a message of "status", "action", "twist", "gripper", "pose" or "opening"."""
        self._last[topic] = (now_s, message)
        self.counts[topic] += 1
        arrivals = self._arrivals[topic]
        arrivals.append(now_s)
        while arrivals and now_s - arrivals[0] > RATE_WINDOW_S:
            arrivals.popleft()
        if topic == "pose" and self.counts[topic] == 1:
            self._first_rotation = _rotation(message)
        if topic == "action" and message.executed:
            self.executed += 1
        if topic == "twist" and any(_twist(message)):
            self.moving_twists += 1

    def latest(self, topic: str) -> Any | None:
        """Return the last message of a topic, or None."""
        return self._last[topic][1] if topic in self._last else None

    def age_s(self, topic: str, now_s: float) -> float:
        """Return seconds since the last message of a topic; infinity before the first."""
        return now_s - self._last[topic][0] if topic in self._last else math.inf

    def rate_hz(self, topic: str, now_s: float) -> float:
        """Return messages per second over the last seconds; NaN when nothing can be said."""
        recent = [stamp for stamp in self._arrivals[topic] if now_s - stamp <= RATE_WINDOW_S]
        if len(recent) < 2 or recent[-1] == recent[0]:
            return math.nan
        return (len(recent) - 1) / (recent[-1] - recent[0])

    def state_text(self) -> str:
        """Return state and reason in words, or a dash."""
        status = self.latest("status")
        if status is None:
            return DASH
        state, reason = self._name("state", status.state), self._name("reason", status.reason)
        return state if reason == "OK" else f"{state} {reason}"

    def rows(self, now_s: float) -> list[Row]:
        """Return the table, top to bottom."""
        return [
            *self._status_rows(now_s),
            *self._action_rows(now_s),
            self._row("twist", "twist", now_s, _twist_text),
            self._row(
                "gripper command", "gripper", now_s, lambda m: _opening(m.opening), repeats=False
            ),
            self._row("integrated pose", "pose", now_s, self._pose_text),
            self._row("gripper", "opening", now_s, lambda m: _opening(m.data)),
            self._rates_row(now_s),
        ]

    def plain_line(self, now_s: float) -> str:
        """Return everything that changes as one line, for terminals that cannot be redrawn."""
        texts = {row.label: row.text for row in self.rows(now_s)}
        labels = ("state", "image age", "latency", "tokens", "action", "result", "twist")
        parts = [f"{label} {texts[label]}" for label in (*labels, "gripper command")]
        return " | ".join([*parts, f"pose {texts['integrated pose']}", texts["rates"]])

    def _status_rows(self, now_s: float) -> list[Row]:
        status, age = self.latest("status"), self.age_s("status", now_s)
        if status is None:
            return [Row("state", f"{DASH} no data", "quiet"), Row("image age", DASH, "quiet")]
        reason = self._name("reason", status.reason)
        level = "ok" if reason == "OK" else "bad" if "FAULT" in self.state_text() else "warn"
        text = self.state_text() + ("" if status.motion_enabled else "  (dry run)")
        if reason != "OK" and status.detail:
            text += f": {status.detail}"
        stale = age > SILENT_AFTER_S
        # A status is up to half a second old by design; when it stays away, the image only ages.
        image_age = seconds(status.image_age + (age if stale else 0.0))
        return [
            Row("state", text + (_silence(age) if stale else ""), "warn" if stale else level),
            Row("instruction", status.instruction or f"{DASH} none", "ok"),
            Row("limited by", status.interventions or f"{DASH} nothing", "ok"),
            Row("image age", image_age, "warn" if reason == "STALE_IMAGE" else "ok"),
        ]

    def _action_rows(self, now_s: float) -> list[Row]:
        action, age = self.latest("action"), self.age_s("action", now_s)
        if action is None:
            labels = ("latency", "tokens", "action", "result")
            return [Row(label, f"{DASH} no data", "quiet") for label in labels]
        silence = _silence(age) if age > SILENT_AFTER_S else ""
        level = "quiet" if silence else "ok"
        verdict = Row("result", self.verdict(action), level if action.executed else "warn")
        latency = latency_s(action)
        return [
            Row("latency", f"{seconds(latency)}, {_cost(action)}", level),
            Row("tokens", tokens_text(action) + silence, level if action.is_valid else "bad"),
            Row("action", action_text(action), level),
            verdict,
        ]

    def verdict(self, action: Any) -> str:
        """Return "executed" or why the action was not, in words."""
        if action.executed:
            return "executed"
        return f"not executed: {self._name('drop_reason', action.drop_reason)}"

    def _row(self, label: str, topic: str, now_s: float, text: Any, *, repeats: bool = True) -> Row:
        message, age = self.latest(topic), self.age_s(topic, now_s)
        if message is None:
            return Row(label, f"{DASH} no data", "quiet")
        if repeats and age > SILENT_AFTER_S:
            return Row(label, f"{DASH}{_silence(age)}", "warn")
        return Row(label, text(message))

    def _rates_row(self, now_s: float) -> Row:
        rates = ((name, self.rate_hz(name, now_s)) for name in ("action", "twist", "pose"))
        status = self.latest("status")
        image = status.image_rate if status is not None else math.nan
        parts = [f"image {hertz(image)}", *(f"{name} {hertz(rate)}" for name, rate in rates)]
        return Row("rates", ", ".join(parts))

    def _pose_text(self, message: Any) -> str:
        # Turned since the first pose, about base axes: angles against the base itself jump at ±180°
        # for a tool that points down.
        turned = rotation_vector(_rotation(message) @ self._first_rotation.T)
        return (
            f"{_three(_vector(message.pose.position), '+.3f')} m  "
            f"turned {_three(np.degrees(turned), '+6.1f')}°"
        )

    def _name(self, kind: str, number: int) -> str:
        return self._names.get(kind, {}).get(number, str(number))


def enum_names(numbers: type[IntEnum]) -> dict[int, str]:
    """Return value -> name of an enumeration of `control.states`."""
    return {int(member): member.name for member in numbers}


def latency_s(action: Any) -> float:
    """Return seconds from the stamp of the image to the complete answer."""
    return _stamp_s(action.inference_end) - _stamp_s(action.header.stamp)


def _cost(action: Any) -> str:
    drafted = f", {action.drafts_accepted} drafted ids right" if action.drafts_accepted else ""
    return f"model {action.inference_ms:.0f} ms, {action.passes} passes{drafted}"


def tokens_text(action: Any) -> str:
    """Return the generated ids, with those outside the action range marked by `!`."""
    bad = set(action.invalid_dims)
    return " ".join(f"{token}{'!' if i in bad else ''}" for i, token in enumerate(action.token_ids))


def action_text(action: Any) -> str:
    """Return the step in millimetres and degrees, or in dataset units when those are unknown."""
    move, turn = _vector(action.delta_position), _vector(action.delta_rotation)
    if not np.isfinite([*move, *turn]).all():
        raw = " ".join(f"{value:+.4f}" for value in list(action.raw)[:7])
        return f"{raw} (dataset units: metres are not known)"
    return (
        f"Δ {_three(move * 1000, '+6.1f')} mm  {_three(np.degrees(turn), '+6.2f')}°  "
        f"gripper {'open' if action.gripper_open else 'closed'} ({action.gripper:.2f})"
    )


def seconds(value: float) -> str:
    """Return a duration, or a dash when it is not known."""
    return f"{value:.2f} s" if math.isfinite(value) else DASH


def hertz(value: float) -> str:
    """Return a rate, or a dash when it is not known."""
    return f"{value:.1f} Hz" if math.isfinite(value) and value > 0 else DASH


def _twist(message: Any) -> np.ndarray:
    return np.concatenate([_vector(message.twist.linear), _vector(message.twist.angular)])


def _twist_text(message: Any) -> str:
    twist = _twist(message)
    return f"{_three(twist[:3] * 1000, '+6.1f')} mm/s  {_three(np.degrees(twist[3:]), '+6.2f')}°/s"


def _rotation(message: Any) -> np.ndarray:
    orientation = message.pose.orientation
    return quaternion_to_rotation(
        np.array([orientation.x, orientation.y, orientation.z, orientation.w])
    )


def _opening(value: float) -> str:
    return f"{100 * value:.0f} % open"


def _silence(age_s: float) -> str:
    return f"  (silent for {age_s:.1f} s)"


def _three(values: np.ndarray, form: str) -> str:
    return " ".join(format(float(value), form) for value in values)


def _vector(message: Any) -> np.ndarray:
    return np.array([message.x, message.y, message.z])


def _stamp_s(stamp: Any) -> float:
    return float(stamp.sec) + float(stamp.nanosec) * 1e-9
