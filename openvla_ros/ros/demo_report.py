"""What a demo's bag says about the demo: counts, verdict, contact sheet. No rclpy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros.control.states import Drop
from openvla_ros.data.bag_file import IMAGE_TYPES, open_bag, picture_to_rgb
from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.pictures.contact_sheet import SheetStep, draw_contact_sheet, pick_evenly
from openvla_ros.ros.monitor_view import latency_s

ACTION_TYPE = "openvla_ros/msg/VLAAction"
TWIST_TYPE = "geometry_msgs/msg/TwistStamped"
POSE_TYPE = "geometry_msgs/msg/PoseStamped"
SHEET_CARDS = 12
JUMP_M = 0.05  # between two poses: at 50 Hz an arm of 1 m/s moves 2 cm
STILL_M = 0.001  # a simulated arm trembles
STILL_TURN = 1e-5  # of 1 - cos of half the angle: half a degree
HINTS = {
    Drop.STALE: "On a slow machine allow older answers with --max-action-age.",
    Drop.MOTION_UNKNOWN: "Nothing is published about what this statistics key's actions mean: "
    "say it in a parameter file and give that with --params-file.",
    Drop.INVALID_TOKEN: "The model answers with ids that are no actions: is it an OpenVLA "
    "fine-tune, and the instruction in plain language?",
}


@dataclass
class DemoReport:
    """Figures of one demo, all read back from its bag.

    Attributes:
        counts: Topic to number of messages, in the bag's order.
        answered: Answers whose image is in the bag too.
        executed: Answers that moved the robot.
        not_executed: Reason (number in `VLAAction.drop_reason`) to count.
        token_sequences: Different sequences of action tokens.
        latencies_s: Image stamp to answer, one per answer.
        moving_twists: Twists that are not all zero.
        has_moved: Whether the arm ever left its first pose, by more than it trembles.
        travelled_m: Length of the path of the end effector, jumps to a start left out.
    """

    counts: dict[str, int]
    actions: int = 0
    answered: int = 0
    executed: int = 0
    not_executed: Counter[int] = field(default_factory=Counter)
    token_sequences: int = 0
    latencies_s: list[float] = field(default_factory=list)
    moving_twists: int = 0
    has_moved: bool = False
    travelled_m: float = 0.0

    @property
    def median_latency_s(self) -> float:
        """Middle of the latencies, seconds; NaN without answers."""
        return float(np.median(self.latencies_s)) if self.latencies_s else math.nan

    def problems(self, drop_reasons: Mapping[int, str]) -> list[str]:
        """Return what is wrong with the pipeline, in words; empty when it worked."""
        if not self.actions:
            return ["The node answered no frame."]
        found = []
        if not self.answered:
            found.append("No answer belongs to a recorded image: stamps were lost on the way.")
        if not self.executed:
            reasons = ", ".join(
                f"{drop_reasons.get(reason, reason)} ({count})"
                for reason, count in self.not_executed.most_common()
            )
            hints = {hint for reason, hint in HINTS.items() if self.not_executed[reason]}
            found.append(
                " ".join(
                    [f"None of {self.actions} answers was executed: {reasons}.", *sorted(hints)]
                )
            )
        elif not self.moving_twists:
            found.append("Answers were executed, but no twist moved the robot.")
        elif not self.has_moved:
            found.append("The twist was not zero, but the arm did not move.")
        return found


def read_report(bag: Path) -> DemoReport:
    """Return the figures of a demo.

    Raises:
        ConfigurationError: The bag cannot be read.
    """
    with open_bag(bag) as reader:
        report = DemoReport({c.topic: c.msgcount for c in reader.connections})
        image_stamps: set[tuple[int, int]] = set()
        sequences: set[tuple[int, ...]] = set()
        first: Any = None
        last_position: np.ndarray | None = None
        for connection, _, raw in reader.messages():
            message = reader.deserialize(raw, connection.msgtype)
            if connection.msgtype in IMAGE_TYPES:
                image_stamps.add(_stamp(message))
            elif connection.msgtype == ACTION_TYPE:
                _count_action(report, message, image_stamps)
                sequences.add(tuple(int(token) for token in message.token_ids))
            elif connection.msgtype == TWIST_TYPE:
                report.moving_twists += bool(np.any(_twist(message)))
            elif connection.msgtype == POSE_TYPE:
                first = message if first is None else first
                report.has_moved |= _differ(first, message)
                position = position_of(message)
                if last_position is not None:
                    report.travelled_m += step_m(last_position, position)
                last_position = position
        report.token_sequences = len(sequences)
    return report


def write_contact_sheet(
    bag: Path, path: Path, title: str, subtitle: str, drop_reasons: Mapping[int, str]
) -> int:
    """Write a PNG with frames spread over the bag and their answers; return how many.

    Raises:
        ConfigurationError: The bag cannot be read, or holds no frame with an answer.
    """
    actions = {_stamp(action): action for _, action in _messages(bag, (ACTION_TYPE,))}
    recorded = [_stamp(image) for _, image in _messages(bag, IMAGE_TYPES)]
    stamps = [stamp for stamp in recorded if stamp in actions]
    if not stamps:
        raise ConfigurationError(f"{bag} holds no frame with an answer: there is nothing to draw.")
    chosen = {stamps[index] for index in pick_evenly(len(stamps), SHEET_CARDS)}
    steps = [
        _sheet_step(picture_to_rgb(image, kind), actions[_stamp(image)], drop_reasons)
        for kind, image in _messages(bag, IMAGE_TYPES)
        if _stamp(image) in chosen
    ]
    draw_contact_sheet(steps, title, subtitle).save(path)
    return len(steps)


def _messages(bag: Path, types: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    # Pictures are read one at a time, twice, rather than held in memory: a long bag is gigabytes.
    with open_bag(bag) as reader:
        connections = [c for c in reader.connections if c.msgtype in types]
        for connection, _, raw in reader.messages(connections):
            yield connection.msgtype, reader.deserialize(raw, connection.msgtype)


def _count_action(report: DemoReport, message: Any, image_stamps: set[tuple[int, int]]) -> None:
    report.actions += 1
    report.answered += _stamp(message) in image_stamps
    report.latencies_s.append(latency_s(message))
    if message.executed:
        report.executed += 1
    else:
        report.not_executed[int(message.drop_reason)] += 1


def _sheet_step(image: np.ndarray, action: Any, drop_reasons: Mapping[int, str]) -> SheetStep:
    reason = drop_reasons.get(int(action.drop_reason), str(action.drop_reason))
    verdict = "executed" if action.executed else f"skipped: {reason.lower().replace('_', ' ')}"
    move, turn = action.delta_position, action.delta_rotation
    return SheetStep(
        image=image,
        instruction=action.instruction,
        delta_position_m=np.array([move.x, move.y, move.z]),
        delta_rotation_rad=np.array([turn.x, turn.y, turn.z]),
        gripper=float(action.gripper),
        is_valid=bool(action.is_valid),
        verdict=verdict,
        caption=f"answer {action.sequence}, {latency_s(action):.2f} s after the image",
    )


def _stamp(message: Any) -> tuple[int, int]:
    return message.header.stamp.sec, message.header.stamp.nanosec


def _twist(message: Any) -> list[float]:
    linear, angular = message.twist.linear, message.twist.angular
    return [linear.x, linear.y, linear.z, angular.x, angular.y, angular.z]


def position_of(message: Any) -> np.ndarray:
    """Return (3,) metres of a PoseStamped."""
    position = message.pose.position
    return np.array([position.x, position.y, position.z])


def step_m(before: np.ndarray, after: np.ndarray) -> float:
    """Return the way between two positions that follow one another; 0 for a jump to a start."""
    length = float(np.linalg.norm(after - before))
    return length if length < JUMP_M else 0.0


def _differ(one: Any, other: Any) -> bool:
    turns = [[q.x, q.y, q.z, q.w] for q in (one.pose.orientation, other.pose.orientation)]
    moved = float(np.linalg.norm(position_of(one) - position_of(other)))
    return moved > STILL_M or abs(abs(float(np.dot(*turns))) - 1.0) > STILL_TURN
