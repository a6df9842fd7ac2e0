"""Everything the node publishes, as messages: answers, twist, gripper, status.

Fields are filled here and nothing is decided.
"""

from __future__ import annotations

import math

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, TwistStamped, Vector3

from openvla_ros.config import NodeConfig
from openvla_ros.config.motion import GripperConfig
from openvla_ros.control.gripper import gap_m
from openvla_ros.control.pose import Pose, rotation_to_quaternion
from openvla_ros.control.safety import SafetyReport
from openvla_ros.control.states import Drop
from openvla_ros.control.supervisor import Verdict
from openvla_ros.msg import GripperCommand, VLAAction, VLAStatus
from openvla_ros.ros.frames import Answer
from openvla_ros.ros.inference import gpu_memory_bytes
from openvla_ros.ros.ledger import Ledger
from openvla_ros.types import PolicyInfo


def time_message(nanoseconds: int) -> Time:
    """Return nanoseconds as builtin_interfaces/Time."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return Time(sec=int(seconds), nanosec=int(rest))


def action_message(answer: Answer, base_frame: str) -> VLAAction:
    """Return an answer as VLAAction, stamped with the time of its image."""
    prediction, plan = answer.prediction, answer.plan
    message = VLAAction()
    message.header.stamp = answer.frame.message.header.stamp
    message.header.frame_id = base_frame
    message.sequence = answer.sequence
    message.instruction = answer.frame.instruction
    message.prompt = prediction.prompt
    message.unnorm_key = prediction.unnorm_key
    message.image_received = time_message(answer.frame.received_ns)
    message.inference_start = time_message(answer.start_ns)
    message.inference_end = time_message(answer.end_ns)
    message.preprocess_ms = answer.preprocess_ms
    message.inference_ms = answer.inference_ms
    message.timing_names = list(prediction.timings)
    message.timing_ms = [float(value) for value in prediction.timings.values()]
    message.action_dt = answer.action_dt_s
    step = np.full(6, math.nan) if plan.steps is None else plan.steps[0]
    message.delta_position = _vector(step[0:3])
    message.delta_rotation = _vector(step[3:6])
    message.steps = [] if plan.steps is None else plan.steps.ravel().tolist()
    message.gripper = plan.gripper_opening
    message.gripper_open = answer.gripper_is_open
    actions = np.atleast_2d(prediction.actions)
    message.chunk_steps = len(actions)
    message.raw = actions.ravel().tolist()
    message.normalized = np.ravel(prediction.normalized_actions).tolist()
    message.token_ids = [int(i) for i in prediction.token_ids]
    message.token_probability = [float(p) for p in prediction.token_probabilities]
    message.is_valid = prediction.is_valid
    message.invalid_dims = [int(i) for i in prediction.invalid_dims]
    message.passes = prediction.passes
    message.drafts_accepted = prediction.drafts_accepted
    message.clipped = plan.clip_mask
    message.executed = answer.drop is Drop.NONE
    message.drop_reason = int(answer.drop)
    return message


def twist_message(twist: np.ndarray, now: Time, base_frame: str) -> TwistStamped:
    """Return a (6,) twist as TwistStamped: end-effector point relative to base, base axes, now."""
    message = TwistStamped()
    message.header.stamp = now
    message.header.frame_id = base_frame
    message.twist.linear = _vector(twist[0:3])
    message.twist.angular = _vector(twist[3:6])
    return message


def pose_message(pose: Pose, now: Time, base_frame: str) -> PoseStamped:
    """Return a pose of the end effector as PoseStamped: base frame, now."""
    message = PoseStamped()
    message.header.stamp = now
    message.header.frame_id = base_frame
    position, orientation = message.pose.position, message.pose.orientation
    position.x, position.y, position.z = map(float, pose.position)
    orientation.x, orientation.y, orientation.z, orientation.w = map(
        float, rotation_to_quaternion(pose.rotation)
    )
    return message


def gripper_message(opening: float, now: Time, gripper: GripperConfig) -> GripperCommand:
    """Return an opening (0 closed ... 1 open) as GripperCommand."""
    message = GripperCommand()
    message.header.stamp = now
    message.opening = opening
    message.width_m = gap_m(opening, open_m=gripper.open_position, closed_m=gripper.closed_position)
    message.max_effort_n = gripper.max_effort
    return message


def status_message(
    verdict: Verdict, now: Time, config: NodeConfig, info: PolicyInfo | None, instruction: str
) -> VLAStatus:
    """Return what the node is, without the numbers of an active session."""
    message = VLAStatus()
    message.header.stamp = now
    message.state = int(verdict.state)
    message.reason = int(verdict.reason)
    message.detail = verdict.detail
    message.motion_enabled = config.motion.motion_enabled
    message.instruction = instruction
    message.backend = config.model.backend
    message.checkpoint = config.model.checkpoint if info is None else info.checkpoint
    message.revision = config.model.revision if info is None else info.revision
    message.quantization = config.model.quantization if info is None else info.quantization
    message.unnorm_key = config.model.unnorm_key if info is None else info.unnorm_key
    for name in ("image_age", "last_latency", "mean_latency", "max_latency"):
        setattr(message, name, math.nan)
    message.gpu_memory_used, message.gpu_memory_total = gpu_memory_bytes()
    return message


def fill_numbers(message: VLAStatus, ledger: Ledger, image_age_s: float, now_s: float) -> None:
    """Add the counts and rates of the session to a status."""
    message.image_age = image_age_s
    message.last_latency = ledger.last_latency_s
    message.mean_latency = ledger.mean_latency_s
    message.max_latency = ledger.max_latency_s
    message.inference_rate = ledger.answers.rate_hz(now_s)
    message.image_rate = ledger.images.rate_hz(now_s)
    message.command_rate = ledger.commands.rate_hz(now_s)
    message.frames_received = ledger.received
    message.frames_dropped = ledger.dropped
    message.frames_in_flight = ledger.in_flight
    message.actions = ledger.actions
    message.actions_dropped = ledger.actions_not_executed
    message.clips = ledger.clips


def fill_interventions(message: VLAStatus, report: SafetyReport) -> None:
    """Add what limits and stops have changed since activation."""
    message.intervention_names = [reason.value for reason in report.counts]
    message.intervention_counts = list(report.counts.values())
    message.interventions = report.counted_words


def _vector(three: np.ndarray) -> Vector3:
    return Vector3(x=float(three[0]), y=float(three[1]), z=float(three[2]))
