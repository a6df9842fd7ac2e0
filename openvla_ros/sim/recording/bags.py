"""One episode as a bag, with the topics of a teleoperated arm; config/topics/sim.yaml reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np

from openvla_ros.control.pose import Pose
from openvla_ros.data.bag_file import COMPRESSED_IMAGE
from openvla_ros.data.bag_messages import BagMessages
from openvla_ros.data.bag_numbers import FLOAT, JOINTS, POSE, TEXT, TWIST
from openvla_ros.evaluation.motion.replay_writer import ReplayWriter
from openvla_ros.sim.cell import SimCell
from openvla_ros.sim.expert import STEP_S, action_twist
from openvla_ros.sim.recording.grounding import Grounding, ground, join, write_grounding
from openvla_ros.sim.recording.options import RecordingOptions

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

IMAGE_TOPIC = "/camera/color/image_raw/compressed"
INSTRUCTION_TOPIC = "/instruction"
TWIST_TOPIC = "/servo_node/delta_twist_cmds"
GRIPPER_TOPIC = "/gripper_opening_cmd"
POSE_TOPIC = "/ee_pose"
JOINTS_TOPIC = "/joint_states"
BASE_FRAME, CAMERA_FRAME = "base_link", "camera_color_optical_frame"

STEP_NS = round(STEP_S * 1e9)
TWISTS_PER_STEP = 4  # 20 Hz: Servo forgets a twist after 0.1 s
BEGIN_NS = 1_700_000_000_000_000_000
_APART_NS = 3_600_000_000_000  # from one bag to the next

Row: TypeAlias = "tuple[int, Connection, bytes]"


@dataclass(frozen=True)
class RecordedStep:
    """One picture, and what is said to have been done after it.

    Attributes:
        jpeg: (n,) uint8.
        action: (7,), see `expert.expert_action`; the opening may be any of 0 ... 1.
        grounding: T = 1.
        joints_rad: (n,), base to wrist.
        tool: Pose of the tool point, base frame.
        is_pushed: The arm was pushed off its way: what was executed is not `action`.
    """

    jpeg: np.ndarray
    action: np.ndarray
    grounding: Grounding
    joints_rad: np.ndarray
    tool: Pose
    is_pushed: bool = False


def look(cell: SimCell, options: RecordingOptions) -> np.ndarray:
    """Return the (n,) uint8 JPEG of what the camera sees."""
    bgr = cv2.cvtColor(cell.render(options.width, options.height), cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, options.jpeg_quality])
    return jpeg.ravel()


def record_step(
    cell: SimCell, jpeg: np.ndarray, target: str, action: np.ndarray, options: RecordingOptions
) -> RecordedStep:
    """Return a step with the cell as it is in the picture."""
    return RecordedStep(
        jpeg=jpeg,
        action=action,
        grounding=ground(cell, target, options.width, options.height),
        joints_rad=cell.joint_positions(),
        tool=cell.ee_pose(),
    )


class EpisodeWriter:
    """Writes episodes into a folder, one bag each.

    Attributes:
        episodes: How many were written.
        steps: How many steps they have together.
    """

    def __init__(self, folder: Path, joints: Sequence[str]) -> None:
        """Write into `folder`; `joints` are the names of `RecordedStep.joints_rad`.

        Raises:
            DependencyError: `rosbags` is not installed.
        """
        self.episodes = self.steps = 0
        self._folder = folder
        self._joints = tuple(joints)
        self._messages = BagMessages()

    def write(self, kind: str, instruction: str, steps: Sequence[RecordedStep]) -> None:
        """Write the next bag, "reach_000003", with its grounding; whole or not at all.

        Raises:
            OSError: The disk is full.
        """
        path = self._folder / f"{kind}_{self.episodes:06d}"
        begin_ns = BEGIN_NS + self.episodes * _APART_NS
        with ReplayWriter(path, self._messages.typestore) as writer:
            # Said before the camera sees anything, as by whoever starts the recording.
            said = writer.topic(INSTRUCTION_TOPIC, TEXT, is_latched=True)
            text = self._messages.text(instruction)
            writer.write(iter([(begin_ns - STEP_NS // 2, said, text)]))
            stamps = [begin_ns + number * STEP_NS for number in range(len(steps))]
            rows = (
                self._rows(writer, stamp, step) for stamp, step in zip(stamps, steps, strict=True)
            )
            for of_step in rows:
                writer.write(of_step)
        write_grounding(path, join([step.grounding for step in steps]))
        self.episodes += 1
        self.steps += len(steps)

    def _rows(self, writer: ReplayWriter, stamp_ns: int, step: RecordedStep) -> Iterator[Row]:
        say, topic = self._messages, writer.topic
        picture = say.compressed(stamp_ns, step.jpeg, "jpeg", CAMERA_FRAME)
        state = say.joints(stamp_ns, self._joints, step.joints_rad)
        yield stamp_ns, topic(IMAGE_TOPIC, COMPRESSED_IMAGE), picture
        yield stamp_ns, topic(JOINTS_TOPIC, JOINTS), state
        yield stamp_ns, topic(POSE_TOPIC, POSE), say.pose(stamp_ns, step.tool, BASE_FRAME)
        yield stamp_ns, topic(GRIPPER_TOPIC, FLOAT), say.number(step.action[6])
        twist = action_twist(step.action)
        for part in range(TWISTS_PER_STEP):
            at_ns = stamp_ns + part * STEP_NS // TWISTS_PER_STEP
            yield at_ns, topic(TWIST_TOPIC, TWIST), say.twist(at_ns, twist, BASE_FRAME)
