"""Messages of a replay as CDR bytes, without ROS: what the node would have published.

`ros.outgoing` fills the same fields from a running node; a test compares the two byte by byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from openvla_ros.control.motion import MotionPlan
from openvla_ros.control.states import Drop
from openvla_ros.data.bag_file import COMPRESSED_IMAGE, RAW_IMAGE
from openvla_ros.data.bag_messages import BagMessages
from openvla_ros.errors import ConfigurationError
from openvla_ros.evaluation.episode_record import EpisodeRecord

ACTION = "openvla_ros/msg/VLAAction"

#: How images are stored: "png" is exact and small, "raw" is exact, "jpeg" is smaller and not exact.
IMAGE_FORMATS = ("png", "raw", "jpeg")
JPEG_QUALITY = 95
CAMERA_FRAME = "camera"


@dataclass(frozen=True)
class ReplayedAnswer:
    """One step of a record, and what the motion stage makes of it.

    Attributes:
        record: Holds the answer.
        step: Which of its steps.
        stamp_ns: Stamp of the image, nanoseconds.
        plan: What the answer means for this robot.
        gripper_is_open: Decision of the gripper logic after this step; None before its first one.
        unnorm_key: Statistics of the answer.
        action_dt_s: Duration of a step in the dataset, seconds; NaN = unknown.
        base_frame: Frame of the displacements.
        invalid_dims: Positions of ids outside the action range.
    """

    record: EpisodeRecord
    step: int
    stamp_ns: int
    plan: MotionPlan
    gripper_is_open: bool | None
    unnorm_key: str
    action_dt_s: float
    base_frame: str
    invalid_dims: tuple[int, ...] = ()


class ReplayMessages(BagMessages):
    """Serialises what a replay publishes."""

    def __init__(self, image_format: str = "png") -> None:
        """Look the definitions up.

        Args:
            image_format: One of `IMAGE_FORMATS`.

        Raises:
            ConfigurationError: There is no such format.
            DependencyError: `rosbags` is not installed.
        """
        if image_format not in IMAGE_FORMATS:
            raise ConfigurationError(
                f"image_format is {image_format!r}; allowed: {', '.join(IMAGE_FORMATS)}."
            )
        self._format = image_format
        super().__init__([ACTION, RAW_IMAGE])

    @property
    def image_type(self) -> str:
        """Message type of `image`."""
        return RAW_IMAGE if self._format == "raw" else COMPRESSED_IMAGE

    def image(self, stamp_ns: int, rgb: np.ndarray) -> bytes:
        """Return an (H, W, 3) uint8 RGB image as Image (rgb8) or CompressedImage."""
        height, width, _ = rgb.shape
        if self._format == "raw":
            return self._bytes(
                RAW_IMAGE,
                header=self._header(stamp_ns, CAMERA_FRAME),
                height=height,
                width=width,
                encoding="rgb8",
                is_bigendian=0,
                step=3 * width,
                data=np.ascontiguousarray(rgb).ravel(),
            )
        options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if self._format == "jpeg" else []
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        is_encoded, data = cv2.imencode(f".{self._format}", bgr, options)
        assert is_encoded, (self._format, rgb.shape)
        return self.compressed(stamp_ns, data.ravel(), self._format, CAMERA_FRAME)

    def action(self, answer: ReplayedAnswer) -> bytes:
        """Return an answer as VLAAction: a dry run, in which every answer came at once.

        What no record holds is empty (prompt, probabilities) or NaN (preprocess_ms).
        """
        return self._bytes(ACTION, **self._origin(answer), **self._meaning(answer))

    def _origin(self, answer: ReplayedAnswer) -> dict[str, Any]:
        """Fields about when the answer came, and what it cost."""
        record, step = answer.record, answer.step
        total_ms = float(record.latency_ms[step])
        end_ns = answer.stamp_ns + (round(total_ms * 1e6) if math.isfinite(total_ms) else 0)
        return {
            "header": self._header(answer.stamp_ns, answer.base_frame),
            "sequence": step + 1,
            "instruction": record.instruction,
            "prompt": "",
            "unnorm_key": answer.unnorm_key,
            "image_received": self._time(answer.stamp_ns),
            "inference_start": self._time(answer.stamp_ns),
            "inference_end": self._time(end_ns),
            "preprocess_ms": math.nan,
            "inference_ms": total_ms,
            "timing_names": ["total_ms"],
            "timing_ms": np.array([total_ms]),
            "action_dt": answer.action_dt_s,
        }

    def _meaning(self, answer: ReplayedAnswer) -> dict[str, Any]:
        """Fields about the numbers, and what the motion stage makes of them."""
        record, step, plan = answer.record, answer.step, answer.plan
        moves = np.full(6, np.nan) if plan.steps is None else plan.steps[0]
        is_open = answer.gripper_is_open
        drop = Drop.DRY_RUN if plan.refusal is Drop.NONE else plan.refusal
        return {
            "delta_position": self._vector(moves[:3]),
            "delta_rotation": self._vector(moves[3:]),
            "steps": np.zeros(0) if plan.steps is None else plan.steps.ravel(),
            "gripper": plan.gripper_opening,
            "gripper_open": plan.gripper_opening >= 0.5 if is_open is None else is_open,
            "chunk_steps": 1,
            "raw": np.asarray(record.predicted[step], np.float64),
            "normalized": np.asarray(record.normalized[step], np.float64),
            "token_ids": np.asarray(record.token_ids[step], np.int32),
            "token_probability": np.zeros(0, np.float32),
            "is_valid": bool(record.is_valid[step]),
            "invalid_dims": np.array(answer.invalid_dims, np.int32),
            "passes": int(record.passes[step]),
            "drafts_accepted": 0,
            "clipped": plan.clip_mask,
            "executed": False,
            "drop_reason": int(drop),
        }
