"""What travels between the camera callback, the policy's thread and the stream timer.

This file knows no ROS.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from openvla_ros.control.motion import MotionPlan
from openvla_ros.control.pose import EndEffectorPose, Pose
from openvla_ros.control.states import Drop
from openvla_ros.types import Prediction


@dataclass
class Reply:
    """Where the caller of ~/predict_once waits."""

    done: threading.Event = field(default_factory=threading.Event)
    success: bool = False
    text: str = "the image was dropped before it was answered."


@dataclass
class Preparation:
    """What was made of a frame before its turn. Whoever makes it holds the lock meanwhile."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    result: Any = None


@dataclass(frozen=True)
class Frame:
    """One image on its way to the policy. A copy with other values begins unprepared."""

    message: Any
    stamp_ns: int
    received_ns: int
    received_s: float
    instruction: str
    activation: int
    reply: Reply | None = None
    preparation: Preparation = field(
        default_factory=Preparation, init=False, repr=False, compare=False
    )


@dataclass(frozen=True)
class Answer:
    """One prediction and what became of it; times in ROS nanoseconds and steady milliseconds."""

    frame: Frame
    prediction: Prediction
    plan: MotionPlan
    drop: Drop
    sequence: int
    start_ns: int
    end_ns: int
    preprocess_ms: float
    inference_ms: float
    action_dt_s: float
    gripper_is_open: bool


@dataclass(frozen=True)
class Tick:
    """What is published at one tick.

    Attributes:
        twist: (6,) m/s and rad/s, base axes.
        gripper_opening: 0 closed ... 1 open; None = nothing new.
        target: Pose that the end effector shall have; None unless the output is `pose`.
    """

    twist: np.ndarray
    gripper_opening: float | None = None
    target: Pose | None = None

    @classmethod
    def zero(cls) -> Tick:
        """A tick that stops the arm and leaves the gripper alone."""
        return cls(np.zeros(6))


class PoseSource(Protocol):
    """Measures the end effector."""

    @property
    def problem(self) -> str:
        """Why the last `read` returned None, in words; "" when it did not."""

    def read(self) -> EndEffectorPose | None:
        """Return the newest pose, in base_frame, with its age; None when there is no usable one."""


class UnknownPose:
    """The source of a node that was not told where to look."""

    problem = "the pose of the end effector is not known"

    def read(self) -> EndEffectorPose | None:
        """Return None."""
        return None


@dataclass(frozen=True)
class Clocks:
    """ROS time in nanoseconds (stamps, ages) and steady time in seconds (time-outs, streaming)."""

    ros_ns: Callable[[], int]
    steady_s: Callable[[], float]


def age_s(stamp: int, now_ns: int) -> float:
    """Seconds since a stamp in nanoseconds; NaN when it is not set (0)."""
    return math.nan if stamp == 0 else (now_ns - stamp) * 1e-9
